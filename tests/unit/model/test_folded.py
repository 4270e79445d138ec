"""The folded last layer equals the whole one at the first token: in value, in gradient, and with dropout."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import ARCHITECTURES, tiny_backbone
from trunkline.model import folded
from trunkline.model.config import Architecture
from trunkline.model.encoder import AttentionBias, EncoderLayer, build_empty, load_parameters

WIDTH, N_HEADS = 16, 2


def layer_of(architecture: Architecture, **changes: float) -> tuple[EncoderLayer, AttentionBias]:
    backbone = tiny_backbone(architecture, **changes)
    layer = build_empty(lambda: EncoderLayer(backbone.config))
    load_parameters(layer, backbone.tensors, prefix="layers.1.", subject="layer")
    with torch.no_grad():
        # Biases of pico models are zero, and would hide what is done with them.
        for number, parameter in enumerate(layer.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    shared = build_empty(lambda: AttentionBias(backbone.config))
    load_parameters(shared, backbone.tensors, prefix="shared.", subject="bias")
    return layer, shared


def inputs_of(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    longest = max(lengths)
    hidden = torch.randn(len(lengths), longest, WIDTH, generator=torch.Generator().manual_seed(seed))
    return hidden, torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 50))
def test_values_are_those_of_the_whole_layer(architecture: Architecture, lengths: list[int], seed: int) -> None:
    layer, shared = layer_of(architecture)
    layer.eval()
    hidden, mask = inputs_of(lengths, seed)
    whole, first = layer(hidden, shared(mask)), layer(hidden, shared(mask), first_only=True)
    assert first.shape == (len(lengths), 1, WIDTH)
    torch.testing.assert_close(first, whole[:, :1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_whole_layer(architecture: Architecture) -> None:
    found: dict[bool, dict[str, Tensor]] = {}
    for first_only in (False, True):
        layer, shared = layer_of(architecture, hidden_dropout=0.0, attention_dropout=0.0)
        hidden, mask = inputs_of([9, 4, 1], seed=3)
        hidden.requires_grad_()
        layer.train()(hidden, shared(mask), first_only=first_only)[:, 0].square().sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters()} | {"input": hidden.grad}
        found[first_only] = {name: grad for name, grad in gradients.items() if grad is not None}
    # Whose gradient is zero but for rounding: it adds the same to all scores.
    assert found[False].keys() - found[True].keys() == {"attention.key.bias"}
    assert found[False]["attention.key.bias"].abs().max() < 1e-5
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-4, atol=1e-5, msg=name)


def whole_with_dropped(layer: EncoderLayer, hidden: Tensor, bias: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
    """The first token of the whole layer, written out, with dropout of the attention weights put in."""
    attention = layer.attention
    query, key, value = attention.project(hidden)
    scores = query @ key.transpose(2, 3) / (WIDTH / N_HEADS) ** 0.5 + bias
    shares = drop(scores.softmax(dim=-1)[:, :, 0])
    mixed = (shares[:, :, None] @ value).transpose(1, 2).flatten(2)
    middle = attention.norm(hidden[:, :1] + attention.output(mixed))
    output: Tensor = layer.ffn.norm(middle + layer.ffn(middle))
    return output


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_with_the_same_weights_dropped_values_and_gradients_are_the_same(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, mask = inputs_of([9, 4, 1], seed=5)
    kept = torch.rand(3, N_HEADS, 9, generator=torch.Generator().manual_seed(0)) > 0.4

    def drop(shares: Tensor, *_share: float, **_options: Any) -> Tensor:
        # The layer's own dropout, which has share 0 here, comes by as well.
        return shares * kept / 0.6 if shares.shape == kept.shape else shares

    found = []
    for first_only in (False, True):
        layer, shared = layer_of(architecture, hidden_dropout=0.0, attention_dropout=0.4)
        bias = shared(mask)
        if first_only:
            monkeypatch.setattr(folded.F, "dropout", drop)
            output = layer.train()(hidden, bias, first_only=True)
            monkeypatch.undo()
        else:
            output = whole_with_dropped(layer, hidden, bias, drop)
        output.square().sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters() if name != "attention.key.bias"}
        found.append((output.detach(), gradients))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_dropout_acts_in_training_alone_and_keeps_the_expected_value() -> None:
    layer, shared = layer_of("bert", hidden_dropout=0.0, attention_dropout=0.3)
    hidden, mask = inputs_of([7, 3], seed=1)
    attention, bias = layer.attention, shared(mask)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        mean = torch.stack([attention.train().first(hidden, bias) for _ in range(3000)]).mean(dim=0)
        expected = attention.eval().first(hidden, bias)
        assert torch.equal(expected, attention.first(hidden, bias))
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.15)


def test_no_token_but_the_first_is_multiplied_by_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shared = layer_of("bert")
    hidden, mask = inputs_of([12, 12], seed=1)
    shapes: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, *rest: (shapes.append(tuple(x.shape)), linear(x, *rest))[1]
    )
    layer.eval()(hidden, shared(mask), first_only=True)
    assert {int(np.prod(shape[:-1])) for shape in shapes} == {2}
