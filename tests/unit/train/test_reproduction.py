"""Tables and figures of the paper from made-up records: what is done, what is open, what is averaged."""

import msgspec
import pytest

from tests.tiny_study import TASKS, runs_of, study_of, teacher_id, whole_task
from trunkline.core.errors import SpecError
from trunkline.train.reproduction import Reproduction, Row, teacher_range
from trunkline.train.reproduction_tables import reproduce
from trunkline.train.spec import PRESETS, Hyperparameters, RunRecord, TrainRequest

WHOLE = [*whole_task("mood", best=3), *whole_task("topic", best=2)]
CELLS_A_TASK = 1 + 3 + 4
"""Full, three L, and students of two lengths with both starts."""


def row(made: Reproduction, name: str) -> Row:
    return next(each for each in (*made.table5, *made.table1) if each.name == name)


def test_a_whole_ledger_leaves_nothing_open() -> None:
    made = reproduce(study_of(), WHOLE)
    assert made.cells_done == made.cells_wanted == 2 * CELLS_A_TASK
    assert [(each.task, each.teacher_layers, each.finished) for each in made.tasks] == [
        ("mood", 3, True), ("topic", 2, True),
    ]  # fmt: skip
    assert {each.n_train_rows for each in made.tasks} == {100}


def test_students_of_a_teacher_of_another_length_stand_in_no_cell() -> None:
    # The chosen teacher has three layers; these come last and say that they start in the one of two.
    others = runs_of("mood", "student", 1, 2, 99.0, init="teacher", teacher=teacher_id("mood", 2))
    taught = runs_of("mood", "student", 1, 1, 99.0, teacher=teacher_id("mood", 2))
    unknown = runs_of("mood", "student", 1, 2, 99.0, init="teacher", teacher="gone")
    assert reproduce(study_of(), [*WHOLE, *others, *taught, *unknown]) == reproduce(study_of(), WHOLE)


def test_an_empty_ledger_is_all_open() -> None:
    made = reproduce(study_of(), [])
    assert (made.cells_done, made.cells_wanted) == (0, 2 * CELLS_A_TASK)
    assert [each.teacher_layers for each in made.tasks] == [None, None]
    assert made.figure5 == ()
    assert made.teacher_init_gain is None
    assert all(each.average is None and each.cost is None for each in made.table5)


def test_a_cell_has_mean_spread_and_maximum_of_its_seeds() -> None:
    cell = row(reproduce(study_of(), WHOLE), "L = 1").cells[0]
    assert (cell.task, cell.seeds, cell.dev_metrics) == ("mood", (0, 1), (60.0, 62.0))
    assert (cell.mean, cell.max, cell.selection_mean) == (61.0, 62.0, 71.0)
    assert cell.spread == pytest.approx(2**0.5)


def test_cells_are_marked_from_99_percent_of_the_mean_of_full_fine_tuning_on() -> None:
    # Full has a mean of 81, of which 99% are 80.19.
    marks = {
        cell.own_layers: cell.reaches_99 for each in reproduce(study_of(), WHOLE).table1 for cell in each.cells[:1]
    }
    assert marks == {1: False, 2: False, 3: True, 4: None}
    without_full = [record for record in WHOLE if record.spec.arm != "full"]
    assert {cell.reaches_99 for cell in reproduce(study_of(), without_full).figure2} == {None}


def test_a_cell_without_all_its_seeds_is_open_and_shows_what_it_has() -> None:
    missing = next(r for r in WHOLE if r.spec.task == "mood" and r.spec.own_layers == 1 and r.spec.seed == 1)
    made = reproduce(study_of(), [record for record in WHOLE if record is not missing])
    cell = row(made, "L = 1").cells[0]
    assert (cell.done, cell.mean, cell.spread) == (False, 60.0, None)
    assert made.cells_wanted - made.cells_done == 1
    assert [each.finished for each in made.tasks] == [False, True]


def test_averages_and_costs_are_over_finished_tasks() -> None:
    made = reproduce(study_of(), whole_task("topic", best=2))
    full, kd = row(made, "full"), row(made, "KD-1")
    assert full.average == 81.0
    assert kd.average == 66.0
    assert full.cost is not None
    assert kd.cost is not None
    assert (full.cost.trunk_depth, full.cost.own_layers, full.cost.share) == (0, 4, 1.0)
    assert (kd.cost.trunk_depth, kd.cost.own_layers, kd.cost.overhead, kd.cost.share) == (2, 1, 3, 0.75)
    assert [cell.task for cell in row(made, "mixed, c = 1").cells] == ["topic"]


