"""`headline`: one mixed plan for the paper's tasks beside full fine-tuning, from the runs of paper-tables (MPNet).

Free depth adds students at further exits; `python -m benchmarks.paper_tables_run` runs them last.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from benchmarks import paper_tables
from benchmarks.harness import RESULTS, ROOT, Benchmark, Measured
from benchmarks.pages import half_width, measured_by, replace_between
from benchmarks.paper_tables import CONTAMINATED, ledger_records
from benchmarks.paper_tables_run import STUDY
from trunkline.core.errors import TrainingError
from trunkline.train.candidates import Candidate, candidates_of, comparable
from trunkline.train.contest import PlanRequest, contest_of
from trunkline.train.pareto import draw_pareto, pareto_of
from trunkline.train.plan import Plan, plan_contest
from trunkline.train.price import Budget
from trunkline.train.spec import RunRecord

LAYER_SHARE = 0.30
"""The paper's mixed plan has 34.4% of the layers of full fine-tuning and 99.6% of its average."""
PAGE = ROOT / "docs" / "benchmarks" / "headline.md"
TABLE = ("<!-- table: headline -->", "<!-- end of table -->")


def measure(*, quick: bool, out: Path) -> Measured:
    """Plan what the ledgers hold and compare it with full fine-tuning of the same tasks.

    Args:
        quick: A tiny study with MiniLM is trained first, and planned.
        out: Of the result; the picture of the fronts goes beside it.

    Raises:
        TrainingError: No task has full fine-tunings, teachers and students yet.
    """
    if quick:
        paper_tables.measure(quick=True, out=out)
        records = paper_tables.quick_records()
    else:
        records = ledger_records()
    candidates = candidates_of(comparable(records))
    full = {c.task: c for c in candidates if c.arm == "full"}
    arms = {task: {c.arm for c in candidates if c.task == task} for task in full}
    tasks = [task for task in full if {"full", "partial", "student"} <= arms[task]]
    if not tasks:
        raise TrainingError(
            "headline: no task is done yet; do some: python -m benchmarks.paper_tables_run --minutes 60"
        )
    plan = _plan([c for c in candidates if c.task in tasks], records[-1], out)
    chosen = {p.task: _chosen(p.run_id, candidates) for p in plan.tasks}
    rows = [_row(task, full[task], chosen[task], plan) for task in sorted(tasks)]
    return Measured(figures=_figures(rows, plan), details={"tasks": rows, "plan": msgspec.to_builtins(plan)})


def _plan(candidates: Sequence[Candidate], last: RunRecord, out: Path) -> Plan:
    n_layers, n_tasks = last.sizes.n_layers, len({c.task for c in candidates})
    contest = contest_of(
        candidates, backbone=last.backbone, n_layers=n_layers, branch_folders={c.run_id: "" for c in candidates}
    )
    budget = Budget(amount=max(math.floor(LAYER_SHARE * n_layers * n_tasks), n_layers), unit="layers")
    request = PlanRequest(budget=budget)
    plan = plan_contest(contest, request)
    draw_pareto(pareto_of(contest, request, plan), out.with_suffix(".png"))
    return plan


def _chosen(run_id: str, candidates: Sequence[Candidate]) -> Candidate:
    return next(c for c in candidates if c.run_id == run_id)


def _row(task: str, full: Candidate, mixed: Candidate, plan: Plan) -> dict[str, Any]:
    planned = next(p for p in plan.tasks if p.task == task)
    entry = next((e for e in STUDY if e.name == task), None)
    return {
        "task": task,
        "metric": full.metric,
        "train_rows": "all" if entry is None or entry.rows is None else entry.rows,
        "seeds": len(full.seeds),
        "full": {"mean": full.dev_mean, "spread": full.dev_spread, "max": full.dev_max},
        "mixed": {"mean": mixed.dev_mean, "spread": mixed.dev_spread, "max": mixed.dev_max, "seeds": len(mixed.seeds)},
        "selection": {"full": full.selection_mean, "mixed": mixed.selection_mean},
        "arm": mixed.arm,
        "exit_layer": mixed.exit_layer,
        "own_layers": mixed.own_layers,
        "reason": planned.reason,
    }


def _figures(rows: Sequence[dict[str, Any]], plan: Plan) -> dict[str, float]:
    full, mixed = (fmean(row[arm]["mean"] for row in rows) for arm in ("full", "mixed"))
    clean = [row for row in rows if row["task"] not in CONTAMINATED]
    figures = {
        "tasks": float(len(rows)),
        "seeds_min": float(min(min(row["seeds"], row["mixed"]["seeds"]) for row in rows)),
        "full_average": full,
        "mixed_average": mixed,
        "mixed_share_of_full": mixed / full,
        "layer_share": plan.layer_cost / plan.single_task_layers,
        "flops_share": plan.flops_share,
    }
    if clean:
        clean_full, clean_mixed = (fmean(row[arm]["mean"] for row in clean) for arm in ("full", "mixed"))
        figures["mixed_share_of_full_uncontaminated"] = clean_mixed / clean_full
    return figures


def write_page(path: Path) -> None:
    """Put the table into the page when the result is the kept one."""
    result = msgspec.json.decode(path.read_bytes())
    table = markdown_table(result)
    print(table)
    if path.resolve() == (RESULTS / "headline.json").resolve():
        replace_between(PAGE, TABLE, table)


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task: dev in points, mean over seeds ± standard deviation (maximum), and what was chosen."""
    headings = ("task", "metric", "train rows", "seeds", "full", "mixed", "difference", "exit + own", "arm")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    lines += [_line(row) for row in result["details"]["tasks"]]
    f, plan = result["figures"], result["details"]["plan"]
    lines += [
        (
            f"| **average** | | | | **{f['full_average']:.1f}** | **{f['mixed_average']:.1f}** "
            f"({100 * f['mixed_share_of_full']:.1f}%) | **{f['mixed_average'] - f['full_average']:+.1f}** | "
            f"**{plan['layer_cost']} of {plan['single_task_layers']} layers, {100 * f['flops_share']:.0f}% of FLOPs** "
            "| |"
        ),
        "",
        measured_by(result),
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['task']} | {row['metric']} | {row['train_rows']} | {row['seeds']} | {_cell(row, 'full')} | "
        f"{_cell(row, 'mixed')} | {row['mixed']['mean'] - row['full']['mean']:+.1f} | "
        f"{row['exit_layer']} + {row['own_layers']} | {row['arm']} |"
    )


def _cell(row: dict[str, Any], arm: str) -> str:
    found = row[arm]
    interval = ""
    if row["metric"] == "accuracy" and arm == "full" and row["task"] == "rte":
        interval = f" [±{half_width(found['mean'], 277):.1f} on 277 rows]"
    if found["spread"] is None:
        return f"{found['mean']:.1f}{interval}"
    return f"{found['mean']:.1f} ± {found['spread']:.1f} ({found['max']:.1f}){interval}"


BENCHMARK = Benchmark(
    name="headline",
    purpose="one mixed plan for the paper's tasks beside full fine-tuning, from the runs of paper-tables (MPNet)",
    measure=measure,
    after=write_page,
)
