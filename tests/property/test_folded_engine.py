"""The folded top of a branch equals its whole layer read at the first token, on both backends, in fp32."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import ARCHITECTURES, tiny_backbone
from tests.tiny_engines import BACKENDS, backend_of, stored_branch
from trunkline.bundle.store import StoredBranch
from trunkline.engine.backends.base import Backend, BranchPrograms
from trunkline.engine.masks import Masks
from trunkline.model.backbone import Backbone
from trunkline.model.branch import load_branch
from trunkline.model.config import Architecture

SIZES = ((16, 2, 32), (24, 3, 40), (16, 1, 16), (32, 8, 64))
"""Width, heads, width of the feed-forward part."""


@cache
def made(
    architecture: Architecture, size: tuple[int, int, int], name: str
) -> tuple[Backbone, StoredBranch, Backend, BranchPrograms]:
    width, n_heads, ffn_width = size
    backbone = tiny_backbone(architecture, width=width, n_heads=n_heads, ffn_width=ffn_width)
    branch = stored_branch("intent", backbone, exit_layer=1, own_layers=1)
    backend = backend_of(name)
    return backbone, branch, backend, backend.branch(branch, backbone.config)


def whole_first(backbone: Backbone, branch: StoredBranch, states: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """All tokens through the whole layer, and then the head on the first."""
    module = load_branch(branch.spec, backbone.config, branch.tensors)
    (layer,) = module.layers.values()
    with torch.inference_mode():
        hidden = layer(torch.from_numpy(states), torch.from_numpy(bias))
        assert hidden.shape[1] == states.shape[1]
        found: np.ndarray = module.head(hidden[:, 0]).numpy()
        return found


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=8)
@given(
    size=st.sampled_from(SIZES),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    padding=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_the_folded_top_is_the_whole_layers_first_token(
    architecture: Architecture, name: str, size: tuple[int, int, int], lengths: list[int], padding: int, seed: int
) -> None:
    backbone, branch, backend, programs = made(architecture, size, name)
    assert (programs.reads, programs.before) == ("first", None)
    n_tokens = max(lengths) + padding
    states = np.random.default_rng(seed).normal(size=(len(lengths), n_tokens, size[0])).astype(np.float32)
    masks = Masks(backbone.tensors.get("shared.relative_bias.weight"), backend.encode)
    first = masks.first(np.array(lengths), n_tokens)
    given_states = torch.from_numpy(states) if name == "torch" else states
    # Only the first token's line of the bias matters to the first token.
    whole = np.broadcast_to(first[:, :, None], (*first.shape[:2], n_tokens, n_tokens)).copy()
    expected = whole_first(backbone, branch, states, whole)
    found = programs.top(given_states, first)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * max(1.0, float(np.abs(expected).max())))
