"""Where tokens lie in a batch: rows are packed side by side into lines, so that hardly any padding is computed.

Attention sees a row's own tokens only; every other operation of an encoder looks at one token at a time and does not
ask which row it belongs to. So several short rows share one line, and a batch has as few lines as will hold them
(decision 0014). No torch and no backend here: the arrays are numpy's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trunkline.core.types import Encoded

LINE_TOKENS = 64
"""Lines are at least so long where several rows share them. Attention within a line costs `line_tokens / (6 · width)`
of the dense products: about 1% here."""
_STEP = 16


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of given lengths in ``n_lines`` lines of ``line_tokens`` tokens.

    Attributes:
        lengths: (rows,) int64, tokens of each row.
        n_lines: Lines.
        line_tokens: Tokens of a line, padding included.
        starts: (rows,) int64: where each row's first token lies, counted over all lines.
    """

    lengths: np.ndarray
    n_lines: int
    line_tokens: int
    starts: np.ndarray

    @classmethod
    def pack(cls, lengths: Sequence[int] | np.ndarray) -> "Layout":
        """Find a place for every row: the longest first, each in the first line that has room for it.

        Of a few lengths of a line, the one that leaves least padding is taken.

        Args:
            lengths: Tokens of each row, at least one row of at least one token.
        """
        sizes = np.asarray(lengths, dtype=np.int64)
        tried = (cls._in_lines(sizes, line_tokens) for line_tokens in _line_lengths(sizes))
        return min(tried, key=lambda layout: (layout.n_tokens, layout.line_tokens))

    @classmethod
    def _in_lines(cls, sizes: np.ndarray, line_tokens: int) -> "Layout":
        starts = np.empty(len(sizes), dtype=np.int64)
        filled: list[int] = []
        for row in np.argsort(-sizes, kind="stable").tolist():
            size = int(sizes[row])
            line = next((number for number, used in enumerate(filled) if used + size <= line_tokens), len(filled))
            if line == len(filled):
                filled.append(0)
            starts[row] = line * line_tokens + filled[line]
            filled[line] += size
        return cls(lengths=sizes, n_lines=len(filled), line_tokens=line_tokens, starts=starts)

    @property
    def n_rows(self) -> int:
        """Rows."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Places for tokens in all lines, padding included."""
        return self.n_lines * self.line_tokens

    @cached_property
    def places(self) -> np.ndarray:
        """(real tokens,) int64: where the tokens of all rows lie, row by row."""
        within = np.arange(int(self.lengths.sum())) - np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        return np.asarray(np.repeat(self.starts, self.lengths) + within)

    @cached_property
    def owners(self) -> np.ndarray:
        """(lines, line_tokens) int32: the row each token belongs to, counted from 1; 0 is padding."""
        owners = np.zeros(self.n_tokens, dtype=np.int32)
        owners[self.places] = np.repeat(np.arange(1, self.n_rows + 1, dtype=np.int32), self.lengths)
        return owners.reshape(self.n_lines, self.line_tokens)

    @cached_property
    def positions(self) -> np.ndarray:
        """(lines, line_tokens) int32: each token's position in its own row; 0 at padding."""
        positions = np.zeros(self.n_tokens, dtype=np.int32)
        positions[self.places] = self.places - np.repeat(self.starts, self.lengths)
        return positions.reshape(self.n_lines, self.line_tokens)

    def spread(self, rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
        """One value for each token, at its place.

        Args:
            rows: For each row (tokens,) integers.
            fill: What stands at padding.

        Returns:
            (lines, line_tokens) int32.
        """
        values = np.full(self.n_tokens, fill, dtype=np.int32)
        values[self.places] = np.concatenate(rows)
        return values.reshape(self.n_lines, self.line_tokens)

    def subset(self, rows: np.ndarray) -> tuple["Layout", np.ndarray]:
        """Some of the rows, packed anew.

        Args:
            rows: (chosen,) int64, ascending.

        Returns:
            Their layout, and for each of its places where that token lies in this one: (lines, line_tokens) int64;
            padding repeats place 0.
        """
        chosen = Layout.pack(self.lengths[rows])
        index = np.zeros(chosen.n_tokens, dtype=np.int64)
        mine = chosen.places - np.repeat(chosen.starts, chosen.lengths) + np.repeat(self.starts[rows], chosen.lengths)
        index[chosen.places] = mine
        return chosen, index.reshape(chosen.n_lines, chosen.line_tokens)

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some of the rows one by one, padded: how a folded layer reads them.

        Both sizes are rounded up, so that few different shapes occur; rows that are too many repeat the first.

        Args:
            rows: (chosen,) int64, ascending.

        Returns:
            Where each token lies, (rows rounded up, tokens rounded up) int64, padding repeats the row's first; and the
            rows' lengths, (rows rounded up,) int64.
        """
        padded_rows = np.concatenate((rows, np.repeat(rows[:1], round_rows(len(rows)) - len(rows))))
        lengths = self.lengths[padded_rows]
        tokens = np.arange(round_tokens(int(lengths.max())))
        return self.starts[padded_rows, None] + np.where(tokens < lengths[:, None], tokens, 0), lengths

    def pooling(self) -> np.ndarray:
        """Which tokens belong to each row, for means: (rows rounded up, tokens) bool."""
        rows = np.arange(1, round_rows(self.n_rows) + 1, dtype=np.int32)
        return np.asarray(rows[:, None] == self.owners.reshape(1, -1))


def round_rows(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …: less than half more."""
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power > 2 and count <= power * 3 // 4 else power


def round_tokens(count: int) -> int:
    """Up to 64 the next multiple of 16, then the next of 96, 128, 192, 256, …."""
    return -(-count // _STEP) * _STEP if count <= LINE_TOKENS else round_rows(count)


def spread_rows(layout: Layout, rows: Sequence[Encoded], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, type ids and positions of a batch, each (lines, line_tokens) int32."""
    return (
        layout.spread([row.token_ids for row in rows], pad_id),
        layout.spread([row.type_ids for row in rows], 0),
        layout.positions,
    )


def _line_lengths(lengths: np.ndarray) -> Sequence[int]:
    total, longest = int(lengths.sum()), int(lengths.max())
    # All in one line where that is short; else lines of the usual length, or of the longest row's, or somewhat longer.
    if total <= LINE_TOKENS:
        return (round_tokens(total),)
    least = max(round_tokens(longest), LINE_TOKENS)
    return range(least, least + LINE_TOKENS, _STEP) if least < 2 * LINE_TOKENS else (least,)
