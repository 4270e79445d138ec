"""The rules give what the paper prints: tables 1, 2 and 5 (numbers and their source in paper_tables.json)."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_plans import rule_plan
from trunkline.model.cost import EncoderSizes
from trunkline.train.candidates import Candidate, best_partial
from trunkline.train.contest import PlanRequest, contest_of
from trunkline.train.plan import choose_by_gain, plan_contest
from trunkline.train.price import Budget

PAPER: dict[str, Any] = json.loads((Path(__file__).parent / "paper_tables.json").read_text("utf-8"))
N_LAYERS = 12
BERT_BASE = EncoderSizes(n_layers=N_LAYERS, width=768, n_heads=12, ffn_width=3072)
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
        sizes=BERT_BASE,
        mean_tokens=32.0,
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
    plan = rule_plan(candidates, min_gain=float(c), n_layers=N_LAYERS)
    assert plan.trunk_depth == 7
    assert sum(task.own_layers for task in plan.tasks) == own_layers
    assert plan.layer_cost == total == PAPER["mixed"][c]["overhead_layers"]
    assert plan.single_task_layers == 96


@pytest.mark.parametrize("c", PAPER["mixed"])
def test_no_plan_that_costs_as_many_layers_is_better_than_the_papers(c: str) -> None:
    candidates = [one for task in PAPER["tasks"] for one in candidates_of_table_2(task)]
    printed = PAPER["mixed"][c]
    contest = contest_of(candidates, backbone="b", n_layers=N_LAYERS, branch_folders={o.run_id: "" for o in candidates})
    budget = Budget(amount=printed["overhead_layers"], unit="layers")
    plan = plan_contest(contest, PlanRequest(budget=budget))
    mean = sum(printed["dev"].values()) / len(printed["dev"])
    assert plan.mean_points == pytest.approx(mean)
    assert {t.task: [t.exit_layer, t.own_layers] for t in plan.tasks} == {
        task.lower(): place for task, place in printed["frozen_and_own_layers"].items()
    }


def test_the_best_of_table_1_with_ties_to_the_fewest_layers_are_the_papers_teachers() -> None:
    best = [best_partial(candidates_of_table_1(task)) for task in PAPER["tasks"]]
    assert [one.own_layers for one in best] == [10, 5, 10, 8, 6, 5, 8, 8]
    assert [[one.exit_layer, one.own_layers] for one in best] == [
        PAPER["teacher"]["frozen_and_own_layers"][task] for task in PAPER["tasks"]
    ]
