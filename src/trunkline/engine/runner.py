"""One forward pass: up the trunk once, answers at every exit as soon as they are there."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from trunkline.core.types import Encoded
from trunkline.engine.backends.base import Backend, Floats, States
from trunkline.engine.layout import Layout, round_rows, spread_rows
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """What one branch gave.

    Attributes:
        branch: Which.
        rows: (rows,) int64: which rows of the batch, ascending.
        logits: For each of them float32, (n_outputs,), or (tokens, n_outputs) for tagging, special tokens included.
        trunk_s: Seconds that embeddings and trunk took up to the branch's exit.
        branch_s: Seconds that the branch took.
    """

    branch: LoadedBranch
    rows: np.ndarray
    logits: list[np.ndarray]
    trunk_s: float
    branch_s: float


@dataclass(slots=True)
class Shapes:
    """What shapes batches had, and how often: a runtime prepares each program for each of them once.

    Attributes:
        lines: (lines, tokens of a line).
        rows: (rows, tokens), both rounded up, of rows that were padded one by one.
        n_batches: Of how many batches.
    """

    lines: Counter[tuple[int, int]] = field(default_factory=Counter)
    rows: Counter[tuple[int, int]] = field(default_factory=Counter)
    n_batches: int = 0

    def most(self, share: float) -> "Shapes":
        """The most frequent of each sort that together make up such a share; any thread may ask."""
        return Shapes(_most(self.lines, share), _most(self.rows, share), self.n_batches)


def _most(counts: Counter[tuple[int, int]], share: float) -> Counter[tuple[int, int]]:
    seen = counts.copy()  # The engine's thread goes on counting.
    left, kept = share * seen.total(), Counter[tuple[int, int]]()
    for shape, count in seen.most_common():
        if left <= 0:
            break
        kept[shape] = count
        left -= count
    return kept


def nothing_dropped() -> frozenset[int]:
    """For batches that nobody can cancel."""
    return frozenset()


class Runner:
    """Runs batches of rows; one thread at a time.

    Attributes:
        met: Shapes that batches had.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the backend that compiled trunk and branches.

        Args:
            backend: Runs them.
            clock: Seconds, for what is measured.
        """
        self.met = Shapes()
        self._backend = backend
        self._clock = clock

    def run(
        self,
        trunk: LoadedTrunk,
        rows: Sequence[Encoded],
        asked: Mapping[LoadedBranch, np.ndarray],
        dropped: Callable[[], frozenset[int]] = nothing_dropped,
    ) -> Iterator[Ran]:
        """Run one batch.

        The trunk runs only up to the deepest exit that is asked for, and rows that nobody asks for deeper drop out.

        Args:
            trunk: Has a segment end at each branch's exit.
            rows: At least one.
            asked: Branch to the numbers of the rows that it answers, ascending int64.
            dropped: Rows that need no more answers, asked anew at every exit and before every branch.

        Yields:
            What each branch gave, in the order of the exits; of one exit the cheapest first.
        """
        self.met.n_batches += 1
        lines: _Lines | None = None
        depth, trunk_s = 0, 0.0
        segments = iter(trunk.segments)
        for exit_layer in sorted({branch.spec.exit_layer for branch, wanted in asked.items() if len(wanted)}):
            deeper = [wanted for branch, wanted in asked.items() if branch.spec.exit_layer >= exit_layer]
            needed = _without(np.unique(np.concatenate(deeper)), dropped())
            if not len(needed):
                return
            started = self._clock()
            lines = self._enter(trunk, rows, needed) if lines is None else lines.of(needed)
            states = lines.states
            while depth < exit_layer:
                segment = next(segments)
                states, depth = segment.run(states, lines.bias), segment.stop
            lines = lines.with_states(states)
            trunk_s += self._clock() - started
            here = [branch for branch in asked if branch.spec.exit_layer == exit_layer]
            for branch in sorted(here, key=lambda each: each.cost_order):
                wanted = _without(asked[branch], dropped())
                if len(wanted):
                    started = self._clock()
                    logits = lines.answer(branch, wanted)
                    yield Ran(branch, wanted, logits, trunk_s, self._clock() - started)

    def _enter(self, trunk: LoadedTrunk, rows: Sequence[Encoded], needed: np.ndarray) -> "_Lines":
        chosen = [rows[number] for number in needed.tolist()]
        layout = Layout.pack([len(row.token_ids) for row in chosen])
        states = trunk.embed(*spread_rows(layout, chosen, trunk.tokenizer.pad_id))
        return _Lines(self._backend, trunk, self.met, needed, layout, states, trunk.masks.lines(layout))


@dataclass(frozen=True, eq=False)
class _Lines:
    """Rows where they lie at one depth of the trunk.

    Attributes:
        rows: Their numbers in the batch, ascending.
        layout: Where they lie.
        states: (lines, line_tokens, width).
        bias: As of `Masks.lines`.
    """

    backend: Backend
    trunk: LoadedTrunk
    met: Shapes
    rows: np.ndarray
    layout: Layout
    states: States
    bias: Floats
    # Several branches of one exit mostly ask for the same rows; what is picked for one serves all.
    _picked: dict[bytes, "_Lines"] = field(default_factory=dict)
    _padded: dict[bytes, tuple[States, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note their shape."""
        self.met.lines[self.layout.n_lines, self.layout.line_tokens] += 1

    def with_states(self, states: States) -> "_Lines":
        """The same rows with other states."""
        return _Lines(self.backend, self.trunk, self.met, self.rows, self.layout, states, self.bias)

    def of(self, rows: np.ndarray) -> "_Lines":
        """Some of the rows; as they lie where packing them anew would save no line."""
        if len(rows) == len(self.rows):
            return self
        key = rows.tobytes()
        if key not in self._picked:
            layout, index = self.layout.subset(np.searchsorted(self.rows, rows))
            if layout.n_tokens >= self.layout.n_tokens:
                self._picked[key] = self
            else:
                states = self.backend.take(self.states, index)
                self._picked[key] = _Lines(
                    self.backend, self.trunk, self.met, rows, layout, states, self.trunk.masks.lines(layout)
                )
        return self._picked[key]

    def answer(self, branch: LoadedBranch, rows: np.ndarray) -> list[np.ndarray]:
        """Logits of one branch for some of the rows."""
        programs = branch.programs
        if programs.reads == "first":
            lines = self if programs.before is None else self.of(rows)
            if programs.before is not None:
                lines = lines.with_states(programs.before(lines.states, lines.bias))
            return list(programs.top(*lines.padded(rows, whole=branch.spec.own_layers > 0))[: len(rows)])
        lines = self.of(rows)
        places = np.searchsorted(lines.rows, rows)
        if programs.reads == "mean":
            logits = programs.top(lines.states, lines.bias, *lines.pooling)
            return [logits[place] for place in places.tolist()]
        logits = programs.top(lines.states, lines.bias)
        flat = logits.reshape(-1, logits.shape[-1])
        starts, lengths = lines.layout.starts[places], lines.layout.lengths[places]
        return [flat[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def padded(self, rows: np.ndarray, *, whole: bool) -> tuple[States, ...]:
        """Rows one by one with their bias, or their first tokens alone."""
        key = rows.tobytes() + bytes([whole])
        if key not in self._padded:
            index, lengths = self.layout.padded(np.searchsorted(self.rows, rows))
            self.met.rows[index.shape[0], index.shape[1]] += 1
            bias = (self.trunk.masks.first(lengths, index.shape[1]),) if whole else ()
            self._padded[key] = (self.backend.take(self.states, index if whole else index[:, :1]), *bias)
        return self._padded[key]

    @cached_property
    def pooling(self) -> tuple[Floats, Floats]:
        """Which tokens each row has and how many, in the backend's element type; once for all branches of an exit."""
        n_rows = self.layout.n_rows
        lengths = np.concatenate((self.layout.lengths, np.ones(round_rows(n_rows) - n_rows)))
        encode = self.backend.encode
        return encode(self.layout.pooling().astype(np.float32)), encode(lengths.astype(np.float32))


def _without(rows: np.ndarray, dropped: frozenset[int]) -> np.ndarray:
    return rows if not dropped else rows[[number not in dropped for number in rows.tolist()]]
