"""Plans for a budget, floors, and the fronts: what they say and refuse."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.tiny_records import run_record
from trunkline.core.costs import CostTable
from trunkline.core.errors import BundleError, MissingDependencyError, SpecError, UnknownNameError
from trunkline.train.candidates import candidates_of
from trunkline.train.contest import Contest, PlanRequest, contest_of
from trunkline.train.pareto import Pareto, draw_pareto, pareto_of, write_pareto
from trunkline.train.plan import plan_contest
from trunkline.train.price import parse_budget
from trunkline.train.spec import RunRecord

TABLE = CostTable(trunk_layer_ms=1.0, own_layer_ms=1.0, folded_layer_ms=0.1)
RECORDS = [
    run_record(70.0, task="a", exit_layer=1, own_layers=1),
    run_record(80.0, task="a", exit_layer=1, own_layers=2),
    run_record(82.0, task="a", exit_layer=1, own_layers=3),
    run_record(60.0, task="b", exit_layer=2, own_layers=1),
    run_record(61.0, task="b", exit_layer=2, own_layers=2),
]


def contest(*records: RunRecord) -> Contest:
    candidates = candidates_of(records or RECORDS)
    folders = {c.run_id: f"/runs/{c.run_id}" for c in candidates}
    return contest_of(candidates, backbone="tiny", n_layers=4, branch_folders=folders)


def request(budget: str, **more: Any) -> PlanRequest:
    return PlanRequest(budget=parse_budget(budget), **more)


def test_a_plan_for_a_budget_takes_what_brings_most() -> None:
    plan = plan_contest(contest(), request("5 layers"))
    assert [(t.task, t.exit_layer, t.own_layers) for t in plan.tasks] == [("a", 1, 2), ("b", 2, 1)]
    assert (plan.mean_points, plan.layer_cost, plan.min_gain) == (70.0, 5, None)
    assert plan.budget == parse_budget("5layers")


def test_a_reason_names_the_best_that_is_cheaper_and_the_cheapest_that_is_better() -> None:
    reasons = {task.task: task.reason for task in plan_contest(contest(), request("5layers")).tasks}
    assert reasons["a"] == (
        "2 layers from exit 1 with 80.0; cheaper: 1 layer from exit 1 saves 1 layer and gives -10.00 points; "
        "dearer: 3 layers from exit 1 adds 1 layer and gives +2.00 points, 1 layer over the budget"
    )
    assert reasons["b"] == (
        "1 layer from exit 2 with 60.0; nothing is cheaper; "
        "dearer: 2 layers from exit 2 adds 1 layer and gives +1.00 points, 1 layer over the budget"
    )


def test_a_reason_names_another_pooling() -> None:
    records = [run_record(80.0, pooling="cls"), run_record(81.0, pooling="mean")]
    (chosen,) = plan_contest(contest(*records), request("1GFLOP")).tasks
    assert chosen.reason.startswith("2 layers from exit 2 (mean) with 81.0; cheaper: 2 layers from exit 2 (cls) saves ")


def test_a_reason_tells_candidates_of_equal_length_apart() -> None:
    teachers = [run_record(50.0 + n, exit_layer=4 - n, own_layers=n) for n in (2, 3)]
    students = [
        run_record(80.0 + n, arm="student", exit_layer=2, own_layers=1, init="teacher", init_from=teacher.run_id)
        for n, teacher in enumerate(teachers)
    ]
    cold = run_record(70.0, arm="student", exit_layer=2, own_layers=1)
    (by_rule,) = plan_contest(contest(*teachers, *students, cold), PlanRequest(min_gain=1.0)).tasks
    assert by_rule.reason.startswith("start at 1 layer (student from a teacher of 3) with 81.0; 2 layers 52.0 (")
    deep = run_record(90.0, exit_layer=3, own_layers=1)
    (by_rule,) = plan_contest(contest(cold, deep), PlanRequest(min_gain=1.0)).tasks
    assert by_rule.reason == "start at 1 layer from exit 3 (partial from the backbone) with 90.0"
    (by_budget,) = plan_contest(contest(*students, *teachers), request("3layers")).tasks
    assert by_budget.reason.startswith("1 layer from exit 2 (student from a teacher of 3) with 81.0; nothing is cheap")


def test_a_reason_says_where_nothing_is_better() -> None:
    reasons = [task.reason for task in plan_contest(contest(), request("99layers")).tasks]
    assert all(reason.endswith("; nothing is better") for reason in reasons)


def test_a_deep_exit_is_chosen_where_the_trunk_is_so_deep_anyway() -> None:
    deep = run_record(90.0, task="a", exit_layer=3, own_layers=1)
    only = run_record(60.0, task="b", exit_layer=3, own_layers=1)
    plan = plan_contest(contest(RECORDS[0], deep, only), request("5layers"))
    assert (plan.tasks[0].exit_layer, plan.layer_cost) == (3, 5)


def test_in_operations_a_cls_head_is_cheaper_than_a_mean_of_as_many_layers() -> None:
    records = [run_record(80.0, pooling="cls"), run_record(80.0, pooling="mean")]
    plan = plan_contest(contest(*records), request("1GFLOP"))
    assert plan.tasks[0].pooling == "cls"
    assert plan.flops < plan_contest(contest(records[1]), request("1GFLOP")).flops


def test_a_tagger_never_folds() -> None:
    cls, tagger = (msgspec.structs.replace(run_record(80.0), metric=metric) for metric in ("accuracy", "span_f1"))
    folded, whole = (plan_contest(contest(record), request("9layers")) for record in (cls, tagger))
    assert folded.flops < whole.flops
    assert whole.flops_share == 1.0  # A trunk of two and a branch of two layers are the backbone.


def test_operations_are_of_a_row_of_the_mean_or_the_given_length() -> None:
    assert plan_contest(contest(), request("5layers")).tokens == 10.0
    longer = plan_contest(contest(), request("5layers", tokens=20.0))
    assert longer.tokens == 20.0
    assert longer.flops > 2 * plan_contest(contest(), request("5layers")).flops * 0.9


def test_milliseconds_stand_in_a_plan_only_with_a_cost_table() -> None:
    assert plan_contest(contest(), request("5layers")).ms is None
    assert plan_contest(contest(), request("3.2ms", cost_table=TABLE)).ms == pytest.approx(2 + 1.1 + 0.1)


def test_a_weight_moves_the_budget_to_its_task() -> None:
    plan = plan_contest(contest(), request("5layers", weights={"b": 50.0}))
    assert [t.own_layers for t in plan.tasks] == [1, 2]
    assert plan.mean_points == pytest.approx((70.0 + 50 * 61.0) / 51)


def test_a_floor_holds_in_both_ways_of_choosing() -> None:
    by_budget = plan_contest(contest(), request("5layers", floors={"b": 60.5}))
    assert [t.own_layers for t in by_budget.tasks] == [1, 2]
    by_rule = plan_contest(contest(), PlanRequest(min_gain=50.0, floors={"b": 60.5}))
    assert [t.own_layers for t in by_rule.tasks] == [1, 2]
    assert by_rule.floors == {"b": 60.5}


def test_a_floor_out_of_reach_names_the_task_and_its_best() -> None:
    with pytest.raises(
        SpecError, match=r"task 'a': no candidate reaches 90 accuracy .* its best has 82\.00 \(3 layers"
    ):
        plan_contest(contest(), request("9layers", floors={"a": 90.0}))


def test_a_floor_beyond_the_budget_says_what_it_takes() -> None:
    with pytest.raises(SpecError, match=r"budget of 5 layers: the cheapest plan that keeps the floors takes 6 layers"):
        plan_contest(contest(), request("5layers", floors={"a": 81.0}))


@pytest.mark.parametrize("field", ["floors", "weights"])
def test_an_unknown_task_is_named(field: str) -> None:
    with pytest.raises(UnknownNameError, match="task 'c' is not planned; known: a, b"):
        plan_contest(contest(), request("9layers", **{field: {"c": 1.0}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give exactly one of them"),
        ({"min_gain": 1.0, "budget": parse_budget("1layer")}, "give exactly one of them"),
        ({"budget": parse_budget("1ms")}, "needs measured costs"),
        ({"min_gain": 1.0, "tokens": 0.0}, "tokens is 0.0"),
        ({"min_gain": 1.0, "tokens": 1e9}, "above 0 and up to 8192"),
        ({"min_gain": 1.0, "floors": {"a": float("nan")}}, "the floor of task 'a' is nan"),
        ({"min_gain": 1.0, "weights": {"a": 2.0}}, "leave them out, or give a budget"),
        ({"budget": parse_budget("1layer"), "weights": {"a": 0.0}}, "the weight of task 'a' is 0.0"),
    ],
)
def test_a_request_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PlanRequest(**fields)


def pareto(asked: PlanRequest) -> Pareto:
    return pareto_of(contest(), asked, plan_contest(contest(), asked))


def test_a_front_holds_the_chosen_optimum() -> None:
    found = pareto(request("5layers"))
    assert [(p.layer_cost, p.mean_points) for p in found.layers] == [(4, 65.0), (5, 70.0), (6, 71.0), (7, 71.5)]
    assert found.chosen in found.layers
    assert found.ms is None


def test_a_plan_by_the_rule_may_lie_off_the_front() -> None:
    # The rule looks at own layers alone: the deep exit looks free to it, and two layers lower down too dear.
    lower = [run_record(points, task="a", exit_layer=1, own_layers=n) for n, points in ((1, 70.0), (2, 70.9))]
    what = contest(*lower, run_record(70.1, task="a", exit_layer=3, own_layers=1))
    asked = PlanRequest(min_gain=1.0)
    found = pareto_of(what, asked, plan_contest(what, asked))
    assert (found.chosen.layer_cost, found.chosen.mean_points) == (4, 70.1)
    assert [(p.layer_cost, p.mean_points) for p in found.layers] == [(2, 70.0), (3, 70.9)]


def test_floors_hold_for_the_fronts_too() -> None:
    found = pareto(request("9layers", floors={"a": 80.0}, cost_table=TABLE))
    for front in (found.layers, found.flops, found.ms or ()):
        assert front
        assert all(task.points >= 80.0 for point in front for task in point.tasks if task.task == "a")


def test_fronts_are_written_as_json_and_as_a_picture(tmp_path: Path) -> None:
    found = pareto(request("5layers", cost_table=TABLE))
    path = write_pareto(found, tmp_path / "pareto.json")
    assert msgspec.json.decode(path.read_bytes(), type=Pareto) == found
    assert draw_pareto(found, tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["pareto.json", "pareto.png"]


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pareto.png").mkdir()
    with pytest.raises(BundleError, match=r"pareto\.png: cannot be written"):
        draw_pareto(pareto(request("5layers")), tmp_path / "pareto.png")


def test_without_matplotlib_a_picture_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trunkline\[bench\]'"):
        draw_pareto(pareto(request("5layers")), tmp_path / "pareto.png")
