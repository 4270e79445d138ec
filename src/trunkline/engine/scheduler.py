"""Which rows go into the next step: fair between callers, then between task sets, then by deadline.

Start-time fair queueing (Goyal et al. 1996) on two levels. Everyone with a backlog has a tag, the cost served to them
so far; the smallest tag is next, equal tags in the order in which they came about. The members of the upper level are
callers, those of the lower one the task sets of one caller; inside a task set the job that is due first goes first.

One rule departs from the paper: who joins starts at the greatest tag of those who left since the level was last empty,
or at the smallest tag of those present if that is greater. The paper takes the joiner's own old tag for the former. So
nothing need be remembered of anybody absent, and ever-new names cannot keep others waiting, as they can in the paper.

Let c be the largest cost of a job. Every tag lies within c of the smallest one, hence at every moment between two jobs:

- Over any time in which two members of a level both have a backlog, their served costs differ by at most 2 c.
- While a caller is served cost x, each other one that it shares the queue with is served at most x + 2 c, however many
  names take turns at being that other one; the same holds between the task sets of a caller.
- In a task set no job is overtaken by one that came `patience_s` after it, or later.

No torch, no clock: time is passed in. All operations are O(log n) amortised. Not thread-safe: the owner locks.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeAlias, TypeVar

from trunkline.core.errors import QueueFullError, SpecError

PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one step and the queue hold; everything is at least 1.

    Attributes:
        batch_tokens: Most real tokens of one step; a row that is longer goes alone.
        batch_rows: Most rows of one step.
        queued_rows: Most rows that wait.
        queued_tokens: Most real tokens that wait.

    Raises:
        SpecError: A limit is below 1.
    """

    batch_tokens: int
    batch_rows: int
    queued_rows: int
    queued_tokens: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise SpecError(f"limits: {name} is {getattr(self, name)}; choose 1 or more")


@dataclass(frozen=True, slots=True)
class Job:
    """One row of one request.

    Attributes:
        number: Given by the engine; unique, ascending.
        caller: Who asked. Callers with a backlog get equal shares.
        tasks: Tasks asked of this row, sorted.
        n_tokens: Real tokens; at least 1.
        cost: Layers × tokens that serving it executes; finite, above 0.
        deadline: When the answer is of no use any more, in seconds on the clock of ``now``; None is never.

    Raises:
        SpecError: A number lies outside its range.
    """

    number: int
    caller: str
    tasks: tuple[str, ...]
    n_tokens: int
    cost: float
    deadline: float | None

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise SpecError(f"job {self.number}: n_tokens is {self.n_tokens}; allowed is 1 or more")
        if not 0 < self.cost < math.inf:
            raise SpecError(f"job {self.number}: cost is {self.cost}; allowed is any finite number above 0")
        if self.deadline is not None and math.isnan(self.deadline):
            raise SpecError(f"job {self.number}: deadline is not a number; give seconds, or None")


@dataclass(frozen=True, slots=True)
class Step:
    """What leaves the queue at once.

    Attributes:
        jobs: To run, in the order in which they were chosen.
        expired: Dropped because their deadline has passed, in the order of their deadlines.
    """

    jobs: tuple[Job, ...]
    expired: tuple[Job, ...]


