"""`headline`: one mixed plan for the paper's tasks beside full fine-tuning, from the runs of paper-tables (MPNet).

Free depth adds students at further exits; `python -m benchmarks.paper_tables_run` runs them last.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import msgspec

from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import half_width, measured_by, publish, runs_facts
from benchmarks.paper_tables import CONTAMINATED, QUICK, ledger_records, n_dev_rows, quick_study, study_of
from benchmarks.paper_tables_run import STUDY
from trunkline.core.errors import TrainingError
from trunkline.train.candidates import Candidate, best_partial, candidates_of
from trunkline.train.contest import PlanRequest, contest_of
from trunkline.train.pareto import draw_pareto, pareto_of
from trunkline.train.plan import Plan, plan_contest
from trunkline.train.price import Budget
from trunkline.train.spec import Arm, Init, RunRecord, TrainRequest, teachers_of
from trunkline.train.study import asked_records

LAYER_SHARE = 0.30
"""The paper's mixed plan has 34.4% of the layers of full fine-tuning and 99.6% of its average."""

_Place: TypeAlias = tuple[Arm, int, int, Init]
"""What a request asks for, but for its seeds: arm, exit layer, own layers, start."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A task of which everything that was asked has run.

    Attributes:
        task: Its name.
        n_seeds_asked: How many seeds the study asks for.
        seeds: Those that every arm has; all figures are of these.
        full: Full fine-tuning.
        options: What a plan may choose from.
    """

    task: str
    n_seeds_asked: int
    seeds: tuple[int, ...]
    full: Candidate
    options: tuple[Candidate, ...]


def measure(*, quick: bool, out: Path) -> Measured:
    """Plan what the ledgers hold and compare it with full fine-tuning of the same tasks.

    Args:
        quick: A tiny study with MiniLM is trained first, and planned.
        out: Of the result; the picture of the fronts goes beside it.

    Raises:
        TrainingError: No task is done yet.
    """
    if quick:
        study, records = quick_study()
        asked = {entry.name: [study.requests[entry.name]] for entry in QUICK}
    else:
        records = ledger_records()
        study, width = study_of(records[-1]), records[-1].sizes.width
        asked = {entry.name: [entry.request(width), entry.free_depth(width)] for entry in STUDY}
    # The study's own filter: runs at other rates, or of a teacher that is no longer chosen, do not compete.
    used = asked_records(study, records)
    found = [finished_of(task, requests, used) for task, requests in asked.items()]
    finished = [each for each in found if each is not None]
    if not finished:
        raise TrainingError(
            "headline: no task is done yet; do some: python -m benchmarks.paper_tables_run --minutes 60"
        )
    used = [record for record in used if record.spec.task in {each.task for each in finished}]
    plan = _plan(finished, records[-1], out)
    rows = [_row(each, plan) for each in sorted(finished, key=lambda each: each.task)]
    return Measured(
        figures=figures_of(rows, plan),
        details={"tasks": rows, "plan": msgspec.to_builtins(plan), "runs": runs_facts(used)},
    )


def finished_of(task: str, requests: Sequence[TrainRequest], records: Sequence[RunRecord]) -> Finished | None:
    """What a task offers when every arm has at least one seed in common; else None.

    Args:
        task: Its name.
        requests: All that is asked of it.
        records: Those that the study asks for (`trunkline.train.study.asked_records`).
    """
    own = [record for record in records if record.spec.task == task]
    if not own:
        return None
    n_layers = own[0].sizes.n_layers
    found: dict[_Place, Candidate] = {(c.arm, c.exit_layer, c.own_layers, c.init): c for c in candidates_of(own)}
    wanted = {place for request in requests for place in _first_places(request, n_layers)}
    if not wanted <= found.keys():
        return None
    wanted |= {place for request in requests for place in _student_places(request, found, n_layers)}
    if not wanted <= found.keys():
        return None
    seeds = set.intersection(*(set(found[place].seeds) for place in wanted))
    if not seeds:
        return None
    cut = {place: _cut(found[place], seeds, own) for place in sorted(wanted)}
    return Finished(
        task=task,
        n_seeds_asked=len(requests[0].seeds),
        seeds=tuple(sorted(seeds)),
        full=next(c for c in cut.values() if c.arm == "full"),
        options=tuple(c for c in cut.values() if c.arm != "full"),
    )


