"""The loop, stepped by hand on a clock of its own: schedule, run, deliver."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import backbone_of
from tests.tiny_engines import Executed, encoded, executed, run_all, snapshot_of, snapshot_with, stored_branch
from trunkline.core.errors import (
    CancelledRequestError,
    ClosedError,
    DeadlineError,
    EngineError,
    NonFiniteError,
    QueueFullError,
    SpecError,
    TrunklineError,
)
from trunkline.core.types import Encoded
from trunkline.engine.backends.base import BranchPrograms
from trunkline.engine.backends.torch import TorchBackend
from trunkline.engine.loop import Loop
from trunkline.engine.request import Backlog, Part, Request, StepReport
from trunkline.engine.results_cache import ResultsCache
from trunkline.engine.runner import Runner
from trunkline.engine.scheduler import Limits
from trunkline.engine.snapshot import LoadedBranch, Snapshot

ROOMY = Limits(batch_tokens=512, batch_rows=64, queued_rows=100, queued_tokens=5000)
ROWS = encoded("play a song", "what is the weather in paris", "no", "rain is bad")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Writes down what is delivered.

    Attributes:
        parts: Answers that came.
        error: What came in their place, or None.
        n_ends: How often the end, or an error, was delivered.
    """

    def __init__(self, on_part: Callable[[Part], None] = lambda _: None) -> None:
        self.parts: list[Part] = []
        self.error: TrunklineError | None = None
        self.n_ends = 0
        self._on_part = on_part

    def __call__(self, event: Part | TrunklineError | None) -> None:
        assert not self.n_ends, "something came after the end"
        if isinstance(event, Part):
            self.parts.append(event)
            self._on_part(event)
            return
        self.n_ends += 1
        self.error = event

    @property
    def answered(self) -> list[str]:
        return [part.branch.spec.task for part in self.parts]

    def logits(self, task: str) -> dict[int, np.ndarray]:
        return {
            row: logits
            for part in self.parts
            if part.branch.spec.task == task
            for row, logits in zip(part.rows, part.logits, strict=True)
        }


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return snapshot_of(TorchBackend(), "topics", "urgency", "intent", "slots")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def loop_of(clock: Clock, limits: Limits = ROOMY, *, cache: ResultsCache | None = None) -> Loop:
    return Loop(Runner(TorchBackend()), limits, cache=cache, clock=clock)


def request_of(
    snapshot: Snapshot, deliver: Caller, tasks: Sequence[str], rows: Sequence[Encoded] = ROWS, **options: Any
) -> Request:
    asked = {snapshot.branches[task]: np.arange(len(rows)) for task in tasks}
    return Request(snapshot.trunk, rows, asked, deliver=deliver, **options)


def broken(branch: LoadedBranch, fail: Callable[..., Any]) -> LoadedBranch:
    """The same branch with a program that fails, or answers nonsense."""

    class Program:
        def __call__(self, *inputs: Any) -> Any:
            return fail(branch.programs.top(*inputs))

        def twin(self) -> "Program":
            return self

    programs = branch.programs
    return replace(branch, digest="broken", programs=BranchPrograms(programs.reads, programs.before, Program()))


def with_branch(snapshot: Snapshot, task: str, branch: LoadedBranch) -> Snapshot:
    return replace(snapshot, branches={**snapshot.branches, task: branch})


def raising(error: Exception) -> Callable[..., Any]:
    def fail(_logits: np.ndarray) -> Any:
        raise error

    return fail


def nan_in_the_first_row(logits: np.ndarray) -> np.ndarray:
    changed = logits.copy()
    changed[0] = np.nan
    return changed


def test_a_step_answers_every_task_of_every_row_and_then_says_that_this_is_all(
    snapshot: Snapshot, clock: Clock
) -> None:
    loop, caller = loop_of(clock), Caller()
    loop.submit(request_of(snapshot, caller, ("slots", "topics", "intent")))
    assert not caller.parts
    assert loop.step()
    assert caller.answered == ["topics", "intent", "slots"]
    assert (caller.n_ends, caller.error) == (1, None)
    expected = run_all(TorchBackend(), snapshot, ROWS)
    for task in ("slots", "topics", "intent"):
        for row, logits in caller.logits(task).items():
            np.testing.assert_allclose(logits, expected[task][row], atol=1e-5)
        assert sorted(caller.logits(task)) == [0, 1, 2, 3]