class Scheduler:
    """A bounded queue of jobs, and whose turn it is.

    Args:
        limits: How much one step and the queue hold.
        patience_s: When a job is due that has no deadline, in seconds after it came; a job whose deadline is later than
            that is due then too, so that to state a deadline never means to wait longer. At least 0.

    Raises:
        SpecError: ``patience_s`` is negative or not finite.
    """

    def __init__(self, limits: Limits, *, patience_s: float = PATIENCE_S) -> None:
        if not 0 <= patience_s < math.inf:
            raise SpecError(f"scheduler: patience_s is {patience_s}; choose a finite number of seconds, 0 or more")
        self._limits = limits
        self._patience_s = patience_s
        self._queued: dict[int, Job] = {}
        self._n_tokens = 0
        self._cost = 0.0
        self._deadlines: _Heap[int] = _Heap()
        self._turns: _Turns[str] = _Turns()
        self._backlogs: dict[str, _Backlog] = {}

    @property
    def n_rows(self) -> int:
        """Jobs that wait."""
        return len(self._queued)

    @property
    def n_tokens(self) -> int:
        """Real tokens that wait."""
        return self._n_tokens

    @property
    def cost(self) -> float:
        """Layers × tokens that serving all that wait executes."""
        return self._cost

    def earliest_deadline(self) -> float | None:
        """The first deadline of all jobs that wait, in seconds; None when none of them has one."""
        return self._queued[self._deadlines.first()].deadline if len(self._deadlines) else None

    def add(self, jobs: Sequence[Job], now: float) -> None:
        """Queue the jobs of one request, all of them or, when it is refused, none.

        Args:
            jobs: In ascending order of their numbers; a deadline may have passed already.
            now: Seconds. Jobs that expired since the last step take up room until the next one.

        Raises:
            QueueFullError: There is no room for all of them, now or ever; the message says which.
            SpecError: A number is queued already, or given twice.
        """
        numbers = {job.number for job in jobs}
        if len(numbers) < len(jobs) or not self._queued.keys().isdisjoint(numbers):
            raise SpecError("queue: two jobs have the same number; give each its own")
        self._check_room(len(jobs), sum(job.n_tokens for job in jobs))
        for job in jobs:
            self._put(job, now)

    def cancel(self, numbers: Iterable[int]) -> None:
        """Take jobs out of the queue; a number that is unknown, or whose job has left already, is passed over."""
        for number in numbers:
            if number in self._queued:
                self._take(number)

    def next_step(self, now: float) -> Step:
        """Take out every job whose deadline is at or before ``now``, and those whose turn it is.

        A step ends at the first job that does not fit, so that no long row is overtaken for ever.

        Args:
            now: Seconds.

        Returns:
            No jobs only if none are left in the queue; otherwise one, or several within the limits of a step.
        """
        expired = []
        while (deadline := self.earliest_deadline()) is not None and deadline <= now:
            expired.append(self._take(self._deadlines.first()))
        jobs: list[Job] = []
        room = self._limits.batch_tokens
        while self._queued and len(jobs) < self._limits.batch_rows:
            job = self._next_job()
            room -= job.n_tokens
            if jobs and room < 0:
                break
            self._turns.charge(job.caller, job.cost)
            self._backlogs[job.caller].turns.charge(job.tasks, job.cost)
            jobs.append(self._take(job.number))
        return Step(jobs=tuple(jobs), expired=tuple(expired))

    def _check_room(self, n_rows: int, n_tokens: int) -> None:
        limits = self._limits
        request = f"queue: a request of {n_rows} rows, {n_tokens} tokens"
        if n_rows > limits.queued_rows or n_tokens > limits.queued_tokens:
            raise QueueFullError(
                f"{request} can never fit; the whole queue holds {limits.queued_rows} rows, {limits.queued_tokens} "
                "tokens; ask for fewer rows at a time, or raise queued_rows and queued_tokens"
            )
        if self.n_rows + n_rows > limits.queued_rows or self.n_tokens + n_tokens > limits.queued_tokens:
            raise QueueFullError(
                f"{request} does not fit; taken are {self.n_rows} of {limits.queued_rows} rows, {self.n_tokens} of "
                f"{limits.queued_tokens} tokens; ask again later"
            )

    def _put(self, job: Job, now: float) -> None:
        deadline = math.inf if job.deadline is None else job.deadline
        if job.caller not in self._backlogs:
            self._backlogs[job.caller] = _Backlog()
            self._turns.join(job.caller)
        backlog = self._backlogs[job.caller]
        if job.tasks not in backlog.flows:
            backlog.flows[job.tasks] = _Heap()
            backlog.turns.join(job.tasks)
        backlog.flows[job.tasks].put(job.number, (min(deadline, now + self._patience_s), deadline, job.number))
        if job.deadline is not None:
            self._deadlines.put(job.number, (deadline, job.number))
        self._queued[job.number] = job
        self._n_tokens += job.n_tokens
        self._cost += job.cost

    def _next_job(self) -> Job:
        backlog = self._backlogs[self._turns.first()]
        return self._queued[backlog.flows[backlog.turns.first()].first()]

    def _take(self, number: int) -> Job:
        """Remove a job from everywhere; who has no other job left is forgotten."""
        job = self._queued.pop(number)
        self._n_tokens -= job.n_tokens
        self._cost = self._cost - job.cost if self._queued else 0.0  # No rounding is carried from one rush to the next.
        if job.deadline is not None:
            self._deadlines.remove(number)
        backlog = self._backlogs[job.caller]
        flow = backlog.flows[job.tasks]
        flow.remove(number)
        if not len(flow):
            del backlog.flows[job.tasks]
            backlog.turns.leave(job.tasks)
        if not backlog.flows:
            del self._backlogs[job.caller]
            self._turns.leave(job.caller)
        return job


