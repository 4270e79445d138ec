"""The scheduler's promises hold whatever is asked of it, and in whatever order.

A machine makes calls at random against a fake clock and keeps books of its own: who waits, and what each was served.
"""

import copy
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trunkline.core.errors import QueueFullError
from trunkline.engine.scheduler import Job, Limits, Scheduler, Step

Flow: TypeAlias = tuple[str, tuple[str, ...]]
"""A caller and a task set."""
Row: TypeAlias = tuple[str, tuple[str, ...], int, float, float | None]

SRC = Path(__file__).resolve().parents[2] / "src"
PATIENCE_S = 4.0

# Few names, so that they meet; costs that lean on the task set, so that rows are no measure of them, and whole ones, so
# that sums are exact.
COSTS = {("x",): 1, ("x", "y"): 2, ("z",): 4}
callers = st.sampled_from(["a", "b", "c", "d", "e"])
rows = st.tuples(
    callers,
    st.sampled_from(sorted(COSTS)),
    st.integers(1, 12),
    st.sampled_from([1.0, 2.0]),
    st.none() | st.integers(-1, 12).map(float),
)
"""Caller, task set, tokens, cost as a multiple of the task set's, seconds until the deadline."""
some_limits = st.builds(
    Limits,
    batch_tokens=st.integers(1, 40),
    batch_rows=st.integers(1, 6),
    queued_rows=st.integers(4, 60),
    queued_tokens=st.integers(12, 400),
)


@dataclass
class Wait:
    """What others got while one job waited."""

    job: Job
    came: float
    in_flow: float = 0.0
    in_caller: float = 0.0
    elsewhere: float = 0.0
    most_flows: int = 0
    most_callers: int = 0


@dataclass
class Gap:
    """How far the served costs of two members with a backlog drifted apart."""

    now: float = 0.0
    least: float = 0.0
    most: float = 0.0


@dataclass
class Books:
    """Who waits, and what each was served, kept from the outside."""

    waits: dict[int, Wait] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)
    gaps: dict[tuple[Hashable, Hashable], Gap] = field(default_factory=dict)
    largest_cost: float = 0.0

    @property
    def queued(self) -> list[Job]:
        return [wait.job for wait in self.waits.values()]

    def flows(self, caller: str) -> set[Flow]:
        return {(job.caller, job.tasks) for job in self.queued if job.caller == caller}

    def note_members(self) -> None:
        """Pairs that both have a backlog now; and how many share each level."""
        names = {job.caller for job in self.queued}
        flows = {caller: self.flows(caller) for caller in names}
        pairs = chain(combinations(sorted(names), 2), *(combinations(sorted(each), 2) for each in flows.values()))
        self.gaps = {pair: self.gaps.get(pair, Gap()) for pair in pairs}
        for wait in self.waits.values():
            wait.most_callers = max(wait.most_callers, len(names))
            wait.most_flows = max(wait.most_flows, len(flows[wait.job.caller]))

    def put(self, job: Job, now: float) -> None:
        assert job.number not in self.waits
        self.waits[job.number] = Wait(job, now)
        self.largest_cost = max(self.largest_cost, job.cost)

    def end(self, number: int) -> Wait:
        self.ends[number] += 1
        wait = self.waits.pop(number)
        self.note_members()
        return wait

    def serve(self, job: Job) -> Wait:
        for (one, other), gap in self.gaps.items():
            for member in (job.caller, (job.caller, job.tasks)):
                gap.now += job.cost * ((member == one) - (member == other))
            gap.least, gap.most = min(gap.least, gap.now), max(gap.most, gap.now)
        for wait in self.waits.values():
            if job.number == wait.job.number:
                continue
            if (job.caller, job.tasks) == (wait.job.caller, wait.job.tasks):
                wait.in_flow += job.cost
            elif job.caller == wait.job.caller:
                wait.in_caller += job.cost
            else:
                wait.elsewhere += job.cost
        return self.end(job.number)


