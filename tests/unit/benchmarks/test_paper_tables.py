"""paper-tables sums up what ledgers hold, and its page says what every such table must say."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import paper_tables, paper_tables_report
from benchmarks.paper_tables import (
    CONTAMINATED,
    QUICK,
    STUDY,
    figures_of,
    kept_study,
    ledger_records,
    quick_request,
)
from benchmarks.paper_tables_report import MARKS, NOTE, QQP_DEV, columns_table, markdown_result, write_page
from tests.tiny_records import run_record
from tests.tiny_study import study_of, whole_task
from trunkline.core.errors import TrainingError
from trunkline.train.ledger import Ledger
from trunkline.train.reproduction_tables import reproduce
from trunkline.train.spec import RunRecord

TASKS = ("rte", "qqp", "mnli")


def records(*tasks: str) -> list[RunRecord]:
    return [record for task in tasks for record in whole_task(task)]


def result_of(*done: str, contaminated: tuple[str, ...] = ("qqp", "mnli")) -> dict[str, Any]:
    made = reproduce(study_of(TASKS), records(*done))
    entries = [
        {"task": task, "metric": "accuracy", "max_train_rows": None if task == "rte" else 3000, "n_seeds": 2,
         "n_dev_rows": 277}
        for task in TASKS
    ]  # fmt: skip
    return {
        "command": "python -m benchmarks paper-tables",
        "commit": "0123456789abcdef",
        "started_at": "2026-01-02T03:04:05+00:00",
        "machine": {"n_cpus": 2, "cpu": "A processor"},
        "details": {
            "reproduction": msgspec.to_builtins(made), "contaminated": list(contaminated), "entries": entries,
        },
    }  # fmt: skip


def test_the_study_has_the_papers_eight_tasks_and_no_other() -> None:
    assert sorted(entry.name for entry in STUDY) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    assert set(CONTAMINATED) <= {entry.name for entry in STUDY}


def test_records_are_those_of_both_ledgers_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Ledger(tmp_path, name="kept.jsonl")
    monkeypatch.setattr(paper_tables, "kept_ledger", lambda: kept)
    monkeypatch.setattr(paper_tables, "FOLDER", tmp_path / "work")
    with pytest.raises(TrainingError, match=r"do some first: python -m benchmarks\.paper_tables_run"):
        ledger_records()
    first, second, third = (run_record(80.0, seed=seed) for seed in range(3))
    kept.append(first)
    kept.append(second)
    for record in (second, third):
        Ledger(tmp_path / "work" / "runs").append(record)
    # A run that was recorded again stands where it was recorded last, which says what was asked for last.
    assert [record.spec.seed for record in ledger_records()] == [0, 1, 1, 2]


def test_the_quick_study_can_be_asked_of_the_backbone_that_it_is_trained_on() -> None:
    for entry in QUICK:
        request = quick_request(entry, 6, 384)
        assert set(request.teacher_layers or ()) <= set(request.layers)
        assert request.teacher_layers


def test_what_was_run_for_the_study_is_found_by_it() -> None:
    entry = STUDY[0]
    made = [
        run_record(80.0, dev=70.0, task=entry.name, arm="full", exit_layer=0, own_layers=4, seed=seed,
                   hyperparameters=entry.request(8).preset.full)
        for seed in entry.seeds
    ]  # fmt: skip
    found = kept_study(made)
    assert found.cells_done == 1
    assert found.backbone == "all-mpnet-base-v2"
    assert [each.task for each in found.tasks] == [each.name for each in STUDY]


def test_figures_count_cells_and_give_averages_with_and_without_contaminated_tasks() -> None:
    figures = figures_of(reproduce(study_of(TASKS), records("rte", "qqp")), ("qqp", "mnli"))
    assert (figures["cells_done"], figures["cells_wanted"]) == (16.0, 24.0)
    assert (figures["tasks_finished"], figures["seeds_min"]) == (2.0, 2.0)
    assert figures["teacher_init_gain_mean"] == pytest.approx(4.0)
    assert figures["kd_1_average"] == figures["kd_1_average_uncontaminated"] == 66.0
    assert figures["kd_1_overhead_share"] == 3 / 8


def test_figures_of_nothing_are_counts_alone() -> None:
    assert figures_of(reproduce(study_of(TASKS), []), ()) == {
        "cells_done": 0.0, "cells_wanted": 24.0, "tasks_finished": 0.0, "seeds_min": 0.0,
    }  # fmt: skip


def test_a_page_says_what_the_backbone_saw_which_rows_are_a_sample_and_how_wide_the_intervals_are() -> None:
    shown = markdown_result(result_of("rte", "qqp"))
    assert shown.startswith(f"{NOTE} {QQP_DEV}\n")
    assert "without qqp, mnli" in shown
    assert "at commit 0123456789, 2026-01-02, on 2 cores (A processor; no GPU)." in shown
    lines = columns_table(result_of("rte", "qqp")).splitlines()
    # 1.96 · sqrt(0.81 · 0.19 / 277) = 4.6 points.
    assert lines[2] == "| rte | accuracy | 100 | 277 (±4.6) | 2 |"
    assert lines[3] == "| qqp | accuracy | 100 (of a sample of 3000) | 277 (±4.6) | 2 |"
    assert lines[4] == "| mnli | accuracy | open (of a sample of 3000) | 277 | 2 |"


def test_what_the_backbone_saw_is_said_only_of_tasks_that_it_saw() -> None:
    result = result_of("rte", contaminated=())
    result["details"]["reproduction"]["tasks"] = [
        {**each, "task": each["task"].replace("qqp", "sst2")} for each in result["details"]["reproduction"]["tasks"]
    ]
    result["details"]["entries"] = [each for each in result["details"]["entries"] if each["task"] != "qqp"]
    assert NOTE not in markdown_result(result)
    assert QQP_DEV not in markdown_result(result)


def test_where_every_finished_task_is_contaminated_there_is_one_average() -> None:
    assert "without" not in markdown_result(result_of("qqp")).replace("without KD", "").replace("without them", "")


def test_only_the_kept_result_changes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "paper-tables.json"
    page.write_text(f"before\n{MARKS[0]}\nYESTERDAY\n{MARKS[1]}\nafter\n", "utf-8")
    monkeypatch.setattr(paper_tables_report, "PAGE", page)
    monkeypatch.setattr(paper_tables_report, "RESULT", kept)
    result = result_of("rte")
    for path in (tmp_path / "other.json", kept):
        assert "YESTERDAY" in page.read_text("utf-8")
        path.write_bytes(msgspec.json.encode(result))
        write_page(path)
    text = page.read_text("utf-8")
    assert "YESTERDAY" not in text
    assert markdown_result(result) in text
    for name in ("table1", "figure2", "figure5"):
        assert f"![{name}](../../benchmarks/results/paper-tables.{name}.png)" in text
        assert (tmp_path / f"paper-tables.{name}.png").exists()
    assert (tmp_path / "paper-tables.md").read_text("utf-8") == markdown_result(result) + "\n"