_Name = TypeVar("_Name", bound=Hashable)
_Key: TypeAlias = tuple[Any, ...]
"""Numbers; two names never have equal keys."""


class _Heap(Generic[_Name]):
    """Names in the order of their keys; any of them can be removed.

    An entry that no longer counts stays in the list until it comes up, or until such entries outnumber the others.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[_Key, _Name]] = []
        self._keys: dict[_Name, _Key] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, name: _Name) -> _Key:
        return self._keys[name]

    def first(self) -> _Name:
        while self._keys.get(self._entries[0][1]) != self._entries[0][0]:
            heappop(self._entries)
        return self._entries[0][1]

    def put(self, name: _Name, key: _Key) -> None:
        """Add a name, or give it another key."""
        self._keys[name] = key
        heappush(self._entries, (key, name))
        self._compact()

    def remove(self, name: _Name) -> None:
        del self._keys[name]
        self._compact()

    def _compact(self) -> None:
        if len(self._entries) > 2 * len(self._keys):
            self._entries = [(key, name) for name, key in self._keys.items()]
            heapify(self._entries)


class _Turns(Generic[_Name]):
    """Members of one level with a backlog, and whose turn it is; see the module's docstring."""

    def __init__(self) -> None:
        self._heap: _Heap[_Name] = _Heap()
        self._tag_of_leavers = 0.0
        self._n_tags = 0

    def first(self) -> _Name:
        return self._heap.first()

    def join(self, name: _Name) -> None:
        smallest = self._tag(self._heap.first()) if len(self._heap) else 0.0
        self._set_tag(name, max(smallest, self._tag_of_leavers))

    def charge(self, name: _Name, cost: float) -> None:
        self._set_tag(name, self._tag(name) + cost)

    def leave(self, name: _Name) -> None:
        self._tag_of_leavers = max(self._tag_of_leavers, self._tag(name))
        self._heap.remove(name)
        if not len(self._heap):
            # Nobody is left to be treated unfairly; small tags are exact, however long the process lives.
            self._tag_of_leavers = 0.0
            self._n_tags = 0

    def _tag(self, name: _Name) -> float:
        tag: float = self._heap.key(name)[0]
        return tag

    def _set_tag(self, name: _Name, tag: float) -> None:
        self._n_tags += 1
        self._heap.put(name, (tag, self._n_tags))


@dataclass(slots=True)
class _Backlog:
    """What one caller has queued: its task sets, each with the numbers of its jobs."""

    turns: _Turns[tuple[str, ...]] = field(default_factory=_Turns)
    flows: dict[tuple[str, ...], _Heap[int]] = field(default_factory=dict)
