"""Choosing candidates, and what a plan costs."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny_plans import rule_plan
from tests.tiny_records import run_record
from trunkline.core.errors import SpecError, UnknownNameError
from trunkline.train.candidates import Candidate, candidates_of
from trunkline.train.ledger import Ledger
from trunkline.train.plan import Plan, choose_by_gain, plan_runs, read_plan, write_plan
from trunkline.train.spec import RunRecord


@dataclass(frozen=True, slots=True)
class Option:
    """The least that the rule looks at."""

    own_layers: int
    selection_mean: float


def write_ledger(folder: Path, *records: RunRecord) -> Path:
    ledger = Ledger(folder)
    for record in records:
        ledger.append(record)
    return folder


def plan_of(candidates: list[Candidate], min_gain: float = 1.0) -> Plan:
    return rule_plan(candidates, min_gain=min_gain, n_layers=4)


def test_the_shortest_is_where_the_rule_starts() -> None:
    chosen, reason = choose_by_gain([Option(3, 80.5), Option(1, 80.0)], min_gain=1.0)
    assert chosen == Option(1, 80.0)
    assert reason == "start at 1 layer with 80.0; 3 layers 80.5 (+0.25 a layer): passed over"


def test_gain_is_counted_from_the_last_accepted_candidate() -> None:
    options = [Option(1, 80.0), Option(2, 80.5), Option(3, 82.0)]
    assert choose_by_gain(options, min_gain=1.0)[0] == Option(3, 82.0)
    assert choose_by_gain(options, min_gain=1.1)[0] == Option(1, 80.0)


def test_a_gain_of_exactly_min_gain_is_accepted() -> None:
    # 80.3 − 80.2 is a hair below 0.1 in binary fractions.
    assert choose_by_gain([Option(1, 80.2), Option(2, 80.3)], min_gain=0.1)[0].own_layers == 2


def test_of_equally_long_candidates_the_best_stands_for_the_length() -> None:
    options = [Option(1, 70.0), Option(2, 60.0), Option(2, 90.0), Option(1, 75.0), Option(2, 80.0)]
    assert choose_by_gain(options, min_gain=1.0)[0] == Option(2, 90.0)
    assert choose_by_gain(options, min_gain=20.0)[0] == Option(1, 75.0)


def test_with_min_gain_0_a_longer_candidate_that_is_worse_is_passed_over() -> None:
    assert choose_by_gain([Option(1, 80.0), Option(2, 79.9)], min_gain=0.0)[0] == Option(1, 80.0)


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(SpecError, match="no candidate"):
        choose_by_gain([], min_gain=1.0)


@pytest.mark.parametrize("min_gain", [-0.1, float("nan"), float("inf")])
def test_a_min_gain_that_is_no_number_from_0_is_refused(min_gain: float) -> None:
    with pytest.raises(SpecError, match=r"min_gain is .* 0 or more"):
        plan_of(candidates_of([run_record(80.0)]), min_gain)


def test_full_fine_tuning_is_never_planned() -> None:
    full = run_record(99.0, arm="full", exit_layer=0, own_layers=4)
    plan = plan_of(candidates_of([full, run_record(80.0)]), 0.0)
    assert [(task.exit_layer, task.own_layers) for task in plan.tasks] == [(2, 2)]
    with pytest.raises(SpecError, match="no task has a candidate that can be a branch"):
        plan_of(candidates_of([full]))


def test_a_plan_pays_the_trunk_once_and_every_branch() -> None:
    records = [
        run_record(80.0, task="a", exit_layer=1, own_layers=3),
        run_record(80.0, task="b", exit_layer=3, own_layers=1),
        run_record(80.0, task="c", exit_layer=2, own_layers=0),
    ]
    plan = plan_of(candidates_of(records))
    assert (plan.trunk_depth, plan.layer_cost, plan.single_task_layers) == (3, 3 + 3 + 1 + 0, 12)
    assert [task.task for task in plan.tasks] == ["a", "b", "c"]


def test_a_planned_task_says_what_it_reached_and_where_its_branch_is() -> None:
    records = [run_record(points, dev=points - 10, seed=s) for s, points in enumerate((80.0, 82.0))]
    (task,) = plan_of(candidates_of(records)).tasks
    assert (task.selection_metric, task.dev_metric) == (81.0, 71.0)
    assert task.run_id == records[1].run_id
    assert task.branch == f"/runs/{records[1].run_id}"


def test_a_runs_folder_is_planned_from_its_ledger(tmp_path: Path) -> None:
    runs = write_ledger(tmp_path, run_record(80.0), run_record(85.0, exit_layer=1, own_layers=3))
    plan = plan_runs(runs, min_gain=2.0)
    assert (plan.backbone, plan.n_layers, plan.layer_cost) == ("tiny", 4, 4)
    assert plan.tasks[0].branch == str((tmp_path / "runs" / plan.tasks[0].run_id / "branch").resolve())


def test_an_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mood'"):
        plan_runs(write_ledger(tmp_path, run_record(80.0)), min_gain=1.0, tasks=["moods"])


def test_only_the_named_tasks_are_planned(tmp_path: Path) -> None:
    runs = write_ledger(tmp_path, run_record(80.0), run_record(80.0, task="other"))
    assert [task.task for task in plan_runs(runs, min_gain=1.0, tasks=["other"]).tasks] == ["other"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has no runs; run `trunkline train` first"):
        plan_runs(tmp_path, min_gain=1.0)


def test_runs_on_two_backbones_are_refused(tmp_path: Path) -> None:
    runs = write_ledger(tmp_path, run_record(80.0), run_record(80.0, task="other", backbone_digest="x" * 64))
    with pytest.raises(SpecError, match="runs on 2 backbones"):
        plan_runs(runs, min_gain=1.0)
    assert plan_runs(runs, min_gain=1.0, tasks=["mood"]).layer_cost == 4


@pytest.mark.parametrize(
    "former",
    [{"data_digest": "old"}, {"task_digest": "old"}, {"selection": "dev"}],
    ids=lambda change: next(iter(change)),
)
def test_runs_on_former_rows_or_labels_do_not_compete(tmp_path: Path, former: dict[str, str]) -> None:
    runs = write_ledger(
        tmp_path, run_record(99.0, **former), run_record(80.0), run_record(99.0, own_layers=1, **former)
    )
    # The latest run decides what is comparable, so the second one is made the latest.
    Ledger(runs).append(run_record(80.0))
    assert [task.selection_metric for task in plan_runs(runs, min_gain=0.0).tasks] == [80.0]


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(candidates_of([run_record(80.0)]))
    assert read_plan(write_plan(plan, tmp_path / "new" / "plan.json")) == plan


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe", b'{"min_gain": "\xff"}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(SpecError, match=r"plan '.*plan\.json'"):
        read_plan(tmp_path / "plan.json")


def test_a_missing_plan_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be read .*run `trunkline plan` first"):
        read_plan(tmp_path / "plan.json")


def test_of_equally_long_candidates_one_of_more_seeds_outranks_a_lucky_one() -> None:
    students = [run_record(points, arm="student", seed=seed) for seed, points in enumerate((86.0, 84.0, 85.0))]
    lucky = run_record(85.2, seed=0)
    (planned,) = plan_of(candidates_of([*students, lucky])).tasks
    assert (planned.arm, planned.init, planned.pooling) == ("student", "backbone", "cls")
    assert planned.selection_metric == 85.0
