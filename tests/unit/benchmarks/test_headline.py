"""headline plans finished tasks alone, of the study's own runs, on seeds that every arm has."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import headline
from benchmarks.headline import finished_of, markdown_table
from tests.tiny_study import runs_of, study_of, teacher_id, whole_task
from trunkline.core.errors import TrainingError
from trunkline.train.spec import Hyperparameters, RunRecord
from trunkline.train.study import asked_records

STUDY = study_of(("mood",))
FREE = msgspec.structs.replace(
    STUDY.requests["mood"], student_exits=(2, 3), student_layers=(1, 2), student_inits=("teacher",)
)
REQUESTS = [STUDY.requests["mood"], FREE]


def deeper(**changes: Any) -> list[RunRecord]:
    teacher = teacher_id("mood", 3)
    return [
        record
        for exit_layer, count, points in ((2, 1, 70.0), (2, 2, 78.0), (3, 1, 60.0))
        for record in runs_of("mood", "student", exit_layer, count, points, init="teacher", teacher=teacher, **changes)
    ]


WHOLE = [*whole_task("mood"), *deeper()]


def finished(records: list[RunRecord]) -> headline.Finished | None:
    return finished_of("mood", REQUESTS, asked_records(STUDY, records))


def test_a_task_is_done_when_every_arm_of_both_requests_is_there() -> None:
    found = finished(WHOLE)
    assert found is not None
    assert (found.seeds, found.n_seeds_asked, found.full.dev_mean) == ((0, 1), 2, 81.0)
    # Three L, two lengths with two starts at the teacher's exit, and three students at further exits.
    assert len(found.options) == 3 + 4 + 3
    for place in {place_of(record) for record in WHOLE}:
        assert finished([record for record in WHOLE if place_of(record) != place]) is None
    assert finished([]) is None


def place_of(record: RunRecord) -> tuple[str, int, int, str]:
    spec = record.spec
    return spec.arm, spec.exit_layer, spec.own_layers, spec.init


def test_all_arms_are_cut_to_the_seeds_that_they_have_in_common() -> None:
    last = WHOLE[-1]
    assert last.spec.seed == 1
    found = finished(WHOLE[:-1])
    assert found is not None
    assert (found.seeds, found.n_seeds_asked) == ((0,), 2)
    assert {c.seeds for c in (found.full, *found.options)} == {(0,)}
    assert found.full.dev_metrics == (80.0,)
    seeds = {record.run_id: record.spec.seed for record in WHOLE}
    assert {seeds[c.run_id] for c in found.options} == {0}


def test_runs_at_other_rates_do_not_compete() -> None:
    other = deeper(hyperparameters=Hyperparameters(learning_rate=9e-9))
    better = [msgspec.structs.replace(record, selection_metric=99.0) for record in other]
    assert finished([*WHOLE, *better]) == finished(WHOLE)


def test_a_plan_of_what_is_done_is_compared_with_full_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        name = "mood"
        rows = 3000

        def request(self, _width: int) -> Any:
            return REQUESTS[0]

        def free_depth(self, _width: int) -> Any:
            return REQUESTS[1]

    monkeypatch.setattr(headline, "STUDY", (Entry(),))
    monkeypatch.setattr(headline, "study_of", lambda _record: STUDY)
    monkeypatch.setattr(headline, "n_dev_rows", lambda _task: 277)
    monkeypatch.setattr(headline, "ledger_records", lambda: WHOLE[:-2])
    with pytest.raises(TrainingError, match="no task is done yet"):
        headline.measure(quick=False, out=tmp_path / "headline.json")
    monkeypatch.setattr(headline, "ledger_records", lambda: WHOLE)
    measured = headline.measure(quick=False, out=tmp_path / "headline.json")
    assert (tmp_path / "headline.png").exists()
    assert measured.figures["full_average"] == measured.figures["full_average_uncontaminated"] == 81.0
    # One task of four layers: the budget is that of one whole backbone, and it is said.
    assert measured.figures["budget_share"] == 1.0
    result = {
        "command": "python -m benchmarks headline", "commit": "0123456789abcdef", "figures": measured.figures,
        "started_at": "2026-01-02T03:04:05+00:00", "machine": {"n_cpus": 2, "cpu": "A processor"},
        "details": measured.details,
    }  # fmt: skip
    table = markdown_table(result)
    # 1.96 · sqrt(0.81 · 0.19 / 277) = 4.6 points.
    assert "| mood | accuracy | 3000 | 2 of 2 | 81.0 ± 1.4 (82.0) [±4.6] |" in table
    assert "Asked for: 4 of 4 layers (100.0%)." in table
    assert "average without" not in table
    assert "runs of 2025-01-01 to 2025-01-01, trunkline 0.1.0." in table


def test_the_average_without_tasks_that_the_backbone_saw_stands_in_the_table() -> None:
    rows = [
        {
            "task": task, "metric": "matthews", "train_rows": "all", "n_dev_rows": 9, "seeds": [0], "n_seeds_asked": 2,
            "full": {"mean": full, "spread": None, "max": full}, "mixed": {"mean": 50.0, "spread": None, "max": 50.0},
            "exit_layer": 1, "own_layers": 1, "arm": "student",
        }
        for task, full in (("qqp", 60.0), ("rte", 40.0))
    ]  # fmt: skip
    plan = {"budget": {"amount": 7}, "layer_cost": 6, "single_task_layers": 24}
    figures = {
        "full_average": 50.0, "mixed_average": 50.0, "flops_share": 0.2, "budget_share": 7 / 24,
        "full_average_uncontaminated": 40.0, "mixed_average_uncontaminated": 50.0,
    }  # fmt: skip
    table = markdown_table({
        "command": "c", "commit": "0" * 40, "started_at": "2026-01-02", "machine": {"n_cpus": 2, "cpu": "A"},
        "figures": figures, "details": {"tasks": rows, "plan": plan},
    })  # fmt: skip
    assert "| **average without QQP, MNLI, QNLI** | | | | **40.0** | **50.0** (125.0%) | **+10.0** |" in table
    assert "| qqp | matthews | all | 1 of 2 | 60.0 | 50.0 | -10.0 |" in table