class AnyCalls(RuleBasedStateMachine):
    """Adds, cancels and steps in any order; at the end all accepted calls are made again."""

    @initialize(limits=some_limits)
    def open(self, limits: Limits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits, patience_s=PATIENCE_S)
        self.books = Books()
        self.now = 0.0
        self.next_number = 0
        self.accepted: list[tuple[str, Any, float]] = []
        self.steps: list[Step] = []

    def job(self, row: Row) -> Job:
        caller, tasks, n_tokens, multiple, time_left = row
        deadline = None if time_left is None else self.now + time_left
        self.next_number += 1
        return Job(self.next_number, caller, tasks, n_tokens, multiple * COSTS.get(tasks, 3), deadline)

    @rule(seconds=st.integers(0, 5).map(float))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(request=st.lists(rows, max_size=8))
    def add(self, request: list[Row]) -> None:
        jobs = [self.job(row) for row in request]
        n_rows, n_tokens = len(jobs), sum(job.n_tokens for job in jobs)
        n_all_rows, n_all_tokens = n_rows + self.scheduler.n_rows, n_tokens + self.scheduler.n_tokens
        if n_all_rows > self.limits.queued_rows or n_all_tokens > self.limits.queued_tokens:
            never = n_rows > self.limits.queued_rows or n_tokens > self.limits.queued_tokens
            with pytest.raises(QueueFullError, match="can never fit" if never else "ask again later"):
                self.scheduler.add(jobs, self.now)
            return
        self.scheduler.add(jobs, self.now)
        self.accepted.append(("add", jobs, self.now))
        for job in jobs:
            self.books.put(job, self.now)
        self.books.note_members()

    @rule(data=st.data())
    @precondition(lambda self: self.books.waits)
    def cancel(self, data: st.DataObject) -> None:
        known = st.sampled_from(sorted(self.books.waits))
        numbers = data.draw(st.lists(known | st.integers(-1, self.next_number + 2), max_size=6))
        self.scheduler.cancel(numbers)
        self.accepted.append(("cancel", numbers, self.now))
        for number in sorted(set(numbers) & self.books.waits.keys()):
            self.books.end(number)

    @rule(n_rounds=st.integers(1, 10), others=st.lists(rows, max_size=2), newcomer=rows, new_caller=st.booleans())
    def others_come_before_every_step(
        self, n_rounds: int, others: list[Row], newcomer: Row, *, new_caller: bool
    ) -> None:
        """A name that was never there is among them, a caller or a task set."""
        caller, tasks, *rest = newcomer
        for _ in range(n_rounds):
            name = f"new {self.next_number}"
            self.add([(name, tasks, *rest) if new_caller else (caller, (name,), *rest), *others])
            self.step()

    @rule()
    def step(self) -> None:
        step = self.scheduler.next_step(self.now)
        self.accepted.append(("next_step", None, self.now))
        self.steps.append(step)
        self.check_expired(step)
        self.check_size(step)
        for job in step.jobs:
            self.check_order(self.books.serve(job))

    def check_expired(self, step: Step) -> None:
        """Whatever has expired leaves, from however deep, and nothing else does."""
        deadlines = [(job.deadline, job.number) for job in self.books.queued if job.deadline is not None]
        late = [(deadline, number) for deadline, number in deadlines if deadline <= self.now]
        assert [(job.deadline, job.number) for job in step.expired] == sorted(late)
        for job in step.expired:
            self.books.end(job.number)
        assert not set(step.expired) & set(step.jobs)

    def check_size(self, step: Step) -> None:
        """A step holds its limits, or one long row, and ends only where the next job does not fit."""
        n_tokens = sum(job.n_tokens for job in step.jobs)
        assert len(step.jobs) <= self.limits.batch_rows
        assert n_tokens <= self.limits.batch_tokens or len(step.jobs) == 1
        assert step.jobs or not self.books.waits
        following = copy.deepcopy(self.scheduler).next_step(self.now).jobs
        if following and len(step.jobs) < self.limits.batch_rows:
            assert n_tokens + following[0].n_tokens > self.limits.batch_tokens

    def check_order(self, served: Wait) -> None:
        """In a task set nobody is overtaken by who came much later, and near deadlines go in their order."""
        for other in self.books.waits.values():
            if (other.job.caller, other.job.tasks) == (served.job.caller, served.job.tasks):
                assert served.came == other.came or served.came < other.came + PATIENCE_S
                if due(other) < other.came + PATIENCE_S:
                    assert due(served) <= due(other)

    @invariant()
    def no_job_is_lost_or_doubled(self) -> None:
        assert set(self.books.ends.values()) <= {1}
        assert self.scheduler.n_rows == len(self.books.waits) <= self.limits.queued_rows
        assert self.scheduler.n_tokens == sum(job.n_tokens for job in self.books.queued) <= self.limits.queued_tokens

    @invariant()
    def the_earliest_deadline_is_known(self) -> None:
        deadlines = [job.deadline for job in self.books.queued if job.deadline is not None]
        assert self.scheduler.earliest_deadline() == min(deadlines, default=None)

    @invariant()
    def served_costs_stay_together(self) -> None:
        for pair, gap in self.books.gaps.items():
            assert gap.most - gap.least <= 2 * self.books.largest_cost, pair

    @invariant()
    def what_goes_before_a_job_is_bounded(self) -> None:
        """Also while it still waits, so that a job that starves is found out before it ends."""
        slack = 2 * self.books.largest_cost
        for wait in self.books.waits.values():
            assert wait.in_caller <= (wait.most_flows - 1) * (wait.in_flow + slack)
            assert wait.elsewhere <= (wait.most_callers - 1) * (wait.in_flow + wait.in_caller + slack)

    @invariant()
    def memory_is_bounded_by_what_is_queued(self) -> None:
        spare = n_items(self.scheduler) - n_items(Scheduler(self.limits))
        assert spare == 0 if not self.books.waits else spare <= 16 * len(self.books.waits)

    def teardown(self) -> None:
        if not hasattr(self, "limits"):
            return
        while self.books.waits:
            self.step()
        self.no_job_is_lost_or_doubled()
        self.memory_is_bounded_by_what_is_queued()
        # Refused calls are left out, so this also says that they left no trace.
        again = Scheduler(self.limits, patience_s=PATIENCE_S)
        assert list(replay(again, self.accepted)) == self.steps


