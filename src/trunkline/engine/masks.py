"""What is added to attention scores: nothing between tokens of one row, minus infinity elsewhere, and MPNet's bias."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from trunkline.engine.layout import Layout
from trunkline.model.relative import relative_buckets
from trunkline.model.tensors import LEAST_BFLOAT16

MASKED = LEAST_BFLOAT16


class Masks:
    """Makes the attention bias of batches, in the element type of a backend."""

    def __init__(self, relative: np.ndarray | None, encode: Callable[[np.ndarray], np.ndarray]) -> None:
        """Take what layers share.

        Args:
            relative: (buckets, heads) float32, or None where the architecture has no relative bias.
            encode: From float32 to the backend's element type.
        """
        self._encode = encode
        self._ends = encode(np.array([MASKED, 0.0], dtype=np.float32))
        self._relative = relative
        self._table = lru_cache(maxsize=16)(self._make_table)

    def lines(self, layout: Layout) -> np.ndarray:
        """Of every token to every token of its line: (lines, 1 or heads, line_tokens, line_tokens)."""
        owners = layout.owners
        same = (owners[:, :, None] == owners[:, None, :])[:, None]
        hidden, seen = self._ends
        return np.where(same, seen if self._relative is None else self._table(layout.line_tokens)[None], hidden)

    def first(self, lengths: np.ndarray, n_tokens: int) -> np.ndarray:
        """Of each row's first token to the row's tokens: (rows, 1 or heads, n_tokens).

        Args:
            lengths: (rows,) tokens of each row.
            n_tokens: Tokens that the rows are padded to.
        """
        real = (np.arange(n_tokens) < lengths[:, None])[:, None]
        hidden, seen = self._ends
        return np.where(real, seen if self._relative is None else self._table(n_tokens)[None, :, 0], hidden)

    def _make_table(self, n_tokens: int) -> np.ndarray:
        """(heads, tokens, tokens): the relative bias depends on distances alone, so it is the same in every line."""
        if self._relative is None:
            return self._ends[1:]
        values = self._relative[relative_buckets(n_tokens, len(self._relative))]
        return self._encode(np.ascontiguousarray(values.transpose(2, 0, 1)))
