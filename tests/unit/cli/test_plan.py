"""`trunkline plan` by its options, on a ledger that is made up."""

import re
import shlex
import sys
from pathlib import Path

import msgspec
import pytest

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from tests.tiny_cli import run_cli
from tests.tiny_records import run_record, run_spec
from trunkline.bundle.store import open_bundle, read_branch
from trunkline.train.ledger import Ledger
from trunkline.train.pareto import Pareto
from trunkline.train.plan import Plan, read_plan


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Candidates of two tasks, a bundle of both, and measured costs."""
    make_bundle(tmp_path, "intent", "mood")
    ledger = Ledger(tmp_path / "runs")
    for task, exit_layer, own_layers, points in (
        ("intent", 1, 1, 70.0),
        ("intent", 1, 2, 80.0),
        ("mood", 2, 1, 60.0),
        ("mood", 2, 2, 61.5),
    ):
        spec = run_spec(task=task, exit_layer=exit_layer, own_layers=own_layers)
        folder = ledger.branch_folder(spec.run_id)
        put_branch(folder, task, backbone_of(), exit_layer=exit_layer, own_layers=own_layers)
        ledger.append(run_record(points, spec=spec, branch=read_branch(folder).digest))
    (tmp_path / "costs.json").write_text('{"trunk_layer_ms": 1, "own_layer_ms": 1, "folded_layer_ms": 0.1}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_layers(plan: Plan) -> dict[str, int]:
    return {task.task: task.own_layers for task in plan.tasks}


def test_without_a_way_of_choosing_every_layer_must_bring_one_point(place: Path) -> None:
    done = run_cli("plan", "runs")
    assert "Plan, at least 1 points an added layer" in done.out
    assert own_layers(read_plan(place / "runs" / "plan.json")) == {"intent": 2, "mood": 2}


@pytest.mark.parametrize("budget", ["5layers", "3.3ms"])
def test_a_budget_gives_the_optimum(place: Path, budget: str) -> None:
    done = run_cli("plan", "runs", "--budget", budget, "--cost-table", "costs.json", "--json")
    plan = msgspec.convert(done.json(), Plan)
    assert own_layers(plan) == {"intent": 2, "mood": 1}
    assert plan == read_plan(place / "runs" / "plan.json")


@pytest.mark.usefixtures("place")
def test_floors_weights_and_tokens_are_read() -> None:
    done = run_cli(
        "plan", "runs", "--budget", "5layers", "--require", "mood=61", "--weight", "mood=2", "--tokens", "64", "--json"
    )
    plan = msgspec.convert(done.json(), Plan)
    assert own_layers(plan) == {"intent": 1, "mood": 2}
    assert (plan.floors, plan.weights, plan.tokens) == ({"mood": 61.0}, {"mood": 2.0}, 64.0)


def test_the_front_is_shown_and_written(place: Path) -> None:
    done = run_cli("plan", "runs", "--budget", "5layers", "--pareto")
    lines = done.out.splitlines()
    marked = [line for line in lines if line.startswith("*")]
    assert len(marked) == 1
    assert "intent 1@1 → 2@1" in marked[0]
    front = msgspec.json.decode((place / "runs" / "plan.pareto.json").read_bytes(), type=Pareto)
    assert [point.layer_cost for point in front.layers] == [4, 5, 6]
    assert (place / "runs" / "plan.pareto.png").exists()


def test_with_json_the_front_goes_to_its_file_alone(place: Path) -> None:
    done = run_cli("plan", "runs", "--pareto", "--json")
    assert msgspec.convert(done.json(), Plan) == read_plan(place / "runs" / "plan.json")
    assert (place / "runs" / "plan.pareto.json").exists()
    assert "fronts written to runs/plan.pareto.json" in done.err


def test_a_plan_that_is_named_as_a_front_is_not_overwritten(place: Path) -> None:
    run_cli("plan", "runs", "--pareto", "--out", "pareto.json")
    assert own_layers(read_plan(place / "pareto.json")) == {"intent": 2, "mood": 2}
    msgspec.json.decode((place / "pareto.pareto.json").read_bytes(), type=Pareto)


def test_a_budget_is_copied_from_a_refusal_and_from_a_front(place: Path) -> None:
    refused = run_cli("plan", "runs", "--budget", "1FLOP")
    found = re.search(r"the cheapest plan takes ([\d.]+ \w+);", refused.err)
    assert found is not None
    assert run_cli("plan", "runs", "--budget", found[1]).code == 0
    shown = run_cli("plan", "runs", "--budget", "1GFLOP", "--pareto").out
    costs = re.findall(r"([\d.]+ [KMG]?FLOP) \(\d+\.\d%\)", shown)
    front = msgspec.json.decode((place / "runs" / "plan.pareto.json").read_bytes(), type=Pareto).flops
    assert len(costs) == len(front) > 1
    for cost, point in zip(costs, front, strict=True):
        plan = msgspec.convert(run_cli("plan", "runs", "--budget", cost, "--json").json(), Plan)
        assert plan.flops == point.flops


@pytest.mark.usefixtures("place")
def test_without_matplotlib_the_front_lacks_its_picture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    done = run_cli("plan", "runs", "--pareto")
    assert done.code == 0
    assert "no picture was drawn: package 'matplotlib': not installed" in done.err
    assert Path("runs/plan.pareto.json").exists()


def test_one_task_is_planned_beside_a_bundle_and_put_into_it_by_the_printed_command(place: Path) -> None:
    done = run_cli("plan", "runs", "--keep", "bundle", "--task", "mood")
    assert "intent stay; planning all 2 tasks again would" in done.out.replace("\n", " ")
    plan = read_plan(place / "runs" / "plan-mood.json")
    assert own_layers(plan) == {"mood": 2}
    assert plan.kept is not None
    assert plan.kept.command is not None
    assert plan.kept.command in done.out.replace("\n", "")
    assert run_cli(*shlex.split(plan.kept.command)[1:]).code == 0
    assert open_bundle(place / "bundle").manifest.tasks["mood"].branch == plan.tasks[0].branch_digest


def test_a_plan_beside_a_bundle_is_not_merged(place: Path) -> None:
    run_cli("plan", "runs", "--keep", "bundle", "--task", "mood")
    done = run_cli("merge", "runs/plan-mood.json", "--out", "new")
    assert done.code == 1
    assert "is of one task beside those of bundle" in done.err
    assert not (place / "new").exists()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "two ways": (("--budget", "3layers", "--min-gain", "1"), "give exactly one of them"),
    "no budget": (("--budget", "much"), "budget 'much': is not a budget"),
    "too small a budget": (("--budget", "3layers"), "the cheapest plan takes 4 layers; raise the budget"),
    "milliseconds without a table": (("--budget", "3ms"), "give a cost table (--cost-table FILE)"),
    "no such table": (("--cost-table", "none.json"), "cost table 'none.json': cannot be read"),
    "a floor that is none": (("--require", "mood"), "--require is 'mood'; give a task and a number"),
    "a floor given twice": (("--require", "mood=1", "--require", "mood=2"), "--require is given twice for task 'mood'"),
    "a floor out of reach": (("--require", "mood=99"), "task 'mood': no candidate reaches 99 accuracy"),
    "a floor of an unknown task": (("--require", "moot=9"), "task 'moot' is not planned; did you mean 'mood'?"),
    "a weight of nothing": (("--budget", "9layers", "--weight", "mood=0"), "the weight of task 'mood' is 0.0"),
    "a weight by the rule": (("--weight", "mood=2"), "weights are given (of mood) beside min_gain"),
    "a bundle without a task": (("--keep", "bundle"), "--keep BUNDLE and --task TASK go together"),
    "a task without a bundle": (("--task", "mood"), "--keep BUNDLE and --task TASK go together"),
    "tasks beside a bundle": (("--keep", "bundle", "--task", "mood", "--tasks", "mood"), "and without --tasks"),
    "no such bundle": (("--keep", "none", "--task", "mood"), "none: there is no such folder"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_is_refused_before_anything_is_written(name: str) -> None:
    options, message = REFUSED[name]
    done = run_cli("plan", "runs", *options)
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert list(Path("runs").glob("*.json")) == []
