"""Which rows go into the next step, by example; tests/property/test_scheduler.py holds the promises in general."""

import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from trunkline.core.errors import QueueFullError, SpecError
from trunkline.engine.scheduler import Job, Limits, Scheduler

SRC = Path(__file__).resolve().parents[3] / "src"
WIDE = Limits(batch_tokens=10_000, batch_rows=1_000, queued_rows=10_000, queued_tokens=100_000)


def job(
    number: int,
    caller: str = "a",
    tasks: tuple[str, ...] = ("mood",),
    *,
    n_tokens: int = 10,
    cost: float = 10.0,
    deadline: float | None = None,
) -> Job:
    return Job(number=number, caller=caller, tasks=tasks, n_tokens=n_tokens, cost=cost, deadline=deadline)


def limits(**changed: int) -> Limits:
    return Limits(**{name: getattr(WIDE, name) for name in Limits.__slots__} | changed)


def queue_of(*jobs: Job, within: Limits = WIDE, patience_s: float = 5.0) -> Scheduler:
    scheduler = Scheduler(within, patience_s=patience_s)
    scheduler.add(jobs, 0.0)
    return scheduler


def numbers(jobs: Sequence[Job]) -> list[int]:
    return [each.number for each in jobs]


def order(scheduler: Scheduler, now: float = 0.0) -> list[int]:
    return numbers(scheduler.next_step(now).jobs)


def test_an_empty_queue_gives_an_empty_step() -> None:
    step = Scheduler(WIDE).next_step(0.0)
    assert (step.jobs, step.expired) == ((), ())


def test_the_queue_counts_its_rows_and_tokens() -> None:
    scheduler = queue_of(job(1, n_tokens=3), job(2, "b", n_tokens=4), job(3, n_tokens=5))
    assert (scheduler.n_rows, scheduler.n_tokens) == (3, 12)
    scheduler.cancel([2])
    assert (scheduler.n_rows, scheduler.n_tokens) == (2, 8)
    scheduler.next_step(0.0)
    assert (scheduler.n_rows, scheduler.n_tokens) == (0, 0)


# ---------------------------------------------------------------------------------------- one step