def due(wait: Wait) -> float:
    patient = wait.came + PATIENCE_S
    return patient if wait.job.deadline is None else min(wait.job.deadline, patient)


def replay(scheduler: Scheduler, calls: list[tuple[str, Any, float]]) -> Iterator[Step]:
    for name, argument, now in calls:
        if name == "next_step":
            yield scheduler.next_step(now)
        elif name == "add":
            scheduler.add(argument, now)
        else:
            scheduler.cancel(argument)


def n_items(value: object) -> int:
    """Items of all containers that an object holds, at any depth."""
    if isinstance(value, dict):
        return len(value) + sum(map(n_items, value.values()))
    if isinstance(value, list):
        return len(value)
    if isinstance(value, str | int | float | tuple | Job | Limits):
        return 0
    inside = vars(value) if hasattr(value, "__dict__") else {name: getattr(value, name) for name in value.__slots__}  # type: ignore[attr-defined]
    return sum(map(n_items, inside.values()))


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(max_examples=max(60, settings.default.max_examples), stateful_step_count=40)

SEEDED_CALLS = """
import random
from trunkline.engine.scheduler import Job, Limits, Scheduler
draw = random.Random(7)
scheduler = Scheduler(Limits(batch_tokens=40, batch_rows=6, queued_rows=500, queued_tokens=5000))
for n in range(0, 900, 3):
    scheduler.add([Job(n + k, draw.choice("abcdef"), (draw.choice("xyz"),), draw.randint(1, 9), draw.random() + 0.1,
                       draw.choice([None, n + draw.random() * 90])) for k in range(3)], float(n))
    scheduler.cancel({draw.randrange(n + 3), draw.randrange(n + 3)})
    if draw.random() < 0.6:
        step = scheduler.next_step(float(n))
        print([job.number for job in step.jobs], [job.number for job in step.expired])
"""


def test_the_order_does_not_depend_on_how_strings_are_hashed() -> None:
    def printed(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", SEEDED_CALLS]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=SRC).stdout

    first = printed("1")
    assert first.count("\n") > 100
    assert printed("2") == first