def _first_places(request: TrainRequest, n_layers: int) -> list[_Place]:
    """Full fine-tuning and every L."""
    return [("full", 0, n_layers, "backbone"), *(("partial", n_layers - n, n, "backbone") for n in request.layers)]


def _student_places(request: TrainRequest, found: Mapping[_Place, Candidate], n_layers: int) -> list[_Place]:
    """Students of the teacher that is chosen now."""
    teacher = best_partial([found["partial", n_layers - n, n, "backbone"] for n in teachers_of(request)])
    return [
        ("student", exit_layer, count, init)
        for exit_layer in request.student_exits or (teacher.exit_layer,)
        for count in request.student_layers
        for init in request.student_inits
        if exit_layer + count <= n_layers
    ]


def _cut(candidate: Candidate, seeds: set[int], records: Sequence[RunRecord]) -> Candidate:
    """The candidate over these seeds alone."""
    kept = [index for index, seed in enumerate(candidate.seeds) if seed in seeds]
    best = max(kept, key=lambda index: candidate.selection_metrics[index])
    run_id = candidate.run_ids[best]
    return msgspec.structs.replace(
        candidate,
        seeds=tuple(candidate.seeds[index] for index in kept),
        selection_metrics=tuple(candidate.selection_metrics[index] for index in kept),
        dev_metrics=tuple(candidate.dev_metrics[index] for index in kept),
        run_ids=tuple(candidate.run_ids[index] for index in kept),
        run_id=run_id,
        branch_digest=next(record.branch_digest for record in reversed(records) if record.run_id == run_id),
    )


def _plan(finished: Sequence[Finished], last: RunRecord, out: Path) -> Plan:
    n_layers = last.sizes.n_layers
    options = [candidate for each in finished for candidate in each.options]
    contest = contest_of(
        options, backbone=last.backbone, n_layers=n_layers, branch_folders={c.run_id: "" for c in options}
    )
    # Of one task alone so few layers are no whole branch; the share that is asked for stands in the figures.
    budget = Budget(amount=max(math.floor(LAYER_SHARE * n_layers * len(finished)), n_layers), unit="layers")
    request = PlanRequest(budget=budget)
    plan = plan_contest(contest, request)
    draw_pareto(pareto_of(contest, request, plan), out.with_suffix(".png"))
    return plan


def _row(each: Finished, plan: Plan) -> dict[str, Any]:
    planned = next(p for p in plan.tasks if p.task == each.task)
    mixed = next(c for c in each.options if c.run_id == planned.run_id)
    entry = next((e for e in STUDY if e.name == each.task), None)
    full = each.full
    return {
        "task": each.task,
        "metric": full.metric,
        "train_rows": "all" if entry is None or entry.rows is None else entry.rows,
        "n_dev_rows": n_dev_rows(each.task),
        "seeds": list(each.seeds),
        "n_seeds_asked": each.n_seeds_asked,
        "full": {"mean": full.dev_mean, "spread": full.dev_spread, "max": full.dev_max},
        "mixed": {"mean": mixed.dev_mean, "spread": mixed.dev_spread, "max": mixed.dev_max},
        "selection": {"full": full.selection_mean, "mixed": mixed.selection_mean},
        "arm": mixed.arm,
        "exit_layer": mixed.exit_layer,
        "own_layers": mixed.own_layers,
        "reason": planned.reason,
    }


