"""The paper's own cells through the reproduction give its own rows (numbers and their source: paper_tables.json)."""

import json
from pathlib import Path
from typing import Any

import pytest

from trunkline.model.cost import EncoderSizes
from trunkline.train.candidates import Candidate
from trunkline.train.reproduction import Reproduction, Row, Rows, average, task_cells, teacher_range
from trunkline.train.reproduction_tables import make_reproduction
from trunkline.train.spec import TrainRequest
from trunkline.train.study import Study

PAPER: dict[str, Any] = json.loads((Path(__file__).parent / "paper_tables.json").read_text("utf-8"))
BERT = EncoderSizes(n_layers=12, width=768, n_heads=12, ffn_width=3072)
TASKS: list[str] = PAPER["tasks"]
PRINTED_AVERAGES = {"full": 82.8, "KD-2": 79.7, "KD-3": 81.3, "without KD": 83.2, "mixed, c = 1": 82.5,
                    "mixed, c = 2": 80.4, "mixed, c = 3": 79.9}  # fmt: skip
"""KD-1 is left out: the paper prints 77.4 and its cells give 77.7."""
# What the paper's text says of its overheads, in layers.
OVERHEADS = {"full": 96, "KD-1": 15, "KD-2": 23, "KD-3": 31, "without KD": 67, "mixed, c = 1": 33, "mixed, c = 2": 20,
             "mixed, c = 3": 18}  # fmt: skip


def candidate(task: str, arm: Any, exit_layer: int, own_layers: int, points: float) -> Candidate:
    return Candidate(
        task=task,
        arm=arm,
        exit_layer=exit_layer,
        own_layers=own_layers,
        pooling="cls",
        init="teacher" if arm == "student" else "backbone",
        metric="accuracy",
        sizes=EncoderSizes(n_layers=12, width=768, n_heads=12, ffn_width=3072),
        mean_tokens=32.0,
        seeds=(0,),
        selection_metrics=(points,),
        dev_metrics=(points,),
        seconds=1.0,
        run_id=f"{task}-{arm}-{exit_layer}-{own_layers}",
        branch_digest=None,
    )


def candidates_of(task: str) -> list[Candidate]:
    """Table 1, with its last line as full fine-tuning too, and the students of table 2 at the exits printed there."""
    frozen, _ = PAPER["teacher"]["frozen_and_own_layers"][task]
    table1 = {int(layers): row[task] for layers, row in PAPER["table1"].items()}
    return [
        candidate(task, "full", 0, 12, table1[12]),
        *(candidate(task, "partial", 12 - layers, layers, points) for layers, points in table1.items()),
        *(candidate(task, "student", frozen, int(n), row[task]) for n, row in PAPER["students"].items()),
    ]


@pytest.fixture(scope="module")
def paper() -> Reproduction:
    layers = tuple(range(1, 13))
    request = TrainRequest(layers=layers, full=True, teacher_layers=teacher_range(layers, 12))
    study = Study("bert-base-uncased", "b", BERT, dict.fromkeys(TASKS, request))
    found = [each for task in TASKS for each in candidates_of(task)]
    return make_reproduction(study, task_cells(study, found, dict.fromkeys(TASKS, Rows(1000, 32.0))))


def row(rows: tuple[Row, ...], name: str) -> Row:
    return next(each for each in rows if each.name == name)


def test_those_that_may_teach_are_the_papers() -> None:
    assert teacher_range(range(1, 13), 12) == tuple(range(4, 11))


def test_the_teachers_are_the_papers(paper: Reproduction) -> None:
    assert [each.teacher_layers for each in paper.tasks] == [10, 5, 10, 8, 6, 5, 8, 8]
    assert [[cell.exit_layer, cell.own_layers] for cell in row(paper.table2, "without KD").cells] == [
        PAPER["teacher"]["frozen_and_own_layers"][task] for task in TASKS
    ]


