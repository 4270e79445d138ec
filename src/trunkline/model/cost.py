"""What a forward pass costs in floating-point operations, by formula. No torch here.

A multiplication and the addition behind it are two operations. Products of matrices are counted; norms, softmax,
activations, embeddings and heads are not: together they are below one hundredth of a layer.
"""

import numpy as np
from numpy.typing import ArrayLike

from trunkline.core.specs import Kind, Pooling, Spec
from trunkline.model.config import EncoderConfig


class EncoderSizes(Spec, frozen=True, kw_only=True):
    """What the cost of a layer depends on.

    Attributes:
        n_layers: Of the whole backbone.
        width: Size of a hidden state.
        n_heads: Attention heads of each layer.
        ffn_width: Size between the two dense layers of the feed-forward part.
    """

    n_layers: int
    width: int
    n_heads: int
    ffn_width: int


def sizes_of(config: EncoderConfig) -> EncoderSizes:
    """Of a backbone."""
    return EncoderSizes(
        n_layers=config.n_layers, width=config.width, n_heads=config.n_heads, ffn_width=config.ffn_width
    )


def layer_flops(sizes: EncoderSizes, tokens: ArrayLike) -> float:
    """Operations of one whole layer, forward: ``S·(8H² + 4HF) + 4S²H``, summed over rows.

    Args:
        sizes: Width H, feed-forward width F.
        tokens: S of each row.
    """
    lengths = np.asarray(tokens, dtype=np.float64)
    width, ffn_width = sizes.width, sizes.ffn_width
    return float((lengths * (8 * width**2 + 4 * width * ffn_width) + 4 * lengths**2 * width).sum())


def folded_layer_flops(sizes: EncoderSizes, tokens: ArrayLike) -> float:
    """Operations of a folded layer, forward: ``8H² + 4HF + 4·S·heads·H``, summed over rows (design.md, section 5).

    Args:
        sizes: Width H, feed-forward width F, heads.
        tokens: S of each row.
    """
    lengths = np.asarray(tokens, dtype=np.float64)
    width = sizes.width
    return float((8 * width**2 + 4 * width * sizes.ffn_width + 4 * lengths * sizes.n_heads * width).sum())


def branch_flops(sizes: EncoderSizes, tokens: ArrayLike, *, own_layers: int, folded: bool) -> float:
    """Operations of a branch's own layers, forward, summed over rows.

    Args:
        sizes: Of the backbone.
        tokens: Of each row.
        own_layers: Layers of the branch.
        folded: Whether the last one makes the first token alone (`folds`).
    """
    if own_layers == 0:
        return 0.0
    last = folded_layer_flops(sizes, tokens) if folded else layer_flops(sizes, tokens)
    return (own_layers - 1) * layer_flops(sizes, tokens) + last


def folds(kind: Kind, pooling: Pooling) -> bool:
    """Whether a branch reads its last layer at the first token alone."""
    return kind != "tagging" and pooling == "cls"
