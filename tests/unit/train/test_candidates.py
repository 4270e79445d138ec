"""Candidates: runs grouped over seeds, the best hyperparameters kept."""

import msgspec
import pytest

from tests.tiny_records import run_record
from trunkline.core.errors import SpecError
from trunkline.train.candidates import best_partial, candidates_of
from trunkline.train.spec import Hyperparameters


def test_seeds_of_one_spec_are_one_candidate() -> None:
    (found,) = candidates_of([run_record(80.0 + s, dev=70.0 + s, seed=s) for s in (2, 0, 1)])
    assert found.seeds == (0, 1, 2)
    assert found.selection_metrics == (80.0, 81.0, 82.0)
    assert found.dev_metrics == (70.0, 71.0, 72.0)
    assert (found.selection_mean, found.dev_mean, found.dev_spread, found.dev_max) == (81.0, 71.0, 1.0, 72.0)
    assert found.seconds == 7.5


def test_the_seed_that_is_used_is_the_best_on_the_selection_rows() -> None:
    records = [run_record(81.0, dev=60.0, seed=0), run_record(80.0, dev=90.0, seed=1)]
    (found,) = candidates_of(records)
    assert found.run_id == records[0].run_id


def test_the_hyperparameters_with_the_best_mean_stand_for_a_candidate() -> None:
    slow = Hyperparameters(learning_rate=1e-5)
    records = [
        *(run_record(points, seed=s, hyperparameters=slow) for s, points in enumerate((70.0, 90.0))),
        *(run_record(points, seed=s) for s, points in enumerate((81.0, 81.0))),
    ]
    (found,) = candidates_of(records)
    assert found.selection_metrics == (81.0, 81.0)


def test_exits_layers_arms_inits_and_tasks_are_candidates_of_their_own() -> None:
    records = [
        run_record(80.0),
        run_record(80.0, exit_layer=1),
        run_record(80.0, own_layers=1),
        run_record(80.0, arm="student"),
        run_record(80.0, arm="student", init="teacher"),
        run_record(80.0, arm="full", exit_layer=0, own_layers=4),
        run_record(80.0, task="other"),
        run_record(80.0, pooling="mean"),
    ]
    found = candidates_of(records)
    assert len(found) == len(records)
    assert [(c.task, c.own_layers, c.exit_layer) for c in found] == sorted(
        (c.task, c.own_layers, c.exit_layer) for c in found
    )


def test_a_run_that_was_recorded_twice_counts_once() -> None:
    (found,) = candidates_of([run_record(70.0), run_record(80.0)])
    assert found.selection_metrics == (80.0,)


def test_a_seed_taught_by_two_teachers_counts_once_with_its_latest() -> None:
    students = [
        run_record(points, arm="student", label_teachers=(name,)) for name, points in (("a", 90.0), ("b", 80.0))
    ]
    (found,) = candidates_of(students)
    assert (found.seeds, found.selection_metrics) == ((0,), (80.0,))
    assert found.run_id == students[1].run_id


def test_a_task_without_dev_rows_has_no_dev_figures() -> None:
    (found,) = candidates_of([run_record(80.0)])
    assert (found.dev_mean, found.dev_spread, found.dev_max) == (None, None, None)


def test_one_seed_has_no_spread() -> None:
    (found,) = candidates_of([run_record(80.0, dev=70.0)])
    assert found.dev_spread is None


def test_full_fine_tuning_has_no_branch() -> None:
    (found,) = candidates_of([run_record(80.0, arm="full")])
    assert found.branch_digest is None


def test_the_teacher_is_the_best_partial_fine_tuning_with_ties_to_the_fewest_layers() -> None:
    records = [
        run_record(99.0, arm="full", exit_layer=0, own_layers=4),
        run_record(85.0, exit_layer=0, own_layers=4),
        run_record(85.0, exit_layer=1, own_layers=3),
        run_record(84.0, exit_layer=2, own_layers=2),
        run_record(98.0, arm="student", own_layers=1),
    ]
    assert best_partial(candidates_of(records)).own_layers == 3