def test_the_trunk_is_as_deep_as_the_deepest_exit_of_a_row() -> None:
    cost = row(reproduce(study_of(), WHOLE), "KD-2").cost
    assert cost is not None
    assert (cost.trunk_depth, cost.own_layers, cost.overhead) == (2, 4, 6)


def test_students_are_those_at_the_exit_of_the_best_teacher() -> None:
    stale = runs_of("mood", "student", 2, 1, 99.0, init="teacher")
    made = reproduce(study_of(), [*WHOLE, *stale])
    assert row(made, "KD-1").cells[0].mean == 66.0
    assert made.teacher_init_gain == pytest.approx(4.0)


def test_until_every_l_that_may_teach_has_a_run_the_teacher_is_not_known() -> None:
    records = [r for r in WHOLE if not (r.spec.task == "mood" and r.spec.arm == "partial" and r.spec.own_layers == 2)]
    made = reproduce(study_of(), records)
    assert [each.teacher_layers for each in made.tasks] == [None, 2]
    assert {cell.exit_layer for cell in row(made, "KD-1").cells} == {None, 2}
    assert made.cells_wanted == 2 * CELLS_A_TASK


def test_a_better_l_that_may_not_teach_does_not() -> None:
    better = runs_of("mood", "partial", 3, 1, 95.0)
    assert reproduce(study_of(), [*WHOLE, *better]).tasks[0].teacher_layers == 3


def test_a_student_longer_than_its_teacher_is_not_wanted() -> None:
    made = reproduce(study_of(TASKS[1:], student_layers=(1, 2, 3)), whole_task("topic", best=2))
    assert made.cells_done == made.cells_wanted == CELLS_A_TASK
    assert [each.name for each in made.table2] == ["full", "KD-1", "KD-2", "without KD", "mixed, c = 1"]


def changed(record: RunRecord, **fields: object) -> RunRecord:
    spec = msgspec.structs.replace(record.spec, **fields)
    return msgspec.structs.replace(record, spec=spec, run_id=spec.run_id, dev_metric=1.0, selection_metric=99.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"hyperparameters": Hyperparameters(learning_rate=1e-9)},
        {"seed": 7},
        {"selection": "dev", "data_digest": "d" * 64},
        {"cache_dtype": "float32"},
        {"backbone_digest": "c" * 64},
        {"fit_rows": 10},
        {"data_digest": "o" * 64},
        {"task": "other"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_runs_that_were_not_asked_for_change_nothing(fields: dict[str, object]) -> None:
    others = [changed(record, **fields) for record in WHOLE]
    assert reproduce(study_of(), [*others, *WHOLE]) == reproduce(study_of(), WHOLE)


def test_deep_partial_fine_tunings_are_found_at_the_rate_that_their_depth_takes() -> None:
    request = TrainRequest(layers=(1, 2, 3), preset=msgspec.structs.replace(PRESETS["default"], partial_layers=1))
    study = study_of(preset=request.preset)
    slower = [
        record
        for count, points in ((1, 60.0), (2, 70.0), (3, 79.5))
        for record in runs_of("mood", "partial", 4 - count, count, points)
    ]
    assert row(reproduce(study, slower), "L = 3").cells[0].seeds == ()
    asked = [changed(r, hyperparameters=request.preset.for_layers(r.spec.own_layers)) for r in slower]
    assert row(reproduce(study, asked), "L = 3").cells[0].seeds == (0, 1)


def test_what_the_mixed_rows_choose_is_by_the_selection_rows_alone() -> None:
    lucky = [msgspec.structs.replace(r, dev_metric=99.0) if r.spec.own_layers == 1 else r for r in WHOLE]
    chosen = [[cell.own_layers for cell in row(reproduce(study_of(), records), "mixed, c = 3").cells]
              for records in (WHOLE, lucky)]  # fmt: skip
    assert chosen[0] == chosen[1] == [3, 2]


@pytest.mark.parametrize(("n_layers", "expected"), [(12, (4, 6, 8)), (6, (2, 4)), (24, (8, 12))])
def test_what_may_teach_depends_on_the_depth(n_layers: int, expected: tuple[int, ...]) -> None:
    assert teacher_range((1, 2, 4, 6, 8, 12), n_layers) == expected


def test_layers_that_cannot_teach_are_refused() -> None:
    with pytest.raises(SpecError, match=r"1, 12; students on 12 layers are taught by 4 to 10"):
        teacher_range((1, 12), 12)
    with pytest.raises(SpecError, match="tuned layers: none"):
        teacher_range((), 12)
