"""What every benchmark writes, and what first-light's pages say of a result."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import first_light_report
from benchmarks.first_light import FULL_TRIALS, PARTIAL_TRIALS, QUICK_SETS, SETS
from benchmarks.first_light_report import markdown_protocol, markdown_table, write_page
from benchmarks.harness import Benchmark, Measured, run_benchmark
from benchmarks.pages import replace_between


def summary(*points: float, **fields: Any) -> dict[str, Any]:
    spread = 1.5 if len(points) > 1 else None
    mean = sum(points) / len(points)
    return {
        "mean": mean, "spread": spread, "max": max(points), "dev_metrics": list(points), "n_train_rows": 1200,
        "seconds_each": [10.0, 20.0], "learning_rate": 2e-4, **fields,
    }  # fmt: skip


def result_of(*, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    points = [80.0 + seed for seed in seeds]
    task = {
        "task": "glue_mrpc",
        "set": {"metric": "accuracy", "seeds": list(seeds), "n_trials": 3},
        "full": summary(*points),
        "partial": summary(*points, own_layers=4, exit_layer=2),
        "students": {n: summary(*points) for n in "123"},
        "merged": {"dev_metric": 79.5, "n_dev_rows": 400, "exit_layer": 2, "own_layers": 1},
    }
    return {
        "command": "python -m benchmarks first-light",
        "commit": "0123456789abcdef",
        "started_at": "2026-01-02T03:04:05+00:00",
        "machine": {"n_cpus": 2, "cpu": "A processor"},
        "figures": {
            "full_average": 81.0, "partial_average": 80.0, "student3_average": 79.0, "merged_average": 79.5,
            "layer_cost": 3.0, "single_task_layers": 6.0,
        },
        "details": {
            "protocol": {
                "selection": "10%; dev only reported", "epochs": 3, "full_trials": [[6, 2e-4]],
                "partial_trials": [[4, 2e-4]],
            },
            "tasks": [task],
            "cache_dtype": [{"task": "glue_mrpc", "bfloat16": [80.0, 82.0], "float32": [81.0, 82.0]}],
        },
    }  # fmt: skip


def test_a_result_holds_what_design_asks_for(tmp_path: Path) -> None:
    seen: list[Any] = []

    def measure(*, quick: bool, out: Path) -> Measured:
        seen.append((quick, out))
        return Measured(figures={"speed": 2.0}, details={"rows": [1]})

    benchmark = Benchmark(name="some", purpose="", measure=measure, after=seen.append)
    path = run_benchmark(benchmark, quick=True, out=tmp_path / "deep" / "some.json")
    assert seen == [(True, path), path]
    written = msgspec.json.decode(path.read_bytes())
    wanted = {
        "name",
        "command",
        "quick",
        "commit",
        "started_at",
        "seconds",
        "machine",
        "versions",
        "figures",
        "details",
    }
    assert set(written) == wanted
    assert written["figures"] == {"speed": 2.0}
    assert written["machine"]["n_cpus"] >= 1
    assert len(written["commit"].removesuffix("+changes")) == 40 or written["commit"] == "unknown"


def test_a_table_gives_mean_spread_and_maximum_and_the_machine() -> None:
    table = markdown_table(result_of())
    assert "| 81.0 ± 1.5 (82.0) | 81.0 ± 1.5 (82.0) (4) |" in table
    assert "400 (±3.8)" in table
    assert "on 2 cores (A processor; no GPU)" in table
    assert "| 80.0 | 80.0 (4) |" in markdown_table(result_of(seeds=(0,)))


def test_the_protocol_names_sets_with_fewer_seeds() -> None:
    assert "- Seeds: 3." in markdown_protocol(result_of())
    text = markdown_protocol(result_of(seeds=(0,)))
    assert "- Seeds: 3 (glue_mrpc 1)." in text
    assert "glue_mrpc 81.0 from bfloat16, 81.5 from float32" in text


def test_between_the_marks_a_page_is_replaced_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    for _ in range(2):
        replace_between(page, ("<!-- a -->", "<!-- b -->"), "new")
        assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- b -->\nafter\n"


def test_a_result_that_is_not_the_kept_one_changes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_light_report, "draw", lambda _result, _path: None)
    before = [page.read_bytes() for page in first_light_report.PAGES]
    path = tmp_path / "first-light.json"
    path.write_bytes(msgspec.json.encode(result_of()))
    write_page(path)
    assert [page.read_bytes() for page in first_light_report.PAGES] == before


def test_every_arm_has_as_many_trials_and_partial_fine_tuning_more_than_one_depth() -> None:
    assert {each.n_trials for each in SETS} <= {2, len(FULL_TRIALS)}
    assert len(FULL_TRIALS) == len(PARTIAL_TRIALS)
    assert len({layers for layers, _ in PARTIAL_TRIALS[:2]}) == 2
    assert {each.name for each in QUICK_SETS} <= {each.name for each in SETS}