def test_a_step_is_full_when_its_rows_are() -> None:
    scheduler = queue_of(*map(job, range(5)), within=limits(batch_rows=2))
    assert [order(scheduler) for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_a_step_is_full_when_its_tokens_are() -> None:
    scheduler = queue_of(*map(job, range(5)), within=limits(batch_tokens=29))
    assert [order(scheduler) for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_tokens_that_fit_exactly_fit() -> None:
    assert order(queue_of(*map(job, range(5)), within=limits(batch_tokens=30))) == [0, 1, 2]


def test_a_row_longer_than_a_step_goes_alone() -> None:
    scheduler = queue_of(job(1, n_tokens=31), job(2), job(3), within=limits(batch_tokens=30))
    assert [order(scheduler) for _ in range(2)] == [[1], [2, 3]]


def test_a_long_row_that_does_not_fit_ends_the_step_and_is_first_in_the_next() -> None:
    scheduler = queue_of(job(1), job(2, n_tokens=25), job(3), within=limits(batch_tokens=30))
    assert [order(scheduler) for _ in range(3)] == [[1], [2], [3]]


# ---------------------------------------------------------------------------------------- fair shares


def test_callers_with_equal_rows_take_turns() -> None:
    scheduler = queue_of(*[job(n, "a") for n in (1, 2, 3)], *[job(n, "b") for n in (4, 5, 6)])
    assert order(scheduler) == [1, 4, 2, 5, 3, 6]


def test_shares_are_counted_in_cost_and_not_in_rows() -> None:
    expensive = [job(n, "a", cost=30.0) for n in (1, 2)]
    scheduler = queue_of(*expensive, *[job(n, "b") for n in range(3, 9)])
    assert order(scheduler) == [1, 3, 4, 5, 2, 6, 7, 8]


def test_task_sets_of_a_caller_take_turns_inside_its_share() -> None:
    a = [job(n, "a", ("intent",)) for n in (1, 2, 3, 4)]
    b = [job(n, "b", ("mood",)) for n in (5, 6)] + [job(n, "b", ("intent", "mood")) for n in (7, 8)]
    assert order(queue_of(*a, *b)) == [1, 5, 2, 7, 3, 6, 4, 8]


def test_shares_of_task_sets_are_counted_in_cost_too() -> None:
    expensive = [job(n, "a", ("intent",), cost=30.0) for n in (1, 2)]
    scheduler = queue_of(*expensive, *[job(n, "a", ("mood",)) for n in range(3, 9)])
    assert order(scheduler) == [1, 3, 4, 5, 2, 6, 7, 8]


def test_what_was_served_before_the_queue_was_empty_does_not_blur_later_shares() -> None:
    scheduler = queue_of(job(0, cost=2.0**60))
    scheduler.next_step(0.0)
    expensive = [job(n, "a", cost=30.0) for n in (1, 2)]
    scheduler.add([*expensive, *[job(n, "b") for n in range(3, 9)]], 0.0)
    assert order(scheduler) == [1, 3, 4, 5, 2, 6, 7, 8]


def test_a_caller_does_not_get_more_by_asking_for_more_task_sets() -> None:
    many = [job(n, "a", (f"task {n}",)) for n in range(4)]
    one = [job(n, "b") for n in range(4, 8)]
    assert order(queue_of(*many, *one)) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_an_idle_caller_collects_no_credit() -> None:
    scheduler = queue_of(*[job(n, "busy") for n in range(40)], within=limits(batch_rows=20))
    scheduler.next_step(0.0)
    scheduler.add([job(n, "late") for n in range(40, 44)], 1.0)
    assert order(scheduler, 1.0)[:8] == [20, 40, 21, 41, 22, 42, 23, 43]


def test_a_caller_who_comes_back_after_each_answer_does_not_crowd_out_another() -> None:
    scheduler = queue_of(*[job(n, "patient", cost=10.0) for n in range(10)], within=limits(batch_rows=1))
    ids = count(100)
    served = []
    for _ in range(20):
        scheduler.add([job(next(ids), "eager")], 0.0)
        served += order(scheduler)
    assert sum(number < 100 for number in served) == 10


def test_ever_new_callers_do_not_keep_one_waiting() -> None:
    scheduler = queue_of(*[job(n, "old") for n in range(20)], within=limits(batch_rows=1))
    newcomers = count(100)
    served: list[int] = []
    for _ in range(60):
        # two others wait before every step, so that a third of all steps is the old one's
        old_ones = 20 - sum(number < 100 for number in served)
        while scheduler.n_rows < old_ones + 2:
            number = next(newcomers)
            scheduler.add([job(number, f"new {number}")], 0.0)
        served += order(scheduler)
    assert sum(number < 100 for number in served) == 20


def test_task_sets_that_come_and_go_leave_the_shares_of_others_alone() -> None:
    lasting = [job(n, tasks=("intent",)) for n in range(20)] + [job(n, tasks=("mood",)) for n in range(20, 40)]
    scheduler = queue_of(*lasting, within=limits(batch_rows=3))
    served: list[int] = []
    for number in range(100, 112):
        scheduler.add([job(number, tasks=(f"task {number}",))], 0.0)
        served += order(scheduler)
    assert abs(sum(n < 20 for n in served) - sum(20 <= n < 40 for n in served)) <= 1


# ---------------------------------------------------------------------------------------- deadlines


def test_inside_a_task_set_the_earliest_deadline_is_first() -> None:
    scheduler = queue_of(job(1, deadline=3.0), job(2, deadline=1.0), job(3, deadline=2.0), job(4, deadline=1.0))
    assert order(scheduler) == [2, 4, 3, 1]


def test_deadlines_beyond_patience_keep_their_order_too() -> None:
    scheduler = queue_of(job(1), job(2, deadline=300.0), job(3, deadline=200.0))
    assert order(scheduler) == [3, 2, 1]


def test_a_job_without_deadline_counts_as_due_when_patience_ends() -> None:
    scheduler = queue_of(job(1), patience_s=5.0)
    scheduler.add([job(2, deadline=4.9), job(3, deadline=5.1)], 1.0)
    assert order(scheduler, 1.0) == [2, 1, 3]


def test_a_far_deadline_does_not_mean_to_wait_longer_than_none() -> None:
    scheduler = queue_of(job(1, deadline=3600.0), patience_s=5.0)
    scheduler.add([job(2)], 0.1)
    scheduler.add([job(3, deadline=5.2)], 0.2)
    assert order(scheduler, 0.2) == [1, 2, 3]


def test_deadlines_do_not_buy_a_greater_share() -> None:
    urgent = [job(n, "a", deadline=0.1) for n in range(3)]
    calm = [job(n, "b") for n in range(3, 6)]
    assert order(queue_of(*urgent, *calm)) == [0, 3, 1, 4, 2, 5]


def test_every_job_whose_deadline_has_come_is_dropped_and_not_run() -> None:
    deep = [job(n, deadline=float(n)) for n in range(1, 6)]
    scheduler = queue_of(job(10, "b"), *deep, job(11, "c", deadline=2.5), within=limits(batch_rows=1))
    step = scheduler.next_step(3.0)
    assert numbers(step.expired) == [1, 2, 11, 3]
    assert numbers(step.jobs) == [10]
    assert scheduler.n_rows == 2


def test_a_step_of_nothing_but_expired_jobs_runs_nothing() -> None:
    step = queue_of(job(1, deadline=1.0)).next_step(1.0)
    assert (numbers(step.jobs), numbers(step.expired)) == ([], [1])


def test_a_deadline_that_had_passed_when_the_job_came_is_seen_in_the_next_step() -> None:
    step = queue_of(job(1, deadline=-1.0), job(2)).next_step(0.0)
    assert (numbers(step.jobs), numbers(step.expired)) == ([2], [1])


def test_the_earliest_deadline_is_that_of_a_job_that_waits() -> None:
    scheduler = queue_of(job(1), job(2, deadline=7.0), job(3, "b", deadline=4.0), job(4, "b", deadline=9.0))
    assert scheduler.earliest_deadline() == 4.0
    scheduler.cancel([3])
    assert scheduler.earliest_deadline() == 7.0
    scheduler.cancel([2, 4])
    assert scheduler.earliest_deadline() is None


# ---------------------------------------------------------------------------------------- coming and going


def test_cancelled_jobs_leave_and_unknown_or_taken_numbers_are_passed_over() -> None:
    scheduler = queue_of(*map(job, range(4)), within=limits(batch_rows=1))
    assert order(scheduler) == [0]
    scheduler.cancel([0, 2, 99, 2])
    assert [order(scheduler) for _ in range(3)] == [[1], [3], []]


def test_the_room_of_a_cancelled_job_is_free_at_once() -> None:
    scheduler = queue_of(job(1), job(2), within=limits(queued_rows=2))
    scheduler.cancel([1])
    scheduler.add([job(3)], 0.0)
    assert order(scheduler) == [2, 3]


def test_a_request_of_no_rows_changes_nothing() -> None:
    scheduler = queue_of(job(1), within=limits(queued_rows=1))
    scheduler.add([], 0.0)
    assert order(scheduler) == [1]


@pytest.mark.parametrize("small", [{"queued_rows": 3}, {"queued_tokens": 39}], ids=["rows", "tokens"])
def test_a_full_queue_refuses_the_whole_request(small: dict[str, int]) -> None:
    scheduler = queue_of(job(1), job(2), within=limits(**small))
    with pytest.raises(QueueFullError, match=r"2 rows, 20 tokens does not fit; taken are 2 of .*; ask again later"):
        scheduler.add([job(3, "b", deadline=0.0), job(4)], 0.0)
    assert (scheduler.n_rows, scheduler.n_tokens, scheduler.earliest_deadline()) == (2, 20, None)
    assert order(scheduler) == [1, 2]
    scheduler.add([job(3), job(4)], 0.0)
    assert order(scheduler) == [3, 4]


@pytest.mark.parametrize("small", [{"queued_rows": 2}, {"queued_tokens": 20}], ids=["rows", "tokens"])
def test_a_queue_can_be_filled_to_its_limits(small: dict[str, int]) -> None:
    scheduler = queue_of(job(1), within=limits(**small))
    scheduler.add([job(2)], 0.0)
    assert order(scheduler) == [1, 2]


@pytest.mark.parametrize("small", [{"queued_rows": 1}, {"queued_tokens": 19}], ids=["rows", "tokens"])
def test_a_request_larger_than_the_whole_queue_is_told_that_it_can_never_fit(small: dict[str, int]) -> None:
    with pytest.raises(
        QueueFullError, match=r"2 rows, 20 tokens can never fit; the whole queue holds .*; ask for fewer"
    ):
        queue_of(job(1), job(2), within=limits(**small))


@pytest.mark.parametrize("jobs", [[job(2), job(1, "b")], [job(2), job(2)]], ids=["queued already", "twice at once"])
def test_a_number_that_is_not_its_own_is_refused(jobs: list[Job]) -> None:
    scheduler = queue_of(job(1))
    with pytest.raises(SpecError, match="two jobs have the same number"):
        scheduler.add(jobs, 0.0)
    assert order(scheduler) == [1]


# ---------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("name", Limits.__slots__)
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"limits: {name} is 0; choose 1 or more"):
        limits(**{name: 0})
    assert getattr(limits(**{name: 1}), name) == 1


@pytest.mark.parametrize("patience_s", [-1.0, math.inf, math.nan])
def test_patience_without_an_end_is_refused(patience_s: float) -> None:
    with pytest.raises(SpecError, match="patience_s"):
        Scheduler(WIDE, patience_s=patience_s)


@pytest.mark.parametrize("cost", [0.0, -1.0, math.inf, math.nan])
def test_a_cost_that_cannot_be_shared_out_is_refused(cost: float) -> None:
    with pytest.raises(SpecError, match="job 7: cost"):
        job(7, cost=cost)


def test_a_row_without_tokens_is_refused() -> None:
    with pytest.raises(SpecError, match="job 7: n_tokens is 0"):
        job(7, n_tokens=0)


def test_a_deadline_that_is_no_number_is_refused() -> None:
    with pytest.raises(SpecError, match="job 7: deadline"):
        job(7, deadline=math.nan)


def test_the_scheduler_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, trunkline.engine.scheduler; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SRC)
    assert done.stdout.strip() == "set()"
