"""Sub-batches of a sorted list of lengths with the least padded cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PROBES = ((1, 8), (1, 24), (4, 16), (8, 16), (8, 32), (16, 32))
"""Batch shapes (rows, tokens) on which a call's cost is measured."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call takes, as a line over its tokens, padding included.

    Attributes:
        fixed_s: Seconds that a call takes whatever it holds: launching, and reading weights that do not fit in a cache.
        token_s: Seconds for each token, padding included.
    """

    fixed_s: float
    token_s: float

    @property
    def fixed_tokens(self) -> float:
        """The fixed part, in tokens."""
        return self.fixed_s / self.token_s

    def seconds(self, n_rows: int, n_tokens: int) -> float:
        """A call of `n_rows` rows of `n_tokens` tokens."""
        return self.fixed_s + self.token_s * n_rows * n_tokens


def sub_batches(lengths: Sequence[int], fixed_tokens: float) -> list[slice]:
    """Cut a sorted list into batches: least sum of padded tokens and `fixed_tokens` for each batch.

    Args:
        lengths: Tokens of each text, ascending.
        fixed_tokens: What a call costs besides its tokens, in tokens.

    Returns:
        Consecutive slices that cover the list.

    Raises:
        ValueError: If the lengths are not ascending.
    """
    longest = np.asarray(lengths, dtype=np.float64)
    if np.any(np.diff(longest) < 0):
        raise ValueError(f"sub_batches: lengths are not ascending: {list(lengths)}; sort the texts first")
    n = len(longest)
    least, starts = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for end in range(1, n + 1):
        # a last batch start..end is padded to the longest of it, which is the last
        costs = least[:end] + fixed_tokens + longest[end - 1] * (end - np.arange(end))
        starts[end] = int(np.argmin(costs))
        least[end] = costs[starts[end]]
    cuts: list[slice] = []
    end = n
    while end > 0:
        cuts.append(slice(int(starts[end]), end))
        end = int(starts[end])
    return cuts[::-1]


def measure_call_cost(call: Callable[[np.ndarray, np.ndarray], object], *, repeats: int = 3) -> CallCost:
    """Fit a line through the fastest of `repeats` calls at each of `PROBES`, by relative error.

    Args:
        call: Takes token ids and mask, (B, S) int64.
        repeats: Timed calls for each shape, after one that warms it.
    """
    tokens, seconds = [], []
    for n_rows, n_tokens in PROBES:
        ids = np.full((n_rows, n_tokens), 2000, dtype=np.int64)
        mask = np.ones_like(ids)
        call(ids, mask)
        tokens.append(n_rows * n_tokens)
        seconds.append(min(_seconds(lambda ids=ids, mask=mask: call(ids, mask)) for _ in range(repeats)))
    weights = 1 / np.asarray(seconds)
    lines = np.stack([np.ones(len(tokens)), np.asarray(tokens)], axis=1) * weights[:, None]
    fixed_s, token_s = np.linalg.lstsq(lines, np.ones(len(tokens)), rcond=None)[0]
    # a busy machine can tilt the line: neither part is ever below a hundredth of what was seen
    return CallCost(max(float(fixed_s), min(seconds) / 100), max(float(token_s), max(seconds) / max(tokens) / 100))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
