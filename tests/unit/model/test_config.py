"""Sizes that no encoder can have are refused; names and shapes follow from the config."""

from typing import Any

import msgspec
import pytest

from tests.tiny import ARCHITECTURES, tiny_config
from trunkline.core.errors import CheckpointError
from trunkline.core.specs import spec_digest
from trunkline.model.config import (
    Architecture,
    EncoderConfig,
    embedding_tensor_shapes,
    layer_tensor_shapes,
    trunk_tensor_shapes,
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_heads": 3}, "width 16 is not a multiple of n_heads 3"),
        ({"n_positions": 1, "position_offset": 2}, "leaves no room"),
        ({"pad_id": 9999}, "pad_id 9999 is outside 0.."),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0; it must be at least 0 and below 1"),
        ({"hidden_dropout": float("nan")}, "hidden_dropout is nan"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be above 0"),
        ({"norm_eps": float("inf")}, "norm_eps is inf"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        tiny_config("bert", **changes)


def test_the_longest_row_leaves_out_the_lines_before_the_first_position() -> None:
    assert tiny_config("roberta", n_positions=514).max_tokens == 512


def test_a_layer_has_sixteen_tensors_whatever_the_architecture() -> None:
    assert {len(layer_tensor_shapes(tiny_config(architecture))) for architecture in ARCHITECTURES} == {16}


@pytest.mark.parametrize(
    ("architecture", "special"),
    [
        ("bert", {"embeddings.token_type.weight"}),
        ("mpnet", {"shared.relative_bias.weight"}),
        (
            "electra",
            {"embeddings.token_type.weight", "embeddings.projection.weight", "embeddings.projection.bias"},
        ),
        ("distilbert", set()),
    ],
)
def test_each_architecture_has_its_own_tensors_below_layer_0(architecture: Architecture, special: set[str]) -> None:
    common = {"embeddings.word.weight", "embeddings.position.weight", "embeddings.norm.weight", "embeddings.norm.bias"}
    assert set(embedding_tensor_shapes(tiny_config(architecture))) == common | special


def test_a_trunk_of_two_layers_names_layers_0_and_1() -> None:
    names = trunk_tensor_shapes(tiny_config(), depth=2)
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"0", "1"}


class LaterConfig(EncoderConfig, frozen=True, kw_only=True):
    """What a later version may look like."""

    rotary_base: float | None = None


def test_a_field_that_is_added_later_changes_no_digest() -> None:
    config = tiny_config()
    later = LaterConfig(**msgspec.structs.asdict(config))
    assert spec_digest(later) == spec_digest(config)
    assert spec_digest(msgspec.structs.replace(later, rotary_base=10000.0)) != spec_digest(config)


def test_what_was_stored_before_a_field_was_added_is_read_as_before() -> None:
    stored = msgspec.json.encode(tiny_config())
    later = msgspec.json.decode(stored, type=LaterConfig)
    assert later.rotary_base is None
    assert msgspec.json.encode(later) == stored
