"""Planning one task of a bundle while the others stay."""

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from tests.tiny_records import run_record, run_spec
from trunkline.bundle.store import Bundle, read_branch
from trunkline.core.errors import BundleError, SpecError, TrunkMismatchError, UnknownNameError
from trunkline.model.cost import EncoderSizes
from trunkline.train.contest import PlanRequest
from trunkline.train.keep import plan_kept, read_kept_contest
from trunkline.train.ledger import Ledger
from trunkline.train.plan import Plan
from trunkline.train.price import parse_budget
from trunkline.train.spec import Hyperparameters
from trunkline.views import plan_table


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Two tasks: ``intent`` at exit 1 with two layers, ``mood`` (mean pooling) at exit 2 with one."""
    return make_bundle(tmp_path, "intent", "mood")


def train(runs: Path, task: str, points: float, *, exit_layer: int, own_layers: int, **changes: Any) -> str:
    """A record in the ledger, and its branch."""
    ledger = Ledger(runs)
    spec = run_spec(task=task, exit_layer=exit_layer, own_layers=own_layers, **changes)
    folder = ledger.branch_folder(spec.run_id)
    put_branch(folder, task, backbone_of(), exit_layer=exit_layer, own_layers=own_layers)
    ledger.append(run_record(points, spec=spec, branch=read_branch(folder).digest))
    return spec.run_id


def plan_for(runs: Path, bundle: Bundle, task: str, request: PlanRequest) -> Plan:
    return plan_kept(runs, bundle, read_kept_contest(runs, bundle, task), request)


def budget(text: str) -> PlanRequest:
    return PlanRequest(budget=parse_budget(text))


def test_a_plan_beside_a_bundle_names_one_task_and_counts_all(tmp_path: Path, bundle: Bundle) -> None:
    run_id = train(tmp_path / "runs", "slots", 70.0, exit_layer=2, own_layers=1)
    plan = plan_for(tmp_path / "runs", bundle, "slots", budget("9layers"))
    assert [task.task for task in plan.tasks] == ["slots"]
    assert (plan.trunk_depth, plan.layer_cost, plan.single_task_layers) == (2, 2 + 2 + 1 + 1, 12)
    assert plan.mean_points == pytest.approx((80.0 + 80.0 + 70.0) / 3)
    assert plan.kept is not None
    assert plan.kept.tasks == ("intent", "mood")
    branch = Ledger(tmp_path / "runs").branch_folder(run_id)
    assert plan.kept.command == f"trunkline attach {bundle.path} {branch}"


def test_the_budget_is_that_of_the_whole_bundle(tmp_path: Path, bundle: Bundle) -> None:
    for own_layers, points in ((1, 60.0), (2, 70.0)):
        train(tmp_path / "runs", "slots", points, exit_layer=2, own_layers=own_layers)
    chosen = [plan_for(tmp_path / "runs", bundle, "slots", budget(f"{n}layers")).tasks[0].own_layers for n in (6, 7)]
    assert chosen == [1, 2]
    with pytest.raises(SpecError, match="budget of 5 layers: the cheapest plan takes 6 layers"):
        plan_for(tmp_path / "runs", bundle, "slots", budget("5layers"))


def test_by_the_rule_a_deeper_trunk_must_pay_too(tmp_path: Path, bundle: Bundle) -> None:
    train(tmp_path / "runs", "slots", 60.0, exit_layer=2, own_layers=1)
    train(tmp_path / "runs", "slots", 62.0, exit_layer=3, own_layers=1)
    chosen = {
        gain: plan_for(tmp_path / "runs", bundle, "slots", PlanRequest(min_gain=gain)).tasks[0] for gain in (2.0, 2.1)
    }
    assert [task.exit_layer for task in chosen.values()] == [3, 2]
    assert chosen[2.0].reason == (
        "start at 1 layer from exit 2 with 60.0; 1 layer from exit 3 (+1 of trunk) 62.0 (+2.00 a layer): accepted"
    )


def test_a_branch_that_reads_deeper_than_the_trunk_needs_the_backbone(tmp_path: Path, bundle: Bundle) -> None:
    train(tmp_path / "runs", "mood", 90.0, exit_layer=3, own_layers=1)
    plan = plan_for(tmp_path / "runs", bundle, "mood", budget("9layers"))
    assert plan.kept is not None
    assert plan.kept.command is not None
    assert plan.kept.command.startswith(f"trunkline replace {bundle.path} ")
    assert plan.kept.command.endswith(" --backbone tiny")


def test_a_branch_that_is_there_already_needs_nothing(tmp_path: Path, bundle: Bundle) -> None:
    run_id = train(tmp_path / "runs", "intent", 90.0, exit_layer=1, own_layers=2)
    entry = bundle.manifest.tasks["intent"]
    there = msgspec.structs.replace(entry, provenance=msgspec.structs.replace(entry.provenance, run_id=run_id))
    manifest = msgspec.structs.replace(bundle.manifest, tasks={**bundle.manifest.tasks, "intent": there})
    plan = plan_for(tmp_path / "runs", Bundle(bundle.path, manifest), "intent", budget("9layers"))
    assert plan.kept is not None
    assert plan.kept.command is None
    assert plan.kept.next_step == "nothing to do: the bundle has this branch"


def test_what_planning_all_again_would_save_is_said(tmp_path: Path, bundle: Bundle) -> None:
    train(tmp_path / "runs", "slots", 70.0, exit_layer=1, own_layers=1)
    train(tmp_path / "runs", "intent", 80.0, exit_layer=1, own_layers=1)
    train(tmp_path / "runs", "mood", 80.0, exit_layer=1, own_layers=1)
    plan = plan_for(tmp_path / "runs", bundle, "slots", budget("9layers"))
    assert plan.kept is not None
    assert plan.kept.all_again == (
        "planning all 3 tasks again would take 4 layers instead of 6 layers, with a mean of 76.67 points instead of "
        "76.67, and other branches of intent, mood"
    )


def test_where_the_ledger_knows_too_little_it_is_said(tmp_path: Path, bundle: Bundle) -> None:
    train(tmp_path / "runs", "slots", 70.0, exit_layer=2, own_layers=1)
    plan = plan_for(tmp_path / "runs", bundle, "slots", budget("9layers"))
    assert plan.kept is not None
    assert "cannot be said (plan: task 'intent' is not in " in plan.kept.all_again


def test_a_kept_branch_counts_with_its_mean_over_seeds(tmp_path: Path, bundle: Bundle) -> None:
    runs = tmp_path / "runs"
    train(runs, "slots", 70.0, exit_layer=2, own_layers=1)
    first = train(runs, "intent", 80.0, exit_layer=1, own_layers=2)
    train(runs, "intent", 60.0, exit_layer=1, own_layers=2, seed=1)
    entry = bundle.manifest.tasks["intent"]
    known = msgspec.structs.replace(entry, provenance=msgspec.structs.replace(entry.provenance, run_id=first))
    manifest = msgspec.structs.replace(bundle.manifest, tasks={**bundle.manifest.tasks, "intent": known})
    kept = read_kept_contest(runs, Bundle(bundle.path, manifest), "slots").kept
    assert (kept["intent"].selection_mean, kept["intent"].folded) == (70.0, True)
    assert (kept["mood"].selection_mean, kept["mood"].folded, kept["mood"].mean_tokens) == (80.0, False, None)


def with_run(bundle: Bundle, task: str, run_id: str) -> Bundle:
    """The bundle as if a task's branch came of this run."""
    entry = bundle.manifest.tasks[task]
    entry = msgspec.structs.replace(entry, provenance=msgspec.structs.replace(entry.provenance, run_id=run_id))
    tasks = {**bundle.manifest.tasks, task: entry}
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, tasks=tasks))


