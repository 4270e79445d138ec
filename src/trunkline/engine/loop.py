"""The loop: schedule, run, deliver. Requests of many callers go up the trunk together."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trunkline.core.errors import (
    CancelledRequestError,
    ClosedError,
    DeadlineError,
    EngineError,
    NonFiniteError,
    TrunklineError,
)
from trunkline.core.types import Encoded
from trunkline.engine.request import Backlog, Part, Request, StepReport
from trunkline.engine.results_cache import ResultKey, ResultsCache
from trunkline.engine.runner import Ran, Runner
from trunkline.engine.scheduler import Job, Limits, Scheduler, Step
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk

_GATHER_SHARE, _LONGEST_GATHER_S = 0.1, 0.01
"""How long the next step may be put off: a share of what the last one took."""
_FADING = 0.95
"""Of what the steps before took, with every step."""


class Loop:
    """Takes requests and runs them in steps; `start` gives it a thread, without which `step` is called by hand."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        precision: str = "fp32",
        cache: ResultsCache | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[StepReport], None] = lambda _: None,
    ) -> None:
        """Take the parts together.

        Args:
            runner: Runs batches.
            limits: Of a step and of the queue.
            precision: What the runner computes in; a part of the cache's keys.
            cache: Keeps answers.
            clock: Seconds, never going back.
            on_step: Told of every step, in the thread that runs it; it must return at once and raise nothing.
        """
        self.clock = clock
        self._on_step = on_step
        self._limits = limits
        self._seconds, self._cost, self._running_cost = 0.0, 0.0, 0.0
        self._expected, self._gather_until = 0, 0.0
        self._runner = runner
        self._scheduler = Scheduler(limits)
        self._precision = precision
        self._cache = cache
        self._waiting: dict[int, _Use] = {}
        self._numbers: dict[Request, set[int]] = {}
        self._stepping: set[Request] = set()
        self._next_number = 0
        lock = threading.RLock()
        self._wake, self._rests = threading.Condition(lock), threading.Condition(lock)
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self) -> None:
        """Run steps in a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run_forever, name="trunkline-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether what is submitted will be run: `start` was called, and neither `close` nor a fault ended it."""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    def backlog(self) -> Backlog:
        """What waits or runs now."""
        with self._wake:
            wait_s = self._open_cost * self._seconds / self._cost if self._cost else 0.0
            return Backlog(self._scheduler.n_rows, self._scheduler.n_tokens, wait_s)

    def give_way(self, most_s: float) -> None:
        """Wait until nothing waits or runs, or for so long: for work beside requests, one piece after the other.

        Args:
            most_s: On an engine that always has something to do such work goes on after this time, only slower.
        """
        with self._rests:  # To look again and again would take the interpreter from requests a thousand times a second.
            self._rests.wait_for(lambda: self._open_cost <= 0, timeout=most_s)

    @property
    def _open_cost(self) -> float:
        """Of what waits or runs, 0 where the engine rests; the lock is held."""
        return self._scheduler.cost + self._running_cost

    def submit(self, request: Request) -> None:
        """Queue what is not known yet; answers that are known are delivered at once.

        Raises:
            QueueFullError: There is no room; nothing of the request was queued.
            ClosedError: The loop was closed.
        """
        known, open_tasks = self._known(request)
        with self._wake:
            if self._closing:
                raise ClosedError("engine: is closed; requests are taken while it is open; open the bundle again")
            request.submitted = self.clock()
            if open_tasks:
                self._queue(request, open_tasks)
        for part in known:
            request.give(part)
        request.end_if_empty()

    def _queue(self, request: Request, open_tasks: dict[int, list[LoadedBranch]]) -> None:
        uses = {self._next_number + n: _Use(request, row, open_tasks[row]) for n, row in enumerate(open_tasks)}
        self._scheduler.add([_job(number, use) for number, use in uses.items()], request.submitted)
        self._next_number += len(uses)
        self._waiting.update(uses)
        self._numbers[request] = set(uses)
        self._wake.notify_all()

    def cancel(self, request: Request) -> None:
        """Drop a request: what waits is not run, what runs stops between two programs."""
        request.fail(
            CancelledRequestError("request: was cancelled; nothing more of it is run; send it again if needed")
        )
        with self._wake:
            numbers = self._numbers.pop(request, ())
            self._scheduler.cancel(numbers)
            for number in numbers:
                del self._waiting[number]

    def step(self) -> bool:
        """Schedule, run, deliver.

        Returns:
            Whether there was anything to run.
        """
        with self._wake:
            started = self.clock()
            step = self._scheduler.next_step(started)
            expired = [self._take(job) for job in step.expired]
            taken = [self._take(job) for job in step.jobs]
            self._running_cost = sum(job.cost for job in step.jobs)
        self._stepping = {use.request for use in (*expired, *taken)}
        for use in expired:
            use.request.fail(_late(use.request))
        by_trunk: dict[LoadedTrunk, list[_Use]] = {}
        for use in taken:
            by_trunk.setdefault(use.request.trunk, []).append(use)
        for trunk, uses in by_trunk.items():
            self._run(trunk, uses)
        if taken:
            self._report(step, self.clock() - started)
        self._stepping = set()
        with self._rests:
            if self._open_cost <= 0:
                self._rests.notify_all()
        return bool(taken)

    def _report(self, step: Step, seconds: float) -> None:
        with self._wake:
            # Sums that fade, not a mean of paces: a small step says little of a full one.
            self._seconds = _FADING * self._seconds + seconds
            self._cost = _FADING * self._cost + self._running_cost
            self._running_cost = 0.0
            self._expected = len(step.jobs) + self._scheduler.n_rows
            self._gather_until = self.clock() + min(_GATHER_SHARE * seconds, _LONGEST_GATHER_S)
        self._on_step(StepReport(len(step.jobs), sum(job.n_tokens for job in step.jobs), seconds))

    def close(self) -> None:
        """Finish the step that runs, refuse what waits, and end the thread."""
        left = self._stop()
        if self._thread is not None:
            self._thread.join()
        for request in left:
            request.fail(ClosedError("engine: was closed before the request was answered; send it to another"))

    def _stop(self) -> set[Request]:
        """Take nothing more; whoever is left must be told."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
            return set(self._numbers)

    def _run_forever(self) -> None:
        try:
            while self._wait():
                self.step()
        except BaseException as error:
            # Not of a batch, which fails by itself, but of the loop: nobody may wait for a thread that is gone.
            fault = EngineError(f"engine: its thread ended ({type(error).__name__}: {error}); open the bundle again")
            fault.__cause__ = error
            for request in self._stop() | self._stepping:
                request.fail(fault)
            raise

    def _wait(self) -> bool:
        """Wait until there is something to run; False when the loop is to end."""
        with self._wake:
            while not self._closing and not self._scheduler.n_rows:
                self._wake.wait()
            self._gather()
            return not self._closing

    def _gather(self) -> None:
        """Give those who just got their answers a moment to ask again: full steps cost less for each row.

        It ends as soon as as many rows wait as ran and waited when the last step ended, or a step is full; and it is a
        small share of what that step took, so that whoever asks a quiet engine does not wait.
        """
        while not self._closing and self._scheduler.n_rows < self._expected:
            if self._scheduler.n_tokens >= self._limits.batch_tokens:
                return
            left = self._gather_until - self.clock()
            if left <= 0:
                return
            self._wake.wait(left)

    def _take(self, job: Job) -> "_Use":
        use = self._waiting.pop(job.number)
        numbers = self._numbers[use.request]
        numbers.discard(job.number)
        if not numbers:
            del self._numbers[use.request]
        return use

    def _run(self, trunk: LoadedTrunk, uses: Sequence["_Use"]) -> None:
        batch = _Batch(uses)
        started = self.clock()
        try:
            for ran in self._runner.run(trunk, batch.rows, batch.asked, lambda: batch.dropped(self.clock())):
                self._deliver(batch, ran, started)
        except TrunklineError as error:
            batch.fail(error)
        except Exception as error:  # noqa: BLE001 - a fault of one batch must not end the loop for everybody
            fault = EngineError(f"engine: a batch failed ({type(error).__name__}: {error}); send the request again")
            fault.__cause__ = error
            batch.fail(fault)

    def _deliver(self, batch: "_Batch", ran: Ran, started: float) -> None:
        parts: dict[Request, tuple[list[int], list[np.ndarray]]] = {}
        batch.fail_late(self.clock())
        for number, logits in zip(ran.rows.tolist(), ran.logits, strict=True):
            users = batch.users[ran.branch, number]
            if not np.isfinite(logits).all():
                error = _non_finite(ran.branch.spec.task)
                for request, _ in users:
                    request.fail(error)
                continue
            if self._cache is not None:
                self._cache.put(self._key(ran.branch, batch.rows[number].key()), logits)
            for request, row in users:
                rows, values = parts.setdefault(request, ([], []))
                rows.append(row)
                values.append(logits)
        for request, (rows, values) in parts.items():
            waited = started - request.submitted
            request.give(Part(ran.branch, rows, values, queued_s=waited, trunk_s=ran.trunk_s, branch_s=ran.branch_s))

    def _known(self, request: Request) -> tuple[list[Part], dict[int, list[LoadedBranch]]]:
        """Parts out of the cache, and for each row the branches that must still run."""
        parts: list[Part] = []
        still_open: dict[int, list[LoadedBranch]] = {}
        keys = [row.key() for row in request.rows] if self._cache is not None else []
        for branch, numbers in request.asked.items():
            rows, values = [], []
            for row in numbers.tolist():
                found = self._cache.get(self._key(branch, keys[row])) if self._cache is not None else None
                if found is None:
                    still_open.setdefault(row, []).append(branch)
                else:
                    rows.append(row)
                    values.append(found)
            if rows:
                parts.append(Part(branch, rows, values))
        return parts, dict(sorted(still_open.items()))

    def _key(self, branch: LoadedBranch, row: bytes) -> ResultKey:
        return ResultKey(branch.digest, branch.spec.trunk_digest, f"{self._precision} {branch.form}", row)


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """One row of a request, and the branches that are asked for it."""

    request: Request
    row: int
    branches: list[LoadedBranch]


class _Batch:
    """Rows of several requests that run together: equal ones once."""

    def __init__(self, uses: Sequence[_Use]) -> None:
        """Find equal rows."""
        self.rows: list[Encoded] = []
        self.users: dict[tuple[LoadedBranch, int], list[tuple[Request, int]]] = {}
        self._requests: list[set[Request]] = []
        numbers: dict[bytes, int] = {}
        wanted: dict[LoadedBranch, set[int]] = {}
        for use in uses:
            row = use.request.rows[use.row]
            number = numbers.setdefault(row.key(), len(self.rows))
            if number == len(self.rows):
                self.rows.append(row)
                self._requests.append(set())
            self._requests[number].add(use.request)
            for branch in use.branches:
                self.users.setdefault((branch, number), []).append((use.request, use.row))
                wanted.setdefault(branch, set()).add(number)
        self._everyone = set().union(*self._requests)
        self.asked = {branch: np.array(sorted(rows), dtype=np.int64) for branch, rows in wanted.items()}

    def dropped(self, now: float) -> frozenset[int]:
        """Rows whose every request is over; deadlines are looked at here."""
        self.fail_late(now)
        if not any(request.over for request in self._everyone):
            return frozenset()
        return frozenset(n for n, users in enumerate(self._requests) if all(request.over for request in users))

    def fail_late(self, now: float) -> None:
        """Fail requests whose deadline has passed."""
        for request in self._everyone:
            if request.deadline is not None and request.deadline <= now:
                request.fail(_late(request))

    def fail(self, error: TrunklineError) -> None:
        """Tell every request of the batch."""
        for request in self._everyone:
            request.fail(error)


def _job(number: int, use: _Use) -> Job:
    n_tokens = len(use.request.rows[use.row].token_ids)
    layers = max(branch.spec.exit_layer for branch in use.branches) + sum(b.spec.own_layers for b in use.branches)
    return Job(
        number=number,
        caller=use.request.caller,
        tasks=tuple(sorted(branch.spec.task for branch in use.branches)),
        n_tokens=n_tokens,
        cost=float(max(layers, 1) * n_tokens),
        deadline=use.request.deadline,
    )


def _late(request: Request) -> DeadlineError:
    n_rows = len(request.rows)
    return DeadlineError(
        f"request of {n_rows} rows: was not answered before its deadline; what is left of it is not run; "
        "allow more time or ask less"
    )


def _non_finite(task: str) -> NonFiniteError:
    return NonFiniteError(
        f"task {task!r}: a logit is NaN or infinite; answers must be finite; verify the bundle, replace the branch"
    )
