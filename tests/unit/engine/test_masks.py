"""What is added to attention scores: the same as training adds, and nothing of another row is seen."""

import numpy as np
import pytest
import torch

from tests.tiny_bundles import backbone_of
from trunkline.engine.layout import Layout
from trunkline.engine.masks import MASKED, Masks
from trunkline.model.tensors import from_bits, to_bits
from trunkline.model.trunk import Trunk

LENGTHS = (9, 30, 1, 17, 40, 5)


def plain(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)


def masks_of(architecture: str) -> Masks:
    return Masks(backbone_of(architecture).tensors.get("shared.relative_bias.weight"), plain)


def bias_in_training(architecture: str, length: int, n_tokens: int) -> np.ndarray:
    """Of one padded row, (heads, tokens, tokens) or what broadcasts to it."""
    backbone = backbone_of(architecture)
    bias = Trunk.build(backbone.config, backbone.tensors, depth=0).bias
    values = bias((torch.arange(n_tokens) < length)[None])[0].detach().numpy()
    return np.broadcast_to(values, (values.shape[0], n_tokens, n_tokens))


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_within_a_row_the_bias_of_lines_is_that_of_training(architecture: str) -> None:
    layout = Layout.pack(LENGTHS)
    bias = masks_of(architecture).lines(layout)
    for start, length in zip(layout.starts.tolist(), LENGTHS, strict=True):
        line, first = divmod(start, layout.line_tokens)
        own = bias[line, :, first : first + length, first : first + length]
        np.testing.assert_array_equal(own, bias_in_training(architecture, length, length))


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_no_token_sees_a_token_of_another_row_or_padding(architecture: str) -> None:
    layout = Layout.pack(LENGTHS)
    bias = masks_of(architecture).lines(layout)
    owners = layout.owners
    for line in range(layout.n_lines):
        other = owners[line][:, None] != owners[line][None, :]
        assert other.any()
        assert (bias[line][:, other] == np.float32(MASKED)).all()
        assert (bias[line][:, ~other] > -1e3).all()


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_the_first_tokens_bias_is_the_first_line_of_training_s(architecture: str) -> None:
    bias = masks_of(architecture).first(np.array(LENGTHS), 48)
    assert bias.shape == (6, 2 if architecture == "mpnet" else 1, 48)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(bias[row], bias_in_training(architecture, length, 48)[:, 0])


def test_what_hides_is_the_same_number_as_in_training() -> None:
    assert np.float32(MASKED) == torch.finfo(torch.bfloat16).min
    assert from_bits(to_bits(np.array([MASKED], dtype=np.float32)))[0] == np.float32(MASKED)


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_in_bfloat16_the_bias_is_the_rounded_one(architecture: str) -> None:
    relative = backbone_of(architecture).tensors.get("shared.relative_bias.weight")
    layout = Layout.pack(LENGTHS)
    narrow, wide = Masks(relative, to_bits), Masks(relative, plain)
    assert narrow.lines(layout).dtype == np.uint16
    np.testing.assert_array_equal(narrow.lines(layout), to_bits(wide.lines(layout)))
    lengths = np.array(LENGTHS)
    np.testing.assert_array_equal(narrow.first(lengths, 40), to_bits(wide.first(lengths, 40)))
