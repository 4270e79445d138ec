"""The rules give what the paper prints: tables 1, 2 and 5 (numbers and their source in paper_tables.json)."""

import json
from pathlib import Path
from typing import Any

import pytest

from trunkline.train.candidates import Candidate, best_partial
from trunkline.train.plan import choose_by_gain, make_plan

PAPER: dict[str, Any] = json.loads((Path(__file__).parent / "paper_tables.json").read_text("utf-8"))
N_LAYERS = 12
CELLS = [(task, c) for task in PAPER["tasks"] for c in PAPER["mixed"]]


def candidate(task: str, own_layers: int, points: float, *, exit_layer: int, arm: Any = "student") -> Candidate:
    return Candidate(
        task=task.lower(),
        arm=arm,
        exit_layer=exit_layer,
        own_layers=own_layers,
        pooling="cls",
        init="teacher" if arm == "student" else "backbone",
        metric="accuracy",
        seeds=(0,),
        selection_metrics=(points,),
        dev_metrics=(points,),
        seconds=1.0,
        run_id=f"{task}-{exit_layer}-{own_layers}",
        branch_digest="d" * 64,
    )


def candidates_of_table_2(task: str) -> list[Candidate]:
    frozen, own = PAPER["teacher"]["frozen_and_own_layers"][task]
    students = [candidate(task, int(layers), row[task], exit_layer=frozen) for layers, row in PAPER["students"].items()]
    return [*students, candidate(task, own, PAPER["teacher"]["dev"][task], exit_layer=frozen, arm="partial")]


def candidates_of_table_1(task: str) -> list[Candidate]:
    return [
        candidate(task, int(layers), row[task], exit_layer=N_LAYERS - int(layers), arm="partial")
        for layers, row in PAPER["table1"].items()
        if 4 <= int(layers) <= 10
    ]


@pytest.mark.parametrize(("task", "c"), CELLS)
def test_the_rule_gives_every_cell_of_tables_2_and_5(task: str, c: str) -> None:
    chosen, _ = choose_by_gain(candidates_of_table_2(task), min_gain=float(c))
    printed = PAPER["mixed"][c]
    assert [chosen.exit_layer, chosen.own_layers] == printed["frozen_and_own_layers"][task]
    assert chosen.selection_mean == printed["dev"][task]


def test_there_are_24_cells() -> None:
    assert len(CELLS) == 24


@pytest.mark.parametrize(("c", "own_layers", "total"), [("1.0", 26, 33), ("2.0", 13, 20), ("3.0", 11, 18)])
def test_the_plan_costs_what_table_5_prints(c: str, own_layers: int, total: int) -> None:
    candidates = [one for task in PAPER["tasks"] for one in candidates_of_table_2(task)]
    plan = make_plan(
        candidates,
        min_gain=float(c),
        backbone="bert-base-uncased",
        n_layers=N_LAYERS,
        branch_folders={one.run_id: "" for one in candidates},
    )
    assert plan.trunk_depth == 7
    assert sum(task.own_layers for task in plan.tasks) == own_layers
    assert plan.layer_cost == total == PAPER["mixed"][c]["overhead_layers"]
    assert plan.single_task_layers == 96


def test_the_best_of_table_1_with_ties_to_the_fewest_layers_are_the_papers_teachers() -> None:
    best = [best_partial(candidates_of_table_1(task)) for task in PAPER["tasks"]]
    assert [one.own_layers for one in best] == [10, 5, 10, 8, 6, 5, 8, 8]
    assert [[one.exit_layer, one.own_layers] for one in best] == [
        PAPER["teacher"]["frozen_and_own_layers"][task] for task in PAPER["tasks"]
    ]