def figures_of(rows: Sequence[dict[str, Any]], plan: Plan) -> dict[str, float]:
    """Averages over the tasks, with and without those whose kind of data the backbone saw."""
    full, mixed = (fmean(row[arm]["mean"] for row in rows) for arm in ("full", "mixed"))
    clean = [row for row in rows if row["task"] not in CONTAMINATED]
    asked = 0.0 if plan.budget is None else plan.budget.amount
    figures = {
        "tasks": float(len(rows)),
        "seeds_min": float(min(len(row["seeds"]) for row in rows)),
        "full_average": full,
        "mixed_average": mixed,
        "mixed_share_of_full": mixed / full,
        "budget_share": asked / plan.single_task_layers,
        "layer_share": plan.layer_cost / plan.single_task_layers,
        "flops_share": plan.flops_share,
    }
    if clean:
        clean_full, clean_mixed = (fmean(row[arm]["mean"] for row in clean) for arm in ("full", "mixed"))
        figures |= {
            "full_average_uncontaminated": clean_full,
            "mixed_average_uncontaminated": clean_mixed,
            "mixed_share_of_full_uncontaminated": clean_mixed / clean_full,
        }
    return figures


def write_page(path: Path) -> None:
    """Put the table into the page when the result is the kept one."""
    publish(path, "headline", table=markdown_table)


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task: dev in points, mean over seeds ± standard deviation (maximum), and what was chosen.

    Of an accuracy the half-width of its 95% interval on the dev rows stands behind it.
    """
    headings = ("task", "metric", "train rows", "seeds", "full", "mixed", "difference", "exit + own", "arm")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    lines += [_line(row) for row in result["details"]["tasks"]]
    f, plan = result["figures"], result["details"]["plan"]
    budget = plan["budget"]["amount"]
    cost = f"{plan['layer_cost']} of {plan['single_task_layers']} layers, {100 * f['flops_share']:.0f}% of FLOPs"
    lines.append(_average("average", f["full_average"], f["mixed_average"], cost))
    if "full_average_uncontaminated" in f and any(row["task"] in CONTAMINATED for row in result["details"]["tasks"]):
        name = f"average without {', '.join(task.upper() for task in CONTAMINATED)}"
        lines.append(_average(name, f["full_average_uncontaminated"], f["mixed_average_uncontaminated"], ""))
    said = (
        f"Asked for: {budget:g} of {plan['single_task_layers']} layers ({100 * f['budget_share']:.1f}%). Seeds: those "
        "that every arm of a task has, of those that are asked for; [±] is the half-width of the 95% interval on the "
        "dev rows."
    )
    return "\n".join([*lines, "", f"{said} {measured_by(result)}"])


def _average(name: str, full: float, mixed: float, cost: str) -> str:
    share = f"({100 * mixed / full:.1f}%)"
    shown = f"**{cost}**" if cost else ""
    return f"| **{name}** | | | | **{full:.1f}** | **{mixed:.1f}** {share} | **{mixed - full:+.1f}** | {shown} | |"


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['task']} | {row['metric']} | {row['train_rows']} | {len(row['seeds'])} of {row['n_seeds_asked']} | "
        f"{_cell(row, 'full')} | {_cell(row, 'mixed')} | {row['mixed']['mean'] - row['full']['mean']:+.1f} | "
        f"{row['exit_layer']} + {row['own_layers']} | {row['arm']} |"
    )


def _cell(row: dict[str, Any], arm: str) -> str:
    found = row[arm]
    interval = f" [±{half_width(found['mean'], row['n_dev_rows']):.1f}]" if row["metric"] == "accuracy" else ""
    if found["spread"] is None:
        return f"{found['mean']:.1f}{interval}"
    return f"{found['mean']:.1f} ± {found['spread']:.1f} ({found['max']:.1f}){interval}"


BENCHMARK = Benchmark(
    name="headline",
    purpose="one mixed plan for the paper's tasks beside full fine-tuning, from the runs of paper-tables (MPNet)",
    measure=measure,
    after=write_page,
)