def test_a_kept_branch_of_a_worse_seed_counts_with_the_mean_too(tmp_path: Path, bundle: Bundle) -> None:
    runs = tmp_path / "runs"
    train(runs, "slots", 70.0, exit_layer=2, own_layers=1)
    train(runs, "intent", 80.0, exit_layer=1, own_layers=2)
    worse = train(runs, "intent", 60.0, exit_layer=1, own_layers=2, seed=1)
    # Of more seeds, and so what stands for this length among the candidates.
    for seed in range(3):
        train(runs, "intent", 90.0, exit_layer=1, own_layers=2, seed=seed, hyperparameters=Hyperparameters(epochs=9))
    assert read_kept_contest(runs, with_run(bundle, "intent", worse), "slots").kept["intent"].selection_mean == 70.0


def test_a_kept_branch_of_other_rows_counts_with_its_own_points_and_it_is_said(tmp_path: Path, bundle: Bundle) -> None:
    runs = tmp_path / "runs"
    former = train(runs, "intent", 60.0, exit_layer=1, own_layers=2, data_digest="old")
    train(runs, "intent", 70.0, exit_layer=1, own_layers=2)
    train(runs, "slots", 70.0, exit_layer=2, own_layers=1)
    plan = plan_for(runs, with_run(bundle, "intent", former), "slots", budget("9layers"))
    assert plan.kept is not None
    assert plan.kept.other_rows == ("intent",)
    assert plan.mean_points == pytest.approx((80.0 + 80.0 + 70.0) / 3)
    shown = Console(width=200, file=io.StringIO())
    shown.print(plan_table(plan))
    assert "intent learned from other rows, labels or selection than were asked for last" in shown.file.getvalue()


