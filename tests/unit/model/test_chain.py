"""The chain names a trunk at each depth: it changes with everything below an exit, and with nothing above it."""

from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny import tiny_backbone
from trunkline.core.errors import CheckpointError
from trunkline.model.chain import trunk_chain
from trunkline.model.config import EncoderConfig

BACKBONE = tiny_backbone("mpnet")
CONFIG, TENSORS, TOKENIZER = BACKBONE.config, dict(BACKBONE.tensors), BACKBONE.tokenizer.json


def changed(name: str) -> dict[str, np.ndarray]:
    array = TENSORS[name].copy()
    array.flat[0] += 1.0
    return TENSORS | {name: array}


def test_there_is_one_value_for_each_depth_and_all_differ() -> None:
    assert len(set(BACKBONE.chain)) == CONFIG.n_layers + 1


def test_a_shallower_trunk_has_the_beginning_of_the_same_chain() -> None:
    shallow = {name: array for name, array in TENSORS.items() if not name.startswith(("layers.2.", "layers.3."))}
    assert trunk_chain(CONFIG, shallow, TOKENIZER, depth=2) == BACKBONE.chain[:3]


def test_a_changed_layer_changes_its_value_and_those_above_only() -> None:
    chain = trunk_chain(CONFIG, changed("layers.2.ffn.up.bias"), TOKENIZER, depth=4)
    assert [old == new for old, new in zip(BACKBONE.chain, chain, strict=True)] == [True, True, True, False, False]


@pytest.mark.parametrize("name", ["embeddings.word.weight", "shared.relative_bias.weight"])
def test_a_changed_embedding_or_shared_tensor_changes_every_value(name: str) -> None:
    chain = trunk_chain(CONFIG, changed(name), TOKENIZER, depth=4)
    assert not set(chain) & set(BACKBONE.chain)


def test_another_tokenizer_changes_every_value() -> None:
    assert not set(trunk_chain(CONFIG, TENSORS, TOKENIZER + " ", depth=4)) & set(BACKBONE.chain)


@pytest.mark.parametrize("change", [{"norm_eps": 1e-5}, {"n_heads": 4, "relative_buckets": 32}, {"activation": "relu"}])
def test_a_fact_that_layers_depend_on_changes_every_value(change: dict[str, Any]) -> None:
    config = msgspec.structs.replace(CONFIG, **change)
    tensors = TENSORS | {"shared.relative_bias.weight": np.zeros((32, config.n_heads), dtype=np.float32)}
    before = trunk_chain(CONFIG, TENSORS, TOKENIZER, depth=0)
    assert trunk_chain(config, tensors, TOKENIZER, depth=0) != before


@pytest.mark.parametrize("change", [{"n_layers": 9}, {"hidden_dropout": 0.0}, {"attention_dropout": 0.5}])
def test_a_fact_that_frozen_layers_do_not_depend_on_changes_nothing(change: dict[str, Any]) -> None:
    assert trunk_chain(msgspec.structs.replace(CONFIG, **change), TENSORS, TOKENIZER, depth=4) == BACKBONE.chain


class LaterConfig(EncoderConfig, frozen=True, kw_only=True):
    """What a later version may look like."""

    rotary_base: float | None = None


def test_a_field_that_is_added_later_keeps_the_chain_of_trunks_that_do_not_use_it() -> None:
    later = LaterConfig(**msgspec.structs.asdict(CONFIG))
    assert trunk_chain(later, TENSORS, TOKENIZER, depth=4) == BACKBONE.chain


def test_the_order_of_tensors_and_their_memory_layout_change_nothing() -> None:
    turned = {name: np.asfortranarray(array) for name, array in reversed(TENSORS.items())}
    assert trunk_chain(CONFIG, turned, TOKENIZER, depth=4) == BACKBONE.chain


def test_a_missing_layer_is_refused() -> None:
    lacking = {name: array for name, array in TENSORS.items() if not name.startswith("layers.0.")}
    with pytest.raises(CheckpointError, match=r"trunk chain: .* missing \(layers\.0\.attention"):
        trunk_chain(CONFIG, lacking, TOKENIZER, depth=1)


def test_a_half_precision_layer_is_refused() -> None:
    halved = TENSORS | {"layers.0.ffn.up.bias": TENSORS["layers.0.ffn.up.bias"].astype(np.float16)}
    with pytest.raises(CheckpointError, match="has dtype float16"):
        trunk_chain(CONFIG, halved, TOKENIZER, depth=1)