def test_a_step_with_nothing_to_run_says_so(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    assert not loop.step()
    loop.submit(request_of(snapshot, Caller(), ("topics",)))
    assert loop.step()
    assert not loop.step()


def test_a_request_that_asks_for_nothing_ends_at_once_and_is_forgotten(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    loop.submit(request_of(snapshot, caller, ()))
    assert (caller.n_ends, caller.error) == (1, None)
    assert not loop._numbers


def test_a_request_over_several_steps_is_answered_part_by_part(snapshot: Snapshot, clock: Clock) -> None:
    limits = replace(ROOMY, batch_rows=3)
    loop, caller = loop_of(clock, limits), Caller()
    loop.submit(request_of(snapshot, caller, ("topics",)))
    loop.step()
    assert (len(caller.logits("topics")), caller.n_ends) == (3, 0)
    loop.step()
    assert (len(caller.logits("topics")), caller.n_ends) == (4, 1)


def test_nothing_of_an_answered_request_is_kept(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    loop.submit(request_of(snapshot, Caller(), ("topics", "slots")))
    loop.step()
    assert not loop._waiting
    assert not loop._numbers


def test_a_deadline_that_passes_in_the_queue_runs_nothing(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    loop.submit(request_of(snapshot, caller, ("topics",), deadline=clock.now + 2))
    clock.now += 2
    with executed() as seen:
        assert not loop.step()
    assert not seen.n_rows
    assert isinstance(caller.error, DeadlineError)
    assert "not answered before its deadline" in str(caller.error)
    assert (caller.parts, caller.n_ends) == ([], 1)


def test_a_deadline_that_had_passed_when_it_came_says_that_there_was_no_time_left(
    snapshot: Snapshot, clock: Clock
) -> None:
    loop, caller = loop_of(clock), Caller()
    loop.submit(request_of(snapshot, caller, ("topics",), deadline=clock.now - 1))
    loop.step()
    assert isinstance(caller.error, DeadlineError)


def test_a_deadline_that_passes_while_others_wait_reaches_its_own_request_alone(
    snapshot: Snapshot, clock: Clock
) -> None:
    loop, late, patient = loop_of(clock), Caller(), Caller()
    loop.submit(request_of(snapshot, late, ("topics",), deadline=clock.now + 1))
    loop.submit(request_of(snapshot, patient, ("topics",), deadline=clock.now + 9))
    clock.now += 5
    loop.step()
    assert isinstance(late.error, DeadlineError)
    assert patient.answered == ["topics"]
    assert patient.error is None


def test_a_deadline_that_passes_between_segments_stops_the_rest(snapshot: Snapshot, clock: Clock) -> None:
    def later(_part: Part) -> None:
        clock.now += 3

    loop, caller = loop_of(clock), Caller(later)
    loop.submit(request_of(snapshot, caller, ("urgency", "slots"), deadline=clock.now + 2))
    with executed() as seen:
        loop.step()
    assert caller.answered == ["urgency"]
    assert isinstance(caller.error, DeadlineError)
    assert len(seen.layers) == 1


def test_a_deadline_between_segments_leaves_the_mates_of_the_batch_their_answers(
    snapshot: Snapshot, clock: Clock
) -> None:
    def later(_part: Part) -> None:
        clock.now += 3

    loop, late, patient = loop_of(clock), Caller(later), Caller()
    loop.submit(request_of(snapshot, late, ("urgency", "slots"), ROWS[:2], deadline=clock.now + 2))
    loop.submit(request_of(snapshot, patient, ("urgency", "slots"), ROWS[2:]))
    loop.step()
    assert late.answered == ["urgency"]
    assert isinstance(late.error, DeadlineError)
    assert sorted(patient.logits("slots")) == [0, 1]
    assert patient.error is None


def test_a_request_cancelled_in_the_queue_is_not_run(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    request = request_of(snapshot, caller, ("topics",))
    loop.submit(request)
    loop.cancel(request)
    assert isinstance(caller.error, CancelledRequestError)
    with executed() as seen:
        assert not loop.step()
    assert not seen.n_rows
    assert not loop._waiting
    assert not loop._numbers


def test_a_request_cancelled_while_it_runs_stops_at_the_next_program(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    cancelled = threading.Thread(target=lambda: loop.cancel(request))

    def cancel(_part: Part) -> None:
        # From another thread, as a caller does; the part itself is delivered first.
        cancelled.start()

    caller = Caller(cancel)
    request = request_of(snapshot, caller, ("urgency", "slots"))
    loop.submit(request)
    let_settle(loop, cancelled)
    with executed() as seen:
        loop.step()
    assert caller.answered == ["urgency"]
    assert isinstance(caller.error, CancelledRequestError)
    assert len(seen.layers) == 1


def let_settle(loop: Loop, cancelled: threading.Thread) -> None:
    """Wait for the cancelling thread whenever the runner asks which rows are dropped."""
    run = loop._runner.run

    def waiting(trunk: Any, rows: Any, asked: Any, dropped: Callable[[], frozenset[int]]) -> Iterator[Any]:
        def settled() -> frozenset[int]:
            if cancelled.ident is not None:
                cancelled.join()
            return dropped()

        return run(trunk, rows, asked, settled)

    loop._runner.run = waiting  # type: ignore[method-assign]


def test_cancelling_a_finished_request_does_nothing(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    request = request_of(snapshot, caller, ("topics",))
    loop.submit(request)
    loop.step()
    loop.cancel(request)
    loop.cancel(request)
    assert (caller.n_ends, caller.error) == (1, None)


def test_a_request_cancelled_between_two_steps_is_answered_no_further(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock, replace(ROOMY, batch_rows=1)), Caller()
    request = request_of(snapshot, caller, ("topics",))
    loop.submit(request)
    loop.step()
    loop.cancel(request)
    assert not loop.step()
    assert len(caller.parts) == 1
    assert isinstance(caller.error, CancelledRequestError)


def test_a_cancelled_request_leaves_equal_rows_of_others_their_answers(snapshot: Snapshot, clock: Clock) -> None:
    loop, gone, caller = loop_of(clock), Caller(), Caller()
    request = request_of(snapshot, gone, ("topics",))
    loop.submit(request)
    loop.submit(request_of(snapshot, caller, ("topics",)))
    loop.cancel(request)
    loop.step()
    assert sorted(caller.logits("topics")) == [0, 1, 2, 3]


def test_equal_rows_of_two_callers_run_once(snapshot: Snapshot, clock: Clock) -> None:
    loop, one, other = loop_of(clock), Caller(), Caller()
    loop.submit(request_of(snapshot, one, ("topics", "slots"), ROWS[:3], caller="one"))
    loop.submit(request_of(snapshot, other, ("slots", "intent"), encoded("no", "rain is bad"), caller="other"))
    with executed() as seen:
        loop.step()
    assert seen.n_rows == 4  # "no" is asked by both.
    np.testing.assert_array_equal(one.logits("slots")[2], other.logits("slots")[0])
    assert other.answered == ["intent", "slots"]


def test_each_caller_gets_the_tasks_that_it_asked_for_alone(snapshot: Snapshot, clock: Clock) -> None:
    loop, one, other = loop_of(clock), Caller(), Caller()
    loop.submit(request_of(snapshot, one, ("topics",), ROWS[:1]))
    loop.submit(request_of(snapshot, other, ("slots",), ROWS[:1]))
    loop.step()
    assert (one.answered, other.answered) == (["topics"], ["slots"])


def test_a_known_answer_is_given_at_once_and_nothing_is_run(snapshot: Snapshot, clock: Clock) -> None:
    loop, first, second = loop_of(clock, cache=ResultsCache(1_000_000)), Caller(), Caller()
    loop.submit(request_of(snapshot, first, ("topics", "slots")))
    loop.step()
    with executed() as seen:
        loop.submit(request_of(snapshot, second, ("topics", "slots")))
        assert not loop.step()
    assert not seen.n_rows
    assert second.n_ends == 1
    for task in ("topics", "slots"):
        for row, logits in second.logits(task).items():
            assert logits.tobytes() == first.logits(task)[row].tobytes()
    assert {part.queued_s for part in second.parts} == {0.0}


def test_a_request_whose_answers_are_all_known_is_forgotten(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock, cache=ResultsCache(1_000_000))
    for _ in range(2):
        loop.submit(request_of(snapshot, Caller(), ("topics",)))
        loop.step()
    assert not loop._numbers


def test_only_what_is_not_known_is_run(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock, cache=ResultsCache(1_000_000)), Caller()
    loop.submit(request_of(snapshot, Caller(), ("topics",), ROWS[:2]))
    loop.step()
    loop.submit(request_of(snapshot, caller, ("topics", "urgency"), ROWS[:3]))
    assert sorted(caller.logits("topics")) == [0, 1]
    with executed() as seen:
        loop.step()
    assert seen.n_rows == 3
    assert sorted(caller.logits("topics")) == [0, 1, 2]
    assert sorted(caller.logits("urgency")) == [0, 1, 2]
    assert caller.n_ends == 1


def test_answers_of_another_version_are_not_given(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock, cache=ResultsCache(1_000_000)), Caller()
    loop.submit(request_of(snapshot, Caller(), ("slots",)))
    loop.step()
    newer = snapshot_with(TorchBackend(), backbone_of(), [stored_branch("slots", backbone_of(), seed=3)])
    loop.submit(request_of(newer, caller, ("slots",)))
    assert not caller.parts
    loop.step()
    expected = run_all(TorchBackend(), newer, ROWS)["slots"]
    for row, logits in caller.logits("slots").items():
        np.testing.assert_allclose(logits, expected[row], atol=1e-5)


def test_requests_on_two_trunks_are_both_answered_by_their_own(snapshot: Snapshot, clock: Clock) -> None:
    other_backbone = backbone_of("bert", seed=1)
    newer = snapshot_with(TorchBackend(), other_backbone, [stored_branch("slots", other_backbone)])
    loop, old, new = loop_of(clock), Caller(), Caller()
    loop.submit(request_of(snapshot, old, ("slots",)))
    loop.submit(request_of(newer, new, ("slots",)))
    loop.step()
    for caller, each in ((old, snapshot), (new, newer)):
        expected = run_all(TorchBackend(), each, ROWS)["slots"]
        for row, logits in caller.logits("slots").items():
            np.testing.assert_allclose(logits, expected[row], atol=1e-5)


def test_a_batch_that_fails_reaches_its_own_requests_and_the_loop_lives(snapshot: Snapshot, clock: Clock) -> None:
    loop, unlucky, lucky = loop_of(clock, replace(ROOMY, batch_rows=2)), Caller(), Caller()
    faulty = with_branch(snapshot, "slots", broken(snapshot.branches["slots"], raising(RuntimeError("out of memory"))))
    loop.submit(request_of(faulty, unlucky, ("topics", "slots"), ROWS[:2]))
    loop.submit(request_of(snapshot, lucky, ("topics", "slots"), ROWS[2:]))
    assert loop.step()
    assert loop.step()
    assert unlucky.answered == ["topics"]  # What was given before the failure stays given.
    assert isinstance(unlucky.error, EngineError)
    assert "RuntimeError: out of memory" in str(unlucky.error)
    assert lucky.answered == ["topics", "slots"]
    assert lucky.error is None


def test_an_error_of_trunklines_own_is_given_as_it_is(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    error = SpecError("rows: too long")
    faulty = with_branch(snapshot, "slots", broken(snapshot.branches["slots"], raising(error)))
    loop.submit(request_of(faulty, caller, ("slots",)))
    loop.step()
    assert caller.error is error


def test_a_nan_fails_only_who_asked_that_task(snapshot: Snapshot, clock: Clock) -> None:
    loop, unlucky, lucky = loop_of(clock), Caller(), Caller()
    faulty = with_branch(snapshot, "urgency", broken(snapshot.branches["urgency"], lambda logits: logits * np.nan))
    loop.submit(request_of(faulty, unlucky, ("topics", "urgency")))
    loop.submit(request_of(faulty, lucky, ("topics", "slots")))
    loop.step()
    assert isinstance(unlucky.error, NonFiniteError)
    assert "task 'urgency'" in str(unlucky.error)
    assert lucky.error is None
    assert sorted(lucky.logits("slots")) == [0, 1, 2, 3]


def test_a_nan_fails_only_whose_row_it_is(snapshot: Snapshot, clock: Clock) -> None:
    loop, unlucky, lucky = loop_of(clock), Caller(), Caller()
    faulty = with_branch(snapshot, "urgency", broken(snapshot.branches["urgency"], nan_in_the_first_row))
    loop.submit(request_of(faulty, unlucky, ("urgency",), ROWS[:1]))
    loop.submit(request_of(faulty, lucky, ("urgency",), ROWS[1:]))
    loop.step()
    assert isinstance(unlucky.error, NonFiniteError)
    assert lucky.error is None
    assert len(lucky.logits("urgency")) == 3


def test_an_infinite_logit_is_refused_like_a_nan(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    faulty = with_branch(snapshot, "urgency", broken(snapshot.branches["urgency"], lambda logits: logits + np.inf))
    loop.submit(request_of(faulty, caller, ("urgency",)))
    loop.step()
    assert isinstance(caller.error, NonFiniteError)


def test_a_nan_is_not_kept(snapshot: Snapshot, clock: Clock) -> None:
    cache = ResultsCache(1_000_000)
    faulty = with_branch(snapshot, "urgency", broken(snapshot.branches["urgency"], lambda logits: logits * np.nan))
    loop = loop_of(clock, cache=cache)
    loop.submit(request_of(faulty, Caller(), ("urgency",)))
    loop.step()
    assert len(cache) == 0


def test_a_request_that_does_not_fit_is_refused_and_nothing_of_it_is_queued(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller, refused = loop_of(clock, replace(ROOMY, queued_rows=5)), Caller(), Caller()
    loop.submit(request_of(snapshot, caller, ("topics",)))
    with pytest.raises(QueueFullError):
        loop.submit(request_of(snapshot, refused, ("topics",)))
    assert len(loop._waiting) == 4
    loop.step()
    assert caller.answered == ["topics"]
    assert not refused.parts
    assert refused.n_ends == 0
    loop.submit(request_of(snapshot, refused, ("topics",)))
    loop.step()
    assert refused.answered == ["topics"]


def test_times_tell_how_long_a_request_waited(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    loop.submit(request_of(snapshot, caller, ("topics",)))
    clock.now += 1.5
    loop.step()
    assert [part.queued_s for part in caller.parts] == [1.5]


def test_closing_refuses_what_waits_and_what_comes(snapshot: Snapshot, clock: Clock) -> None:
    loop, waiting, late = loop_of(clock), Caller(), Caller()
    loop.submit(request_of(snapshot, waiting, ("topics",)))
    loop.close()
    assert isinstance(waiting.error, ClosedError)
    with pytest.raises(ClosedError, match="open the bundle again"):
        loop.submit(request_of(snapshot, late, ("topics",)))
    assert (late.parts, late.n_ends) == ([], 0)


def test_closing_twice_does_nothing_more(snapshot: Snapshot, clock: Clock) -> None:
    loop, waiting = loop_of(clock), Caller()
    loop.submit(request_of(snapshot, waiting, ("topics",)))
    loop.close()
    loop.close()
    assert waiting.n_ends == 1


def test_a_thread_answers_until_it_is_closed(snapshot: Snapshot, clock: Clock) -> None:
    loop, done = loop_of(clock), threading.Event()
    caller = Caller(lambda _: done.set())
    loop.start()
    loop.submit(request_of(snapshot, caller, ("topics",)))
    assert done.wait(10)
    loop.close()
    assert caller.answered == ["topics"]
    assert not any(thread is loop._thread for thread in threading.enumerate())


def test_a_step_that_runs_is_finished_before_closing_returns(snapshot: Snapshot, clock: Clock) -> None:
    loop, running, let_go = loop_of(clock), threading.Event(), threading.Event()

    def hold(_part: Part) -> None:
        running.set()
        assert let_go.wait(10)

    caller, waiting = Caller(hold), Caller()
    loop.start()
    loop.submit(request_of(snapshot, caller, ("topics",)))
    assert running.wait(10)
    loop.submit(request_of(snapshot, waiting, ("topics",)))
    closing = threading.Thread(target=loop.close)
    closing.start()
    let_go.set()
    closing.join(10)
    assert (caller.answered, caller.error) == (["topics"], None)
    assert isinstance(waiting.error, ClosedError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_a_fault_ended(snapshot: Snapshot, clock: Clock) -> None:
    running, let_go = threading.Event(), threading.Event()

    def fail(_step: StepReport) -> None:
        running.set()
        assert let_go.wait(10)
        raise MemoryError("no room")

    loop = Loop(Runner(TorchBackend()), replace(ROOMY, batch_rows=1), clock=clock, on_step=fail)
    assert not loop.is_alive
    loop.start()
    assert loop.is_alive
    callers = [Caller(), Caller()]
    loop.submit(request_of(snapshot, callers[0], ("topics",), ROWS[:2]))
    assert running.wait(10)
    loop.submit(request_of(snapshot, callers[1], ("topics",), ROWS[:1]))
    let_go.set()
    assert loop._thread is not None
    loop._thread.join(10)
    assert not loop.is_alive
    assert [caller.n_ends for caller in callers] == [1, 1]
    assert all(isinstance(caller.error, EngineError) for caller in callers)
    assert "no room" in str(callers[1].error)
    with pytest.raises(ClosedError):
        loop.submit(request_of(snapshot, Caller(), ("topics",)))
    loop.close()


def test_callers_take_turns(snapshot: Snapshot, clock: Clock) -> None:
    loop, greedy, modest = loop_of(clock, replace(ROOMY, batch_rows=2)), Caller(), Caller()
    many = encoded(*(f"play {number} songs" for number in range(8)))
    loop.submit(request_of(snapshot, greedy, ("topics",), many, caller="greedy"))
    loop.submit(request_of(snapshot, modest, ("topics",), ROWS[:1], caller="modest"))
    loop.step()
    assert modest.n_ends == 1
    assert greedy.n_ends == 0


def test_rows_of_every_size_of_batch_are_counted_as_they_are(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock, replace(ROOMY, batch_tokens=1)), Caller()
    loop.submit(request_of(snapshot, caller, ("topics",)))
    seen: list[Executed] = []
    for _ in ROWS:
        with executed() as one:
            loop.step()
        seen.append(one)
    assert [one.n_rows for one in seen] == [1, 1, 1, 1]
    assert caller.n_ends == 1


def test_the_numbers_of_rows_given_are_those_of_the_request(snapshot: Snapshot, clock: Clock) -> None:
    loop, caller = loop_of(clock), Caller()
    asked: Mapping[LoadedBranch, np.ndarray] = {
        snapshot.branches["topics"]: np.array([1, 3]),
        snapshot.branches["slots"]: np.array([0]),
    }
    loop.submit(Request(snapshot.trunk, ROWS, asked, deliver=caller))
    loop.step()
    assert {task: sorted(caller.logits(task)) for task in ("topics", "slots")} == {"topics": [1, 3], "slots": [0]}


def test_what_waits_is_told_with_how_long_it_will_take(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    assert loop.backlog() == Backlog(0, 0, 0.0)
    slow = ticking(clock, 0.5)
    loop.submit(request_of(snapshot, Caller(slow), ("topics",)))
    assert loop.backlog() == Backlog(4, sum(len(row.token_ids) for row in ROWS), 0.0)
    loop.step()
    loop.submit(request_of(snapshot, Caller(), ("topics",)))
    assert loop.backlog().wait_s == pytest.approx(0.5)  # As long as the same rows took before.
    loop.step()
    assert loop.backlog() == Backlog(0, 0, 0.0)


def test_other_work_gives_way_to_requests_for_a_while(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    began = time.monotonic()
    loop.give_way(30.0)
    assert time.monotonic() - began < 5  # Nothing waits or runs.
    loop.submit(request_of(snapshot, Caller(), ("topics",)))
    began = time.monotonic()
    loop.give_way(0.05)
    assert time.monotonic() - began >= 0.05
    stepping = threading.Timer(0.05, loop.step)
    stepping.start()
    loop.give_way(30.0)
    assert loop.backlog().n_rows == 0
    stepping.join()


def test_every_step_is_reported(snapshot: Snapshot, clock: Clock) -> None:
    reports: list[StepReport] = []
    loop = Loop(Runner(TorchBackend()), ROOMY, clock=clock, on_step=reports.append)
    assert not loop.step()
    loop.submit(request_of(snapshot, Caller(ticking(clock, 0.25)), ("topics",)))
    loop.step()
    assert reports == [StepReport(4, sum(len(row.token_ids) for row in ROWS), 0.25)]


def ticking(clock: Clock, seconds: float) -> Callable[[Part], None]:
    """A caller whose first part takes so long."""

    def tick(_part: Part) -> None:
        clock.now += seconds

    return tick


def waiting(loop: Loop, clock: Clock, until: Callable[[float], None] = lambda _: None) -> list[float]:
    """How long the loop waits for further rows before its next step; the clock moves as it waits."""
    waits: list[float] = []

    class Wake:
        def wait(self, seconds: float) -> None:
            waits.append(seconds)
            clock.now += seconds
            until(seconds)

    loop._wake, wake = Wake(), loop._wake  # type: ignore[assignment]
    try:
        loop._gather()
    finally:
        loop._wake = wake
    return waits


def test_a_quiet_engine_does_not_wait_for_more_rows(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    assert waiting(loop, clock) == []
    loop.submit(request_of(snapshot, Caller(ticking(clock, 0.02)), ("topics",)))
    loop.step()
    clock.now += 0.003
    loop.submit(request_of(snapshot, Caller(), ("topics",), ROWS[:1]))
    assert waiting(loop, clock) == []


def test_after_a_step_the_loop_waits_a_tenth_of_it_for_those_who_were_answered(
    snapshot: Snapshot, clock: Clock
) -> None:
    loop = loop_of(clock)
    loop.submit(request_of(snapshot, Caller(ticking(clock, 0.02)), ("topics",)))
    loop.step()
    loop.submit(request_of(snapshot, Caller(), ("topics",), ROWS[:1]))
    assert waiting(loop, clock) == pytest.approx([0.002])


def test_the_loop_waits_no_longer_once_as_many_rows_wait_as_ran(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    loop.submit(request_of(snapshot, Caller(ticking(clock, 0.02)), ("topics",)))
    loop.step()
    loop.submit(request_of(snapshot, Caller(), ("topics",)))
    assert waiting(loop, clock) == []


def test_a_full_step_is_not_put_off(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock, Limits(batch_tokens=8, batch_rows=64, queued_rows=100, queued_tokens=5000))
    loop.submit(request_of(snapshot, Caller(ticking(clock, 0.02)), ("topics",)))
    loop.step()
    assert loop.backlog().n_tokens >= 8
    assert waiting(loop, clock) == []


def test_a_step_is_never_put_off_for_more_than_ten_milliseconds(snapshot: Snapshot, clock: Clock) -> None:
    loop = loop_of(clock)
    loop.submit(request_of(snapshot, Caller(ticking(clock, 5.0)), ("topics",)))
    loop.step()
    loop.submit(request_of(snapshot, Caller(), ("topics",), ROWS[:1]))
    assert waiting(loop, clock) == pytest.approx([0.01])