def test_a_branch_with_other_labels_under_the_same_version_is_not_planned(tmp_path: Path, bundle: Bundle) -> None:
    runs = tmp_path / "runs"
    run_id = train(runs, "mood", 90.0, exit_layer=2, own_layers=1)
    entry = msgspec.structs.replace(bundle.manifest.tasks["mood"], labels=("x", "y", "z"))
    manifest = msgspec.structs.replace(bundle.manifest, tasks={**bundle.manifest.tasks, "mood": entry})
    with pytest.raises(BundleError, match="other labels need a version above 1"):
        plan_for(runs, Bundle(bundle.path, manifest), "mood", budget("9layers"))
    assert run_id


def test_a_branch_deeper_than_the_trunk_of_another_backbone_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    ledger = Ledger(tmp_path / "runs")
    for task, exit_layer in (("slots", 3), ("mood", 1)):
        spec = run_spec(task=task, exit_layer=exit_layer, own_layers=1)
        put_branch(
            ledger.branch_folder(spec.run_id), task, backbone_of("bert", seed=1), exit_layer=exit_layer, own_layers=1
        )
        ledger.append(run_record(70.0, spec=spec))
    with pytest.raises(TrunkMismatchError, match=r"another backbone than that of bundle .* at layer 1; train"):
        plan_for(tmp_path / "runs", bundle, "slots", budget("9layers"))


def test_a_branch_of_another_trunk_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    ledger, spec = Ledger(tmp_path / "runs"), run_spec(task="slots", exit_layer=2, own_layers=1)
    put_branch(ledger.branch_folder(spec.run_id), "slots", backbone_of("bert", seed=1), exit_layer=2, own_layers=1)
    ledger.append(run_record(70.0, spec=spec))
    with pytest.raises(TrunkMismatchError, match="task 'slots': was trained on trunk"):
        plan_for(tmp_path / "runs", bundle, "slots", budget("9layers"))


def test_a_backbone_of_another_depth_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    record = run_record(70.0, task="slots")
    sizes = EncoderSizes(n_layers=12, width=8, n_heads=2, ffn_width=16)
    Ledger(tmp_path / "runs").append(msgspec.structs.replace(record, sizes=sizes))
    with pytest.raises(SpecError, match=r"was trained on 'tiny' with 12 layers; bundle .* with 4"):
        read_kept_contest(tmp_path / "runs", bundle, "slots")


def test_a_task_that_was_not_trained_is_named(tmp_path: Path, bundle: Bundle) -> None:
    train(tmp_path / "runs", "slots", 70.0, exit_layer=2, own_layers=1)
    with pytest.raises(UnknownNameError, match="did you mean 'slots'"):
        read_kept_contest(tmp_path / "runs", bundle, "slot")
