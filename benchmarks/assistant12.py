"""`assistant12`: one bundle of twelve assistant tasks beside full fine-tuning of the same backbone on the same rows."""

import multiprocessing
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import torch

from benchmarks.assistant12_report import write_page
from benchmarks.assistant12_run import FOLDER, N_WORKERS, QUICK, SETS, Made, make_bundle, open_bench
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import runs_facts
from benchmarks.sets import Set
from trunkline.core.specs import Pooling
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import evaluate
from trunkline.train.ledger import Ledger
from trunkline.train.pipeline import train_task
from trunkline.train.spec import RunRecord, TrainRequest

FULL_POOLINGS: tuple[Pooling, ...] = ("cls", "mean")
"""Full fine-tuning has a trial of each pooling, as the search has; the better one on the selection rows counts."""


def measure(*, quick: bool, out: Path) -> Measured:
    """Make the bundle, measure it, then fine-tune each task in full."""
    sets = QUICK if quick else SETS
    folder = FOLDER.with_name("assistant12-quick") if quick else FOLDER
    if quick:
        shutil.rmtree(folder, ignore_errors=True)
    made = make_bundle(folder, sets, folder / "bundle")
    plan = made.plan
    engine = Engine.open(folder / "bundle", backend=choose_backend(precision="fp32"))
    merged = {each.name: evaluate(engine, each.task(), "dev") for each in sets}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_WORKERS, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        full = list(pool.map(_full, sets, repeat(folder / "full")))
    shutil.copyfile(folder / "pareto.png", out.with_name(f"{out.stem}.pareto.png"))
    planned = {task.task: task for task in plan.tasks}
    rows = [
        {
            "task": each.name,
            "metric": each.metric,
            "n_train_rows": best.n_train_rows,
            "n_dev_rows": merged[each.name].n_rows,
            "full": best.dev_metric,
            "full_pooling": best.spec.pooling,
            "mixed": merged[each.name].points,
            "exit_layer": planned[each.name].exit_layer,
            "own_layers": planned[each.name].own_layers,
            "arm": planned[each.name].arm,
            "pooling": planned[each.name].pooling,
            "reason": planned[each.name].reason,
            "search_cost": report.cost,
            "search_seconds": report.seconds,
        }
        for each, best, report in zip(sets, full, made.reports, strict=True)
    ]
    used = {each.name for each in sets}
    ledgers = [Ledger(folder / "runs"), Ledger(folder / "full" / "runs")]
    records = [record for ledger in ledgers for record in ledger.records() if record.spec.task in used]
    return Measured(
        figures=_figures(rows, made),
        details={"tasks": rows, "plan": msgspec.to_builtins(plan), "runs": runs_facts(records)},
    )


def _figures(rows: Sequence[dict[str, Any]], made: Made) -> dict[str, float]:
    plan = made.plan
    return {
        "tasks": float(len(rows)),
        "seeds": 1.0,
        "full_average": fmean(row["full"] for row in rows),
        "mixed_average": fmean(row["mixed"] for row in rows),
        "layer_share": plan.layer_cost / plan.single_task_layers,
        "flops_share": plan.flops_share,
        "search_cost_mean": fmean(report.cost for report in made.reports),
        "search_minutes": made.minutes,
    }


def _full(each: Set, folder: Path) -> RunRecord:
    bench = open_bench(folder / "runs")
    request = TrainRequest(layers=(), full=True, student_layers=())
    trials = [
        train_task(bench, msgspec.structs.replace(each.task(), pooling=pooling), request)[0]
        for pooling in (FULL_POOLINGS if each.kind != "tagging" else FULL_POOLINGS[:1])
    ]
    best = max(trials, key=lambda record: record.selection_metric)
    print(f"{each.name}: full {best.dev_metric:.1f} ({best.spec.pooling})", flush=True)
    return best


BENCHMARK = Benchmark(
    name="assistant12",
    purpose="one bundle of twelve assistant tasks with MiniLM beside full fine-tuning of each",
    measure=measure,
    after=write_page,
)