def test_means_that_differ_by_a_binary_fraction_are_a_tie() -> None:
    few, many = candidates_of([run_record(80.2, own_layers=2), run_record(80.2, exit_layer=0, own_layers=4)])
    many = msgspec.structs.replace(many, selection_metrics=(80.2 + 1e-13,))
    assert best_partial([many, few]).own_layers == 2


def test_students_need_a_partial_fine_tuning() -> None:
    with pytest.raises(SpecError, match="--layers"):
        best_partial(candidates_of([run_record(80.0, arm="full")]))


def test_a_seed_that_was_recorded_again_counts_with_its_last_record() -> None:
    first = run_record(90.0, arm="student", label_teachers=("a",))
    other = run_record(80.0, arm="student", label_teachers=("b",))
    again = run_record(70.0, arm="student", label_teachers=("a",))
    (candidate,) = candidates_of([first, other, again])
    assert candidate.selection_metrics == (70.0,)


def test_transfer_sets_compete_for_one_place() -> None:
    plain = run_record(80.0, arm="student", init="teacher")
    more = run_record(85.0, arm="student", init="teacher", transfer="a" * 64)
    worse = run_record(75.0, arm="student", init="teacher", transfer="b" * 64)
    (candidate,) = candidates_of([plain, more, worse])
    assert candidate.run_id == more.run_id


def test_students_that_start_in_teachers_of_two_lengths_are_two_candidates() -> None:
    teachers = {n: run_record(70.0, exit_layer=4 - n, own_layers=n) for n in (2, 3)}
    students = [
        run_record(points + seed, seed=seed, arm="student", own_layers=1, init="teacher", init_from=run_id)
        for points, run_id in ((80.0, teachers[2].run_id), (90.0, teachers[3].run_id), (60.0, "gone"))
        for seed in (0, 1)
    ]
    for records in ([*teachers.values(), *students], [*reversed(students), *teachers.values()]):
        found = [c for c in candidates_of(records) if c.arm == "student"]
        assert [(c.started_in, c.selection_metrics) for c in found] == [
            (2, (80.0, 81.0)), (3, (90.0, 91.0)), ("gone", (60.0, 61.0)),
        ]  # fmt: skip
        assert found[0].run_ids == (students[0].run_id, students[1].run_id)


def test_seeds_that_start_in_teachers_of_one_length_are_one_candidate() -> None:
    teachers = [run_record(70.0, seed=seed) for seed in (0, 1)]
    students = [
        run_record(80.0, seed=seed, arm="student", own_layers=1, init="teacher", init_from=teacher.run_id)
        for seed, teacher in enumerate(teachers)
    ]
    (found,) = [c for c in candidates_of([*teachers, *students]) if c.arm == "student"]
    assert (found.seeds, found.started_in) == ((0, 1), 2)


def test_the_order_of_candidates_does_not_depend_on_the_ledgers() -> None:
    records = [run_record(80.0, pooling=pooling) for pooling in ("mean", "cls")]
    assert [c.pooling for c in candidates_of(records)] == ["cls", "mean"]
    assert candidates_of(records) == candidates_of(records[::-1])


def test_warm_starts_in_two_branches_are_not_seeds_of_one_candidate() -> None:
    first = [run_record(points, seed=seed, init="branch", init_from="a") for seed, points in enumerate((80.0, 82.0))]
    second = [run_record(points, seed=seed, init="branch", init_from="b") for seed, points in enumerate((70.0, 95.0))]
    (candidate,) = candidates_of([first[0], second[0], second[1], first[1]])
    assert candidate.selection_metrics == (70.0, 95.0)
    cold = run_record(99.0)
    assert {c.init for c in candidates_of([*first, cold])} == {"backbone", "branch"}
