"""The folded last layer: the first token's attention without keys or values (design.md, section 5).

A branch that is read at its first token needs only that token from its last layer. Its scores ``q·(W_K x + b_K)`` are
``(W_Kᵀ q)·x`` plus a number that is the same for all tokens, which a softmax does not see; and a weighted sum of values
``W_V x + b_V`` is ``W_V`` of the weighted sum of ``x``, plus ``b_V`` times the sum of the weights. So the products with
every token of the row, ``2·S·H²`` multiplications, become ``2·H²`` and two cheap passes over the layer's input.
"""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trunkline.model.shapes import AttentionBiasValues, HiddenStates, QueryStates


@runtime_checkable
class Projections(Protocol):
    """What folding needs to know of an attention."""

    n_heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear


def mix_first(
    attention: Projections, hidden: HiddenStates, bias: AttentionBiasValues, *, dropout_share: float
) -> QueryStates:
    """What the first token's heads read, equal to the whole attention's first token in value and gradient.

    ``b_K`` takes no part and gets no gradient; in the whole layer its gradient is zero.

    Args:
        attention: Its projections; the output projection is left to the caller.
        hidden: The layer's input.
        bias: From `AttentionBias`.
        dropout_share: Of the attention weights; with it they no longer sum to 1, and ``b_V`` is added as often as
            they sum to.

    Returns:
        (rows, 1, width) float: the heads side by side.
    """
    n_heads, width = attention.n_heads, hidden.shape[2]
    head_width = width // n_heads
    query = attention.query(hidden[:, 0]).view(-1, n_heads, head_width)
    asked = torch.einsum("rhd,hdw->rhw", query, attention.key.weight.view(n_heads, head_width, width))
    scores = (asked / math.sqrt(head_width)) @ hidden.transpose(1, 2) + bias[:, :, 0]
    shares = F.dropout(scores.softmax(dim=-1), dropout_share, training=dropout_share > 0)
    read = shares.to(hidden.dtype) @ hidden
    mixed: Tensor = torch.einsum("rhw,hdw->rhd", read, attention.value.weight.view(n_heads, head_width, width))
    mixed = mixed + attention.value.bias.view(n_heads, head_width) * shares.sum(dim=-1, keepdim=True)
    return mixed.flatten(1)[:, None]
