"""The engine: texts in, every task's answer out, one trunk pass for each distinct row."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from trunkline.bundle.store import Bundle, open_bundle
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example, Prediction
from trunkline.engine.answers import RawAnswer, TaskAnswer, raw_answers, task_answers
from trunkline.engine.asking import Answers, AsyncAnswers, AsyncParts, Parts
from trunkline.engine.backends.base import Backend
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.encoding import EncodedRequest, as_examples, encode_request, known_task
from trunkline.engine.loop import Loop
from trunkline.engine.pace import Pace
from trunkline.engine.request import Part, StepReport
from trunkline.engine.results_cache import ResultsCache
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Limits
from trunkline.engine.snapshot import Snapshot, load_snapshot
from trunkline.engine.verify import replay
from trunkline.engine.warm import warm
from trunkline.model.score import Answer

LIMITS = Limits(batch_tokens=512, batch_rows=128, queued_rows=65_536, queued_tokens=4_194_304)
EXAMPLES_PER_REQUEST = 512
"""Of `Engine.predict`: so many texts are encoded while as many run."""
_REPLAYED_TOKENS = 128
"""Golden inputs are replayed so many tokens at a time: a piece of work that is short beside requests, but not eight."""
_MANY_BATCHES = 200
"""After so many batches it is known which shapes are frequent."""
_WARM_SHARE = 0.9
"""A new version is warmed on the shapes of so many batches: to prepare for the rest costs more than who meets them
waits, a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What `Engine.predict_counted` gives.

    Attributes:
        answers: For each example its answers by task, in the order asked.
        n_truncated: Task name to how many of the examples were longer than its ``max_length`` and were cut.
    """

    answers: list[dict[str, Prediction]]
    n_truncated: dict[str, int]


class Engine:
    """Answers texts with the tasks of a bundle; open one with `Engine.open`, close it or use it in a ``with``.

    Any thread may ask. One thread of the engine's own runs the programs.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        backend: Backend,
        *,
        limits: Limits = LIMITS,
        cache_bytes: int = 0,
        on_step: Callable[[StepReport], None] = lambda _: None,
    ) -> None:
        """Take the parts together and start; `Engine.open` reads them from a bundle.

        Args:
            snapshot: Who answers.
            backend: Compiled it.
            limits: Of a step and of the queue.
            cache_bytes: How much memory answers to texts may take that are asked again; 0 keeps none.
            on_step: See `trunkline.engine.loop.Loop`.
        """
        self.backend = backend
        self.cache = ResultsCache(cache_bytes) if cache_bytes else None
        self._runner = Runner(backend)
        self.loop = Loop(self._runner, limits, precision=backend.precision, cache=self.cache, on_step=on_step)
        self._limits = limits
        self._snapshot = snapshot
        self._activating = threading.Lock()
        self.loop.start()

    @classmethod
    def open(
        cls,
        path: Path | Bundle,
        *,
        tasks: Sequence[str] | None = None,
        backend: Backend | None = None,
        limits: Limits = LIMITS,
        cache_bytes: int = 0,
        on_step: Callable[[StepReport], None] = lambda _: None,
    ) -> "Engine":
        """Read, verify and compile a bundle, or those of its branches that are asked for.

        Args:
            path: The bundle's folder, or what `open_bundle` gave.
            tasks: Which branches to read, so that a damaged one elsewhere is no hindrance, and the trunk only as deep
                as they need; None reads all.
            backend: As from `choose_backend`. None serves a bundle in what its gate accepted, and otherwise in the
                fastest precision that the machine has.
            limits: Of a step and of the queue.
            cache_bytes: How much memory answers to texts may take that are asked again; 0 keeps none.
            on_step: See `trunkline.engine.loop.Loop`.

        Raises:
            UnknownNameError: A task is not in the bundle; the message names the nearest.
            BundleError: What is read is damaged or does not fit together (see `trunkline.bundle.store`).
        """
        bundle = path if isinstance(path, Bundle) else open_bundle(path)
        for task in tasks or ():
            known_task(task, bundle.manifest.tasks)
        backend = backend or choose_backend()
        snapshot = load_snapshot(bundle, backend, tasks=tasks)
        backend.settle()
        return cls(snapshot, backend, limits=limits, cache_bytes=cache_bytes, on_step=on_step)

    def __enter__(self) -> "Engine":  # noqa: PYI034 - beartype, which runs in tests, refuses Self here
        """Use it; it is closed behind the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Finish the step that runs and refuse what waits; closing twice does nothing more."""
        self.loop.close()

    def warm(self) -> None:
        """Run all tasks on the usual shapes, as a server does before it takes requests; before the first request."""
        snapshot = self._snapshot
        warm(self.backend, snapshot.trunk, snapshot.branches.values(), self._limits)
        self.backend.settle()

    def activate(self, bundle: Bundle, *, beside: Sequence[Bundle] = ()) -> tuple[str, ...]:
        """Answer with another state of the bundle from now on; requests that wait or run end as they began.

        What changed is read, verified, compiled, compared with its golden inputs and warmed beside the running
        engine; then one reference is replaced. Whatever fails, the present state goes on.

        Args:
            bundle: As from `open_bundle`: all of its tasks are served afterwards.
            beside: Further states of it, whose branches are kept ready for `Snapshot.choosing`: what a part of the
                requests tries, or what may have to come back at once.

        Returns:
            The tasks whose branch is another one than before.

        Raises:
            VerificationError: A new branch answers otherwise than when it was written.
            BundleError: A file is damaged, missing or does not fit.
        """
        with self._activating:
            before = self._snapshot
            after = self.prepare(bundle, beside=beside)
            self._snapshot = after
        return tuple(task for task, branch in after.branches.items() if before.branches.get(task) is not branch)

    def pace(self) -> Pace:
        """For work beside requests, to be called between its pieces."""
        return Pace(self.loop.give_way)

    def prepare(self, bundle: Bundle, *, beside: Sequence[Bundle] = (), pace: Pace | None = None) -> Snapshot:
        """The first half of `activate`: everything is ready, and nothing answers otherwise yet.

        Whoever calls it sees to it that no other change comes between this and `switch`.

        Args:
            bundle: As of `activate`.
            beside: As of `activate`.
            pace: Of the work that this is a part of; None where it is all.
        """
        before, pace = self._snapshot, pace or self.pace()
        after = load_snapshot(bundle, self.backend, before=before, beside=beside, before_each=pace)
        ready = {*before.branches.values(), *before.beside.values()}
        states = [(bundle, branch) for branch in after.branches.values()]
        states += [(state, after.beside[e.branch]) for state in beside for e in state.manifest.tasks.values()]
        new = [(state, branch) for state, branch in states if branch not in ready]
        if new:
            # The loop's thread may be in the middle of these programs; twins compute in memory of their own.
            trunk = after.trunk.twin()
            for state, branch in new:
                golden = state.golden(branch.spec.task)
                replay(golden, branch, trunk, self.backend, most_tokens=_REPLAYED_TOKENS, before_each=pace)
            if set(after.trunk.segments) <= set(before.trunk.segments):
                trunk = trunk.without_layers()  # They are warm; branches are warmed on what the embeddings give.
            branches = [branch for _, branch in new]
            # Whoever is busy does not need what never comes; the rest is prepared for when it does.
            met = self._runner.met.most(_WARM_SHARE) if self._runner.met.n_batches >= _MANY_BATCHES else None
            warm(self.backend, trunk, branches, self._limits, met=met, before_each=pace)
            self.backend.settle()
        return after

    def switch(self, snapshot: Snapshot) -> None:
        """The second half: answer with a snapshot that `prepare` gave."""
        self._snapshot = snapshot

    @property
    def snapshot(self) -> Snapshot:
        """Who answers requests that come now."""
        return self._snapshot

    @property
    def specs(self) -> dict[str, BranchSpec]:
        """Task name to what its branch is."""
        return {task: branch.spec for task, branch in self._snapshot.branches.items()}

    def spec(self, task: str) -> BranchSpec:
        """What a task's branch is.

        Raises:
            UnknownNameError: There is no such task; the message names the nearest.
        """
        return known_task(task, self.specs)

    def stream(
        self,
        examples: Sequence[Example] | Sequence[str],
        *,
        tasks: Sequence[str] | None = None,
        caller: str = "",
        timeout_s: float | None = None,
    ) -> Answers:
        """Answers one by one, as soon as each is there: those of the lowest exits first.

        Args:
            examples: Texts, or texts and pairs; tagging takes an example's ``word_spans`` for words where it has them.
            tasks: Which tasks answer; None lets every task answer whose input form fits the example.
            caller: Who asks; callers get equal shares of a busy engine.
            timeout_s: Seconds from now after which no answer is wanted any more.

        Returns:
            Answers as they come. A stream that is closed early is cancelled.

        Raises:
            UnknownNameError: A task is not in the bundle.
            DataError: A task for pairs is asked about a single text, or the other way round; or `examples` is a str.
            QueueFullError: Too much waits already; nothing of this was queued.
            DeadlineError: The time is over; what was answered before was given.
            NonFiniteError: A logit is NaN or infinite.
            ClosedError: The engine was closed.
        """
        deadline = self._deadline(timeout_s)
        encoded = encode_request(self._snapshot, as_examples(examples), tasks)
        return Answers(Parts(self.loop, encoded, caller=caller, deadline=deadline))

    def astream(
        self,
        examples: Sequence[Example] | Sequence[str],
        *,
        tasks: Sequence[str] | None = None,
        caller: str = "",
        timeout_s: float | None = None,
    ) -> AsyncAnswers:
        """As `stream`, without blocking the running event loop; arguments, order and errors are the same."""
        deadline = self._deadline(timeout_s)
        encoded = encode_request(self._snapshot, as_examples(examples), tasks)
        return AsyncAnswers(AsyncParts(self.loop, encoded, caller=caller, deadline=deadline))

    def predict(
        self, examples: Sequence[Example] | Sequence[str], *, tasks: Sequence[str] | None = None
    ) -> list[dict[str, Prediction]]:
        """Answer texts; arguments and errors as of `stream`.

        Returns:
            For each example its answers by task, in the order asked.
        """
        return self.predict_counted(examples, tasks=tasks).answers

    def predict_counted(
        self, examples: Sequence[Example] | Sequence[str], *, tasks: Sequence[str] | None = None
    ) -> Answered:
        """As `predict`, and count the texts that were cut."""
        rows = as_examples(examples)
        snapshot = self._snapshot
        for task in tasks or ():
            known_task(task, snapshot.branches)
        names = list(snapshot.branches) if tasks is None else list(dict.fromkeys(tasks))
        found: list[dict[str, TaskAnswer]] = [{} for _ in rows]
        for first, encoded, part in self._run(snapshot, rows, tasks):
            for each in task_answers(encoded, part):
                found[first + each.index][each.task] = each
        return Answered(
            answers=[{task: row[task].prediction for task in names if task in row} for row in found],
            n_truncated={task: sum(row[task].truncated for row in found if task in row) for task in names},
        )

    def answers(self, examples: Sequence[Example] | Sequence[str], task: str) -> list[Answer]:
        """Answers of one task in the form that metrics take (see `trunkline.model.score`); errors as of `predict`."""
        return self.answers_counted(examples, task)[0]

    def answers_counted(self, examples: Sequence[Example] | Sequence[str], task: str) -> tuple[list[Answer], int]:
        """As `answers`, and how many of the texts were longer than the task's ``max_length`` and were cut."""
        spec = self.spec(task)
        found = self._raw(as_examples(examples), task)
        return [raw.judged(spec) for raw in found], sum(raw.truncated for raw in found)

    def logits(self, examples: Sequence[Example] | Sequence[str], task: str) -> list[np.ndarray]:
        """Raw logits of one task.

        Returns:
            For each example (n_outputs,) float32, or (tokens, n_outputs) for tagging, special tokens included,
            padding left out. Errors as of `predict`.
        """
        return [raw.logits for raw in self._raw(as_examples(examples), task)]

    def _raw(self, examples: list[Example], task: str) -> list[RawAnswer]:
        found: dict[int, RawAnswer] = {}
        for first, encoded, part in self._run(self._snapshot, examples, (task,)):
            found.update((first + raw.index, raw) for raw in raw_answers(encoded, part))
        return [found[index] for index in range(len(examples))]

    def _run(
        self, snapshot: Snapshot, examples: list[Example], tasks: Sequence[str] | None
    ) -> Iterator[tuple[int, EncodedRequest, Part]]:
        """Parts of all examples, with the index that the first example of their request has here."""
        running: deque[tuple[int, Parts]] = deque()
        try:
            for start in range(0, len(examples), EXAMPLES_PER_REQUEST):
                encoded = encode_request(snapshot, examples[start : start + EXAMPLES_PER_REQUEST], tasks)
                running.append((start, Parts(self.loop, encoded)))
                # While one request runs, the next is encoded.
                if len(running) > 1:
                    yield from _placed(*running[0])
                    running.popleft()
            while running:
                yield from _placed(*running[0])
                running.popleft()
        finally:
            for _, parts in running:
                parts.close()

    def _deadline(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self.loop.clock() + timeout_s


def _placed(first: int, parts: Parts) -> Iterator[tuple[int, EncodedRequest, Part]]:
    for part in parts:
        yield first, parts.encoded, part
