"""Bricks: loading is strict, nothing is drawn, padding hides, dropout acts in training alone."""

import numpy as np
import pytest
import torch

from tests.tiny import tiny_backbone, tiny_config
from trunkline.core.errors import CheckpointError, SpecError
from trunkline.model.config import layer_tensor_shapes
from trunkline.model.encoder import (
    AttentionBias,
    Embeddings,
    EncoderLayer,
    build_empty,
    load_parameters,
    make_layer,
    parameter_arrays,
)


def layer_of(architecture: str = "bert", **changes: float) -> EncoderLayer:
    config = tiny_config(architecture, **changes)  # type: ignore[arg-type]
    layer = build_empty(lambda: EncoderLayer(config))
    load_parameters(layer, tiny_backbone(architecture).tensors, prefix="layers.0.", subject="layer")  # type: ignore[arg-type]
    return layer


def hidden_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(7)[None, :] < torch.tensor([7, 4, 1])[:, None]


def test_parameters_bear_the_canonical_names() -> None:
    config = tiny_config()
    parameters = build_empty(lambda: EncoderLayer(config)).named_parameters()
    assert {name: tuple(parameter.shape) for name, parameter in parameters} == layer_tensor_shapes(config)


def test_an_empty_module_is_nan_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    layer = build_empty(lambda: EncoderLayer(tiny_config()))
    assert all(parameter.isnan().all() for parameter in layer.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_loaded_is_returned() -> None:
    found = parameter_arrays(layer_of())
    for name, array in found.items():
        np.testing.assert_array_equal(array, tiny_backbone().tensors[f"layers.0.{name}"])


def test_loading_copies_so_that_training_leaves_the_source_alone() -> None:
    backbone = tiny_backbone()
    layer = layer_of()
    with torch.no_grad():
        layer.ffn.up.bias.add_(1.0)
    np.testing.assert_array_equal(
        backbone.tensors["layers.0.ffn.up.bias"], tiny_backbone().tensors["layers.0.ffn.up.bias"]
    )


def test_a_missing_tensor_is_refused_and_nothing_is_loaded() -> None:
    layer = build_empty(lambda: EncoderLayer(tiny_config()))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in layer_tensor_shapes(tiny_config()).items()}
    del tensors["ffn.down.bias"]
    with pytest.raises(CheckpointError, match=r"student: 1 of 16 tensors are missing \(ffn\.down\.bias\)"):
        load_parameters(layer, tensors, subject="student")
    assert all(parameter.isnan().all() for parameter in layer.parameters())


def test_a_wrong_shape_is_refused_when_loading() -> None:
    layer = build_empty(lambda: EncoderLayer(tiny_config()))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in layer_tensor_shapes(tiny_config()).items()}
    with pytest.raises(CheckpointError, match=r"tensor 'ffn\.up\.bias' has shape \(1,\)"):
        load_parameters(layer, tensors | {"ffn.up.bias": np.zeros(1, np.float32)}, subject="student")


def test_rows_longer_than_the_position_table_are_refused() -> None:
    embeddings = build_empty(lambda: Embeddings(tiny_config()))
    ids = torch.zeros(1, 65, dtype=torch.long)
    with pytest.raises(SpecError, match=r"rows of 65 tokens are longer than 1\.\.64"):
        embeddings(ids, ids)


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_what_stands_at_padding_changes_no_real_token(architecture: str, mask: torch.Tensor) -> None:
    layer = layer_of(architecture).eval()
    config = tiny_config(architecture)  # type: ignore[arg-type]
    bias_of = build_empty(lambda: AttentionBias(config))
    load_parameters(bias_of, tiny_backbone(architecture).tensors, prefix="shared.", subject="bias")  # type: ignore[arg-type]
    hidden = hidden_of()
    other = torch.where(mask[..., None], hidden, 100.0)
    torch.testing.assert_close(layer(hidden, bias_of(mask))[mask], layer(other, bias_of(mask))[mask], rtol=0, atol=1e-6)


def test_a_row_without_any_token_gives_no_nan() -> None:
    layer = layer_of().eval()
    bias = AttentionBias(tiny_config())(torch.zeros(3, 7, dtype=torch.bool))
    assert layer(hidden_of(), bias).isfinite().all()


def test_the_bias_stays_finite_in_bfloat16(mask: torch.Tensor) -> None:
    assert AttentionBias(tiny_config())(mask).to(torch.bfloat16).isfinite().all()


@pytest.mark.parametrize(
    "dropouts", [{"hidden_dropout": 0.5, "attention_dropout": 0.0}, {"hidden_dropout": 0.0, "attention_dropout": 0.5}]
)
def test_each_dropout_acts_in_training_and_not_in_evaluation(dropouts: dict[str, float], mask: torch.Tensor) -> None:
    layer = layer_of(**dropouts)
    bias = AttentionBias(tiny_config())(mask)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = [layer.train()(hidden_of(), bias) for _ in range(2)]
        evaluated = [layer.eval()(hidden_of(), bias) for _ in range(2)]
    assert not torch.equal(*trained)
    assert torch.equal(*evaluated)


def test_attention_dropout_keeps_the_expected_value(mask: torch.Tensor) -> None:
    layer = layer_of(hidden_dropout=0.0, attention_dropout=0.3)
    bias = AttentionBias(tiny_config())(mask)
    hidden = hidden_of()
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        attention = layer.attention.train()
        mean = torch.stack([attention(hidden, bias) for _ in range(3000)]).mean(dim=0)
        expected = attention.eval()(hidden, bias)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)


def test_projecting_and_mixing_are_the_two_steps_of_attention(mask: torch.Tensor) -> None:
    attention = layer_of().eval().attention
    bias = AttentionBias(tiny_config())(mask)
    query, key, value = attention.project(hidden_of())
    assert query.shape == key.shape == value.shape == (3, 2, 7, 8)
    assert torch.equal(attention.mix(query, key, value, bias=bias), attention(hidden_of(), bias))


def test_a_rotation_between_the_two_steps_changes_the_scores_and_not_the_values(mask: torch.Tensor) -> None:
    # Queries and keys turned alike give the same scores: what a rotary layer relies on.
    attention = layer_of().eval().attention
    bias = AttentionBias(tiny_config())(mask)
    query, key, value = attention.project(hidden_of())
    turned, plain = (query.roll(1, -1), key.roll(1, -1)), attention.mix(query, key, value, bias=bias)
    torch.testing.assert_close(attention.mix(*turned, value, bias=bias), plain, rtol=0, atol=1e-5)
    assert not torch.allclose(attention.mix(turned[0], key, value, bias=bias), plain, atol=1e-3)


def test_every_place_of_an_encoder_has_the_same_layer() -> None:
    config = tiny_config()
    assert {type(build_empty(lambda index=index: make_layer(config, index))) for index in range(4)} == {EncoderLayer}
