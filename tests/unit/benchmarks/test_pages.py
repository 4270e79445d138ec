"""What the pages of results share."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import pages
from benchmarks.pages import measured_by, publish, runs_facts, t_half_width
from benchmarks.search_cost_report import markdown_table
from tests.tiny_records import run_record

RESULT: dict[str, Any] = {
    "command": "python -m benchmarks some", "commit": "0123456789abcdef+changes",
    "started_at": "2026-01-02T03:04:05+00:00", "machine": {"n_cpus": 2, "cpu": "A processor"}, "details": {},
}  # fmt: skip


def test_what_measured_a_result_is_said_with_changes_that_were_not_committed() -> None:
    assert measured_by(RESULT) == (
        "`python -m benchmarks some` at commit 0123456789 with uncommitted changes, 2026-01-02, on 2 cores "
        "(A processor; no GPU)."
    )
    assert "changes" not in measured_by({**RESULT, "commit": "0123456789abcdef"})


def test_a_result_that_sums_up_runs_says_when_and_by_what_they_were_made() -> None:
    first, second = run_record(80.0), run_record(81.0, seed=1)
    second = msgspec.structs.replace(second, finished_at="2025-03-04T00:00:00+00:00", trunkline_version="0.2.0")
    facts = runs_facts([second, first, first])
    assert facts["n_runs"] == 2
    said = measured_by({**RESULT, "details": {"runs": facts}})
    assert said.endswith("; runs of 2025-01-01 to 2025-03-04, trunkline 0.1.0, 0.2.0.")
    assert "runs of" not in measured_by({**RESULT, "details": {"runs": runs_facts([])}})


def test_the_interval_of_a_mean_is_students_t_and_of_one_value_there_is_none() -> None:
    assert t_half_width([1.0]) is None
    # Two values a and b: 12.706 times half of their distance.
    assert t_half_width([1.0, 3.0]) == pytest.approx(12.706, abs=1e-3)


@pytest.mark.parametrize("drawn", [True, False])
def test_only_the_kept_result_changes_the_page_and_only_pictures_that_are_there_are_shown(
    drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    (tmp_path / "results").mkdir()
    page = tmp_path / "some.md"
    page.write_text("before\n<!-- table: some -->\nold\n<!-- end of table -->\nafter\n", "utf-8")

    def draw(_result: dict[str, Any], path: Path) -> None:
        if drawn:
            path.write_bytes(b"")

    for path in (tmp_path / "other.json", tmp_path / "results" / "some.json"):
        assert "old" in page.read_text("utf-8")
        path.write_bytes(msgspec.json.encode(RESULT))
        publish(path, "some", table=lambda _result: "| new |", draw=draw, pictures=(".png", ".pareto.png"))
    link = "\n\n![some](../../benchmarks/results/some.png)" if drawn else ""
    assert page.read_text("utf-8") == (f"before\n<!-- table: some -->\n| new |{link}\n<!-- end of table -->\nafter\n")


def test_the_regret_of_one_task_has_no_interval() -> None:
    arm = {"winner": "exit 3 + 1", "dev_metrics": [80.0], "same": False}
    row = {
        "task": "a", "n_train_rows": 9, "cost": 1.0, "trunk_share": 0.5, "seconds_ratio": 1.0, "grid_cost": 3.0,
        "searched": arm, "grid": arm, "regret": 0.25,
    }  # fmt: skip
    figures = {
        "cost_in_full_finetunes_mean": 1.0, "seconds_in_full_finetunes_mean": 1.0,
        "grid_cost_in_full_finetunes_mean": 3.0, "regret_points_mean": 0.25,
    }  # fmt: skip
    result = {**RESULT, "figures": figures, "details": {"tasks": [row], "fresh_seeds": [1]}}
    assert "±" not in markdown_table(result)
    assert "**+0.25 ± 0.50**" in markdown_table({**result, "figures": {**figures, "regret_points_half_width": 0.5}})
