"""`search-cost`: what the search spends against a full fine-tuning and the whole grid, and what its choice loses."""

import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import platformdirs
import torch

from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import t_half_width
from benchmarks.search_cost_report import write_page
from benchmarks.sets import Set
from trunkline.bundle.files import swap_file
from trunkline.core.specs import spec_digest
from trunkline.model.backbone import load_backbone
from trunkline.train.bench import Workbench
from trunkline.train.cache import ActivationCache
from trunkline.train.device import make_accelerator
from trunkline.train.ledger import Ledger
from trunkline.train.pipeline import prepare_tasks, train_task
from trunkline.train.search import TaskSearch
from trunkline.train.search_spec import SearchReport, SearchRequest
from trunkline.train.spec import TrainRequest

FRESH_SEEDS = (1, 2, 3)
N_WORKERS = 2
SETS = (
    Set("snips_intent", 1500),
    Set("sst2", 1500, "glue_sst2"),
    Set("emotion", 1500, metric="f1_macro"),
    Set("stsb", 1500, "glue_stsb", kind="regression", form="pair", metric="pearson"),
    Set("mrpc", 1500, "glue_mrpc", form="pair"),
    Set("atis_slots", 1500, kind="tagging", metric="span_f1"),
)
QUICK = (Set("snips_intent", 500),)


def measure(*, quick: bool, out: Path) -> Measured:
    """Search, grid and full fine-tuning of each task, then both winners on fresh seeds."""
    del out
    sets, seeds = (QUICK, FRESH_SEEDS[:1]) if quick else (SETS, FRESH_SEEDS)
    layers = (1,) if quick else (1, 2, 3)
    folder = (
        platformdirs.user_cache_path("trunkline") / "benchmarks" / ("search-cost-quick" if quick else "search-cost")
    )
    if quick:
        shutil.rmtree(folder, ignore_errors=True)
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(N_WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row in pool.map(_measure_set, sets, repeat(folder), repeat(seeds), repeat(layers)):
            rows.append(row)
            print(f"{row['task']}: cost {row['cost']:.2f}, regret {row['regret']:+.2f}", flush=True)
    regrets = [row["regret"] for row in rows]
    half = t_half_width(regrets)
    return Measured(
        figures={
            "tasks": float(len(rows)),
            "cost_in_full_finetunes_mean": fmean(row["cost"] for row in rows),
            "cost_in_full_finetunes_max": max(row["cost"] for row in rows),
            "seconds_in_full_finetunes_mean": fmean(row["seconds_ratio"] for row in rows),
            "grid_cost_in_full_finetunes_mean": fmean(row["grid_cost"] for row in rows),
            "regret_points_mean": fmean(regrets),
            "regret_points_max": max(regrets),
            **({} if half is None else {"regret_points_half_width": half}),
        },
        details={"tasks": rows, "fresh_seeds": seeds, "request": msgspec.to_builtins(SearchRequest())},
    )


def _measure_set(each: Set, folder: Path, seeds: Sequence[int], layers: tuple[int, ...]) -> dict[str, Any]:
    # Caches and ledgers of their own: the search must not find what the grid has paid for.
    searched, report = _search(each, folder / each.name / "search", SearchRequest(student_layers=layers))
    gridded, grid = _search(each, folder / each.name / "grid", SearchRequest(student_layers=layers, exhaustive=True))
    full = train_task(
        _bench(folder / each.name / "full"), each.task(), TrainRequest(layers=(), full=True, student_layers=())
    )[0]
    same = (report.teacher, report.winner) == (grid.teacher, grid.winner)
    chosen = [searched.again(report, seed=seed).dev_metric or 0.0 for seed in seeds]
    best = chosen if same else [gridded.again(grid, seed=seed).dev_metric or 0.0 for seed in seeds]
    return {
        "task": each.name,
        "set": asdict(each),
        "n_train_rows": full.n_train_rows,
        "metric": each.metric,
        "cost": report.cost,
        "trunk_share": report.trunk_flops / report.spent_flops,
        "seconds_ratio": report.seconds / full.seconds,
        "full_seconds": full.seconds,
        "full_dev_metric": full.dev_metric,
        "grid_cost": grid.cost,
        "regret": fmean(b - c for b, c in zip(best, chosen, strict=True)),
        "searched": {"teacher": str(report.teacher), "winner": str(report.winner), "dev_metrics": chosen},
        "grid": {"teacher": str(grid.teacher), "winner": str(grid.winner), "dev_metrics": best, "same": same},
        "tried": [
            f"{tried.choice.stage} {tried.choice} on {tried.n_rows or 'all'} rows: {tried.fate}"
            for tried in report.tried
        ],
    }


def _search(each: Set, folder: Path, request: SearchRequest) -> tuple[TaskSearch, SearchReport]:
    """The search, and its report as it was when it was first made: what a resumed one finds costs nothing now."""
    bench = _bench(folder)
    (prepared,) = prepare_tasks(bench, [each.task()], selection=request.selection)
    # Named by what was asked: a report of another set or request is another's.
    asked = spec_digest({"set": each, "request": request})
    search, path = TaskSearch(bench, prepared, request), folder / f"report-{asked[:12]}.json"
    if path.exists():
        return search, msgspec.json.decode(path.read_bytes(), type=SearchReport)
    report = search.run()
    swap_file(path, msgspec.json.encode(report))
    return search, report


def _bench(folder: Path) -> Workbench:
    cache = ActivationCache(folder / "activations")
    return Workbench.build(load_backbone("minilm"), Ledger(folder / "runs"), cache, accelerator=make_accelerator())


BENCHMARK = Benchmark(
    name="search-cost",
    purpose="what a search costs in full fine-tunings, and what its choice loses against the whole grid (MiniLM)",
    measure=measure,
    after=write_page,
)