@pytest.mark.parametrize("c", sorted(PAPER["mixed"]))
def test_the_mixed_rows_are_the_papers(paper: Reproduction, c: str) -> None:
    printed = PAPER["mixed"][c]
    mixed = row(paper.table5, f"mixed, c = {float(c):g}")
    assert [[cell.exit_layer, cell.own_layers] for cell in mixed.cells] == [
        printed["frozen_and_own_layers"][task] for task in TASKS
    ]
    assert [cell.mean for cell in mixed.cells] == [printed["dev"][task] for task in TASKS]


def test_rows_have_the_papers_order(paper: Reproduction) -> None:
    assert [each.name for each in paper.table2] == ["full", "KD-1", "KD-2", "KD-3", "without KD", "mixed, c = 1"]
    assert [each.name for each in paper.table5] == [
        "full", "KD-1", "KD-2", "KD-3", "mixed, c = 1", "mixed, c = 2", "mixed, c = 3", "without KD",
    ]  # fmt: skip
    assert [each.name for each in paper.table1] == [*(f"L = {layers}" for layers in range(1, 13)), "full"]


@pytest.mark.parametrize("name", OVERHEADS)
def test_a_row_costs_what_the_paper_prints(paper: Reproduction, name: str) -> None:
    cost = row(paper.table5, name).cost
    assert cost is not None
    assert cost.overhead == cost.trunk_depth + cost.own_layers == OVERHEADS[name]
    assert cost.share == OVERHEADS[name] / 96
    assert cost.trunk_depth == (0 if name == "full" else 7)


@pytest.mark.parametrize("name", PRINTED_AVERAGES)
def test_a_row_has_the_average_that_the_paper_prints(paper: Reproduction, name: str) -> None:
    assert row(paper.table5, name).average == pytest.approx(PRINTED_AVERAGES[name], abs=0.0501)


def test_an_average_can_leave_tasks_out(paper: Reproduction) -> None:
    full = row(paper.table5, "full")
    assert average(full, ["RTE", "CoLA"]) == pytest.approx((69.7 + 54.7) / 2)
    assert average(full, ["RTE", "none"]) is None


def test_cells_that_reach_99_percent_of_full_are_marked(paper: Reproduction) -> None:
    """The paper's text has no shading; appendix C says which students of one layer attain 99%."""
    kd1 = {cell.task: cell.reaches_99 for cell in row(paper.table2, "KD-1").cells}
    assert {task for task, reached in kd1.items() if reached} == {"QQP", "STS-B"}
    mnli = [cell.reaches_99 for each in paper.table1 for cell in each.cells if cell.task == "MNLI"]
    # 99% of 84.6 is 83.754: L = 5 has 84.0 and L = 4 has 83.3.
    assert mnli == [False] * 4 + [True] * 8 + [None]


def test_the_sweep_goes_through_the_mixed_rows_and_ends_at_the_shortest(paper: Reproduction) -> None:
    sweep = [point for point in paper.figure5 if point.min_gain is not None]
    overheads = [point.cost.overhead for point in sweep]
    assert overheads == sorted(overheads, reverse=True)
    assert {33, 20, 18, 15} <= set(overheads)
    assert overheads[-1] == 15
    assert [point.name for point in paper.figure5 if point.min_gain is None] == [each.name for each in paper.table5]


def test_operations_cost_less_than_layers_say_where_last_layers_are_folded(paper: Reproduction) -> None:
    cost = row(paper.table5, "KD-1").cost
    assert cost is not None
    # Eight folded branches are nearly free: 7 trunk layers of 8 times 11 whole ones.
    assert 7 / 88 < cost.flops_share < 8.5 / 88 < cost.share


def test_every_cell_is_done_when_every_seed_is_there(paper: Reproduction) -> None:
    assert paper.cells_done == paper.cells_wanted == 8 * (1 + 12 + 3)
    assert paper.teacher_init_gain is None
