"""Runs a snapshot on the shapes it will meet, so that no caller waits while a runtime prepares for a new one."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from trunkline.core.types import Encoded
from trunkline.engine.backends.base import Backend
from trunkline.engine.layout import LINE_TOKENS, Layout, round_rows, round_tokens
from trunkline.engine.runner import Runner, Shapes
from trunkline.engine.scheduler import Limits
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk

_SHORT = 3
"""Tokens of the shortest rows: two special ones and a word."""


def warm(
    backend: Backend,
    trunk: LoadedTrunk,
    branches: Iterable[LoadedBranch],
    limits: Limits,
    *,
    met: Shapes | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> None:
    """Run branches, and the trunk under them, on batches of every usual shape, or of those that were met.

    Args:
        backend: Compiled them.
        trunk: Ready to run; used by this thread alone (see `LoadedTrunk.twin`).
        branches: Which.
        limits: Of a step.
        met: Shapes that batches had; None takes all that are usual.
        before_each: Is called before each batch, and may let others go first.
    """
    chosen = list(branches)
    if not chosen:
        return
    longest = min(max(branch.spec.max_length for branch in chosen), trunk.config.max_tokens)
    runner, folded = Runner(backend), [branch for branch in chosen if branch.programs.reads == "first"]
    for lengths in _lines(limits, longest):
        layout = Layout.pack(lengths)
        if met is None or (layout.n_lines, layout.line_tokens) in met.lines:
            before_each()
            _run(runner, trunk, chosen, [min(n_tokens, trunk.config.max_tokens) for n_tokens in lengths])
    for lengths in _rows(limits, longest) if folded else ():
        if met is None or (round_rows(len(lengths)), round_tokens(max(lengths))) in met.rows:
            before_each()
            _run(runner, trunk, folded, lengths)


def _run(runner: Runner, trunk: LoadedTrunk, branches: Sequence[LoadedBranch], lengths: Sequence[int]) -> None:
    rows = [made_up_row(n_tokens, token=trunk.tokenizer.pad_id) for n_tokens in lengths]
    for _ in runner.run(trunk, rows, {branch: np.arange(len(rows)) for branch in branches}):
        pass


def _lines(limits: Limits, longest: int) -> Iterator[list[int]]:
    """Lengths of rows that fill lines: a single line of any length, and every number of lines of the usual ones."""
    n_tokens = 0
    # Of lines longer than two usual ones only those that a row makes necessary.
    while n_tokens < max(longest, 2 * LINE_TOKENS - 16):
        # Up to 128 every multiple of 16 occurs as the length of lines (see `Layout.pack`).
        n_tokens = n_tokens + 16 if n_tokens < 2 * LINE_TOKENS else round_tokens(n_tokens + 1)
        n_lines = 1
        while n_lines == 1 or (n_tokens >= LINE_TOKENS and n_lines * n_tokens <= limits.batch_tokens + LINE_TOKENS):
            yield _parts(n_tokens) * n_lines
            n_lines += 1


def _parts(line_tokens: int) -> list[int]:
    """Rows that fill a line; between one and two usual lines only two rows make such a length."""
    if LINE_TOKENS < line_tokens < 2 * LINE_TOKENS:
        return [LINE_TOKENS, line_tokens - LINE_TOKENS]
    return [line_tokens]


def _rows(limits: Limits, longest: int) -> Iterator[list[int]]:
    """Lengths of few to many short rows beside one that is longer: how rows one by one are padded."""
    n_rows = 1
    while n_rows <= limits.batch_rows:
        n_tokens = 16
        while n_tokens <= min(longest, 2 * LINE_TOKENS) and n_tokens + (n_rows - 1) * _SHORT <= limits.batch_tokens:
            yield [n_tokens, *[_SHORT] * (n_rows - 1)]
            n_tokens = round_tokens(n_tokens + 1)
        n_rows = round_rows(n_rows + 1)


def made_up_row(n_tokens: int, *, token: int) -> Encoded:
    """A row of one token again and again, for runs whose answers nobody reads."""
    ids = np.full(n_tokens, token, dtype=np.int32)
    nothing = np.zeros(n_tokens, dtype=np.int32)
    return Encoded(ids, nothing, np.zeros((n_tokens, 2), dtype=np.int32), nothing.astype(np.int8), truncated=False)
