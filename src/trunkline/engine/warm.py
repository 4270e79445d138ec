"""Runs a snapshot on the shapes it will meet, so that no caller waits while a runtime prepares for a new one."""

from collections.abc import Iterable, Iterator

import numpy as np

from trunkline.core.types import Encoded
from trunkline.engine.backends.base import Backend
from trunkline.engine.layout import LINE_TOKENS, round_rows, round_tokens
from trunkline.engine.runner import Runner
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk

_USUAL_TOKENS = (8, 16, 32, 48, 64)


def warm(backend: Backend, trunk: LoadedTrunk, branches: Iterable[LoadedBranch], *, batch_tokens: int) -> None:
    """Run branches, and the trunk under them, on batches of the usual shapes.

    Args:
        backend: Compiled them.
        trunk: Ready to run; used by this thread alone (see `LoadedTrunk.twin`).
        branches: Which.
        batch_tokens: Most tokens of a step.
    """
    runner, chosen = Runner(backend), list(branches)
    if not chosen:
        return
    longest = min(max(branch.spec.max_length for branch in chosen), trunk.config.max_tokens)
    for n_rows, n_tokens in _shapes(batch_tokens, longest):
        rows = [_row(n_tokens, trunk.tokenizer.pad_id) for _ in range(n_rows)]
        asked = {branch: np.arange(n_rows) for branch in chosen}
        for _ in runner.run(trunk, rows, asked):
            pass


def _shapes(batch_tokens: int, longest: int) -> Iterator[tuple[int, int]]:
    """Rows and tokens of each: single rows of any length, and batches from two rows to full ones."""
    lengths = {min(n, longest) for n in _USUAL_TOKENS}
    length = LINE_TOKENS
    while length < longest:
        length = round_tokens(length + 1)
        lengths.add(min(length, longest))
    for n_tokens in sorted(lengths):
        n_rows = 1
        while n_rows == 1 or n_rows * n_tokens <= batch_tokens:
            yield n_rows, n_tokens
            n_rows = round_rows(n_rows + 1)


def _row(n_tokens: int, token: int) -> Encoded:
    ids = np.full(n_tokens, token, dtype=np.int32)
    nothing = np.zeros(n_tokens, dtype=np.int32)
    return Encoded(ids, nothing, np.zeros((n_tokens, 2), dtype=np.int32), nothing.astype(np.int8), truncated=False)
