"""Heads: from a branch's last hidden states to logits, in two steps: what a head reads, and what it makes of it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.core.specs import Kind, Pooling
from trunkline.model.shapes import HiddenStates, Mask, QueryStates, RowLogits, RowStates, TokenLogits

HEAD_STD = 0.02
MIN_SHARE = 1e-3
"""No label begins rarer than this, or as good as always."""


class ClsHead(nn.Module):
    """Reads the first token: pooler with tanh, dropout, output (Devlin et al. 2019)."""

    def __init__(self, width: int, n_outputs: int, dropout: float) -> None:
        """Make pooler and output; values must be drawn or loaded."""
        super().__init__()
        self.pooler = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, n_outputs)

    def read(self, hidden: QueryStates, mask: Mask) -> RowStates:
        """The first token's state, before the pooler; ``hidden`` may hold that token alone.

        Poolers are drawn anew for every head, so what two of them write has no common axes; states before them are
        still near the backbone's, and those of several models can be compared and averaged.
        """
        del mask
        return hidden[:, 0]

    def forward(self, features: RowStates) -> RowLogits:
        """Logits of each row from what was read."""
        logits: Tensor = self.output(self.dropout(torch.tanh(self.pooler(features))))
        return logits


class MeanHead(nn.Module):
    """Reads the mean over a row's real tokens: dropout, output."""

    def __init__(self, width: int, n_outputs: int, dropout: float) -> None:
        """Make the output; values must be drawn or loaded."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, n_outputs)

    def read(self, hidden: HiddenStates, mask: Mask) -> RowStates:
        """The mean state of each row."""
        weights = mask.to(hidden.dtype)
        # A product sums without a masked copy; the count is at least 1, so an empty row gives zeros and no NaN.
        total = (weights[:, None, :] @ hidden)[:, 0]
        mean: Tensor = total / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        return mean

    def forward(self, features: RowStates) -> RowLogits:
        """Logits of each row from what was read."""
        logits: Tensor = self.output(self.dropout(features))
        return logits


class TokenHead(nn.Module):
    """Reads every token: dropout, output."""

    def __init__(self, width: int, n_outputs: int, dropout: float) -> None:
        """Make the output; values must be drawn or loaded."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, n_outputs)

    def read(self, hidden: HiddenStates, mask: Mask) -> HiddenStates:
        """The state of every token."""
        del mask
        return hidden

    def forward(self, features: HiddenStates) -> TokenLogits:
        """Logits of each token from what was read; those at padding are of no use."""
        logits: Tensor = self.output(self.dropout(features))
        return logits


Head: TypeAlias = ClsHead | MeanHead | TokenHead


def build_head(kind: Kind, pooling: Pooling, *, width: int, n_outputs: int, dropout: float) -> Head:
    """The head of a task.

    Args:
        kind: Tagging reads every token; the others read as ``pooling`` says.
        pooling: ``cls`` or ``mean``.
        width: Size of a hidden state.
        n_outputs: Labels, or 1 for a score.
        dropout: Share dropped before the output in training.

    Returns:
        A head whose parameters are still to be drawn (`init_head`) or loaded.
    """
    if kind == "tagging":
        return TokenHead(width, n_outputs, dropout)
    head = ClsHead if pooling == "cls" else MeanHead
    return head(width, n_outputs, dropout)


def init_head(head: Head, *, seed: int) -> None:
    """Draw a new head: weights from N(0, 0.02), biases zero; nothing but ``seed`` decides the values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, HEAD_STD, generator=generator)


def start_at_frequencies(head: Head, targets: Sequence[np.ndarray]) -> None:
    """Let a new multi-label head begin with each label's share of the rows (Lin et al. 2017, section 3.3).

    Where all labels begin at one half and most are rare, the first steps push every logit down together, and the
    layers under the head may never recover: GoEmotions ended at 0 points at rates that do well from here.

    Args:
        head: A new one; its output bias is set.
        targets: One array a row: (labels,) float32 of 0 and 1.
    """
    shares = np.mean(targets, axis=0).clip(MIN_SHARE, 1 - MIN_SHARE)
    with torch.no_grad():
        head.output.bias.copy_(torch.from_numpy(np.log(shares / (1 - shares))))
