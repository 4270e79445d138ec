"""Pictures of bundles, plans and runs for a terminal: values in, rich renderables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from trunkline.bundle.manifest import Manifest, TaskEntry, deepest_exit, layer_cost
from trunkline.core.types import LabelPrediction, LabelsPrediction, Prediction, ScorePrediction
from trunkline.train.cache_room import StoreFacts
from trunkline.train.candidates import Candidate
from trunkline.train.contest import FrontPoint, FrontTask
from trunkline.train.pareto import Pareto
from trunkline.train.plan import Plan, PlannedTask
from trunkline.train.price import STEPS_OF_UNIT, Unit, cost_text
from trunkline.train.search_spec import SearchReport

if TYPE_CHECKING:
    # Both import torch, which `inspect` and `plan` can do without.
    from trunkline.engine.calibrate import Calibrated
    from trunkline.engine.evaluate import Evaluation
    from trunkline.engine.quantize import QuantizeReport

_LAYERS_DRAWN = 4  # Branches with more own layers than this are drawn as first and last.


def bundle_picture(manifest: Manifest) -> RenderableType:
    """Trunk and branches: what leaves where, with layers, metric and cost."""
    return Group(_bundle_tree(manifest), Text(), cost_table(manifest))


def cost_table(manifest: Manifest) -> Table:
    """What each part costs in layers: linear in the branches, the trunk paid once (paper section 4.1)."""
    table = Table(title="Layers that one row runs through", title_justify="left", box=None, pad_edge=False)
    table.add_column("part", overflow="fold")  # A name is folded rather than cut.
    for heading in ("asked alone", "adds to the bundle", "as a single model"):
        table.add_column(heading, justify="right")
    depth, whole = deepest_exit(manifest), manifest.n_layers
    table.add_row(f"trunk, {depth} of {whole} layers run", "", str(depth), "")
    for name, entry in _by_exit(manifest):
        table.add_row(name, f"{entry.exit_layer} + {entry.own_layers}", str(entry.own_layers), str(whole))
    total, single = layer_cost(manifest), whole * len(manifest.tasks)
    share = f" ({total / single:.0%})" if single else ""
    table.add_row("all tasks at once", "", f"{total}{share}", str(single), style="bold")
    return table


def candidate_table(candidates: Sequence[Candidate]) -> Table:
    """Every candidate with mean, spread and maximum over its seeds, in points."""
    table = Table(title="Candidates (points; mean over seeds)", title_justify="left", box=None, pad_edge=False)
    for heading in ("task", "arm", "exit", "own", "pooling"):
        table.add_column(heading)
    for heading in ("metric", "selection", "dev", "spread", "max", "seeds", "seconds"):
        table.add_column(heading, justify="right")
    starts: dict[tuple[object, ...], set[int | str | None]] = {}
    for c in candidates:
        starts.setdefault(_place_of(c), set()).add(c.started_in)
    for c in candidates:
        several = len(starts[_place_of(c)]) > 1
        arm = f"{c.arm} (from a teacher of {c.started_in})" if several else _arm(c)
        figures = (c.selection_mean, c.dev_mean, c.dev_spread, c.dev_max)
        table.add_row(
            c.task, arm, str(c.exit_layer), str(c.own_layers), c.pooling, c.metric, *map(_points, figures),
            str(len(c.seeds)), f"{c.seconds:.0f}",
        )  # fmt: skip
    return table


def plan_table(plan: Plan) -> RenderableType:
    """The chosen candidate of each task, why, and what all of them cost together."""
    way = f"at least {plan.min_gain:g} points an added layer" if plan.budget is None else f"at most {plan.budget.text}"
    table = Table(title=f"Plan, {way}", title_justify="left", box=None)
    for heading in ("task", "arm", "exit", "own", "pooling", "metric", "selection", "dev"):
        table.add_column(heading)
    for task in plan.tasks:
        table.add_row(
            task.task, _arm(task), str(task.exit_layer), str(task.own_layers), task.pooling, task.metric,
            _points(task.selection_metric), _points(task.dev_metric),
        )  # fmt: skip
    reasons = [Text(f" {task.task}: {task.reason}", style="dim") for task in plan.tasks]
    cost = (
        f"trunk {plan.trunk_depth} + branches {plan.layer_cost - plan.trunk_depth} = {plan.layer_cost} layers; "
        f"{plan.single_task_layers} for single models ({plan.layer_cost / plan.single_task_layers:.0%})"
    )
    flops = f"{cost_text(round(plan.flops), 'flops')} for a row of {plan.tokens:.0f} tokens ({plan.flops_share:.0%})"
    ms = "" if plan.ms is None else f"; {plan.ms:.4g} ms"
    mean = f"; mean {plan.mean_points:.2f} points"
    left_out = f"{plan.n_runs_left_out} runs on other rows, labels or selection were left out"
    notes = [Text(left_out, style="dim")] if plan.n_runs_left_out else []
    if plan.kept is not None:
        stay = f"bundle {plan.kept.bundle}: {', '.join(plan.kept.tasks) or 'no other task'} stay; {plan.kept.all_again}"
        notes.append(Text(stay, overflow="fold"))
        if plan.kept.other_rows:
            former = f"{', '.join(plan.kept.other_rows)} learned from other rows, labels or selection than were asked "
            notes.append(Text(f"{former}for last: their points in the mean cannot be compared", overflow="fold"))
    return Group(table, *reasons, *notes, Text(cost, style="bold"), Text(flops + ms + mean, style="bold"))


def front_table(pareto: Pareto, unit: Unit) -> RenderableType:
    """Plans that no other beats, by rising cost in one unit: what each reaches, costs, and changes."""
    title = f"Plans that no other beats in points and {unit} (* chosen; 2@4: 2 own layers from exit 4)"
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("points", "trunk", "own", "layers", "cost (of single models)", "time"):
        table.add_column(heading, justify="right")
    table.add_column("changed", overflow="fold")
    before: FrontPoint | None = None
    for point in pareto.front(unit):
        _add_plan(table, point, _changes(before, point), chosen=point.tasks == pareto.chosen.tasks)
        before = point
    if all(point.tasks != pareto.chosen.tasks for point in pareto.front(unit)):
        _add_plan(table, pareto.chosen, "not on this front", chosen=True)
    return Group(Text(title, style="italic"), table)  # A table's own title would be folded at its width.


def _add_plan(table: Table, point: FrontPoint, changes: str, *, chosen: bool) -> None:
    # Rounded up, so that each can be given as a budget.
    flops = cost_text(round(point.flops), "flops", rounding=ROUND_CEILING)
    ms = "-" if point.ms is None else cost_text(_ms_steps(point.ms), "ms", rounding=ROUND_CEILING)
    table.add_row(
        "*" if chosen else "", f"{point.mean_points:.2f}", str(point.trunk_depth),
        str(point.layer_cost - point.trunk_depth), str(point.layer_cost), f"{flops} ({point.flops_share:.1%})",
        ms, Text(changes), style="bold" if chosen else "",
    )  # fmt: skip


def _ms_steps(ms: float) -> int:
    return round(ms * STEPS_OF_UNIT["ms"])


def _changes(before: FrontPoint | None, point: FrontPoint) -> str:
    former = {} if before is None else {task.task: task for task in before.tasks}
    return ", ".join(
        f"{t.task} {_place(former[t.task])} → {_place(t)}" if former else f"{t.task} {_place(t)}"
        for t in point.tasks
        if not former or t.run_id != former[t.task].run_id
    )


def _place(task: FrontTask) -> str:
    return f"{task.own_layers}@{task.exit_layer}"


def answer_table(text: str, answers: Mapping[str, Prediction]) -> RenderableType:
    """One text with every task's answer."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan")
    table.add_column()
    for task, answer in answers.items():
        # As plain text: labels and spans may hold brackets, which rich would take for markup.
        table.add_row(task, Text(answer_text(answer)))
    return Group(Text(text, style="bold"), table)


def answer_text(answer: Prediction) -> str:
    """One answer in a few words."""
    if isinstance(answer, LabelPrediction):
        return f"{answer.label or 'abstains'} ({answer.confidence:.2f})"
    if isinstance(answer, LabelsPrediction):
        return ", ".join(f"{label} ({answer.probabilities[label]:.2f})" for label in answer.labels) or "none"
    if isinstance(answer, ScorePrediction):
        return f"{answer.score:.2f}"
    return ", ".join(f"{span.label}: {span.text!r} [{span.start}:{span.end}]" for span in answer.spans) or "no spans"


def search_table(report: SearchReport) -> RenderableType:
    """What a search tried, what became of it, and what it cost in full fine-tunings."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "tried"):
        table.add_column(heading)
    for heading in ("rows", "points", "dev", "cost"):
        table.add_column(heading, justify="right")
    table.add_column("fate")
    for tried in report.tried:
        table.add_row(
            tried.choice.stage, str(tried.choice), "all" if tried.n_rows is None else f"{tried.n_rows:,}",
            _points(tried.selection_metric), _points(tried.dev_metric), f"{tried.flops / report.full_flops:.2f}",
            tried.fate,
        )  # fmt: skip
    said = (
        f"{report.task}: {report.cost:.2f} full fine-tunings of {report.budget:g} "
        f"({report.trunk_flops / report.full_flops:.2f} of it the frozen trunk), {report.seconds:,.0f} s"
    )
    if report.exhaustive:
        said = f"{report.task}: the whole grid, {report.cost:.2f} full fine-tunings, {report.seconds:,.0f} s"
    passed_over = (
        (report.not_tried, "were beyond the budget"),
        (report.not_compared, "were not tried: too few rows to compare on a part of them"),
    )
    left = "; ".join(f"{len(choices)} choices {why}" for choices, why in passed_over if choices)
    chosen = f"teacher: {report.teacher}; worth most: {report.winner}"
    return Group(Text(said, style="bold"), table, Text(chosen), Text(left))


def store_table(title: str, stores: Sequence[StoreFacts]) -> RenderableType:
    """Stores of the activation cache, and what they take together."""
    table = Table(box=None, pad_edge=False)
    for heading in ("store", "backbone"):
        table.add_column(heading)
    for heading in ("exit", "dtype", "rows", "MB", "unused for days"):
        table.add_column(heading, justify="right")
    for s in stores:
        exit_layer = "-" if s.exit_layer is None else str(s.exit_layer)
        table.add_row(
            s.name[:12], Text(s.backbone or "-"), exit_layer, s.dtype, f"{s.n_rows:,}", f"{s.size_bytes / 1e6:,.1f}",
            f"{s.last_used_days:.1f}",
        )  # fmt: skip
    total = sum(s.size_bytes for s in stores)
    table.add_row(f"{len(stores)} stores", "", "", "", "", f"{total / 1e6:,.1f}", "", style="bold")
    return Group(Text(title, overflow="fold", no_wrap=True), table)


def _bundle_tree(manifest: Manifest) -> Tree:
    """One level of the trunk for each exit in use, side by side: a level inside the one before runs out of width."""
    depth = manifest.trunk.depth
    root = Tree(
        Text.assemble(
            ("trunk", "bold"), f"  {manifest.backbone}: {depth} of {manifest.n_layers} layers stored{_gated(manifest)}"
        )
    )
    start = 0
    for exit_layer in sorted({entry.exit_layer for entry in manifest.tasks.values()}):
        node = root.add(_part_of_trunk(start, exit_layer))
        _add_branches(node, manifest, exit_layer)
        start = exit_layer
    if start < depth:
        root.add(Text(f"{_part_of_trunk(start, depth)}: no branch reads so deep", style="dim"))
    return root


def _gated(manifest: Manifest) -> str:
    return "" if manifest.trunk.gate is None else f", accepted in {manifest.trunk.precision}"


def _part_of_trunk(start: int, stop: int) -> str:
    if start == stop:
        return "embeddings"
    return f"layer {start}" if stop - start == 1 else f"layers {start}-{stop - 1}"


def _add_branches(node: Tree, manifest: Manifest, exit_layer: int) -> None:
    for name, entry in _by_exit(manifest):
        if entry.exit_layer == exit_layer:
            reached = f"{entry.metric} {_points(entry.dev_metric)}"
            layers = _own_layers(exit_layer, entry.own_layers)
            served = "" if manifest.trunk.gate is None else f", {entry.precision if entry.gate else 'never judged'}"
            node.add(
                Text.assemble((name, "bold cyan"), f" {layers} {entry.kind}, ", (reached, "green"), f" on dev{served}")
            )


def _own_layers(start: int, count: int) -> str:
    if count > _LAYERS_DRAWN:
        return f"[{start}]..[{start + count - 1}]"
    return " ".join(f"[{start + i}]" for i in range(count))


def _by_exit(manifest: Manifest) -> list[tuple[str, TaskEntry]]:
    return sorted(manifest.tasks.items(), key=lambda item: (item[1].exit_layer, item[0]))


def _place_of(c: Candidate) -> tuple[object, ...]:
    return (c.task, c.arm, c.exit_layer, c.own_layers, c.pooling, c.init)


def _arm(trained: Candidate | PlannedTask) -> str:
    usual = "teacher" if trained.arm == "student" else "backbone"
    return trained.arm if trained.init == usual else f"{trained.arm} (from {trained.init})"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def evaluation_table(results: Sequence[Evaluation]) -> Table:
    """What tasks reached on labelled rows, in points."""
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "part", "metric"):
        table.add_column(heading)
    for heading in ("points", "rows", "cut", "unseen labels"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.task, r.part, r.metric, _points(r.points), str(r.n_rows), str(r.n_truncated), str(r.n_unseen_labels)
        )
    return table


def calibration_table(results: Sequence[Calibrated]) -> RenderableType:
    """What calibration changed, and what to mind about it."""
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "temperature", "thresholds", "rows", "unseen labels", "before", "after"):
        table.add_column(heading)
    for r in results:
        thresholds = " ".join(f"{t:.2f}" for t in r.calibration.thresholds or ()) or "-"
        table.add_row(
            r.task, f"{r.calibration.temperature:.2f}", thresholds, str(r.n_rows), str(r.n_unseen_labels),
            _points(r.metric_before), _points(r.metric_after),
        )  # fmt: skip
    notes = [
        Text(
            f"{r.task}: temperature {r.calibration.temperature:.2f} is at the edge of its range; these rows do not "
            "determine it (0.05: none is answered wrong; 20: the answers are no better than chance); use more rows",
            style="yellow",
        )
        for r in results
        if r.temperature_at_edge
    ]
    return Group(table, *notes)


def quantize_table(report: QuantizeReport) -> RenderableType:
    """What tasks reach in fp32, with the trunk alone in the precision that was tried, and as they are served."""
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("rows", "fp32", "trunk", "served", "loss"):
        table.add_column(heading, justify="right")
    table.add_column("branch")
    for t in report.tasks:
        reached = t.points_trunk if t.points is None else t.points
        verdict = "refused" if t.task in report.refused else "as it was"
        table.add_row(
            t.task, t.metric, f"{t.n_rows:,}", f"{t.points_fp32:.2f}", f"{t.points_trunk:.2f}",
            "-" if t.points is None else f"{t.points:.2f}", f"{t.points_fp32 - reached:.2f}", t.precision or verdict,
            style="red" if t.task in report.refused else "",
        )  # fmt: skip
    said = f"trunk in {report.trunk}: at most {report.max_loss:g} points may be lost"
    return Group(Text(said, style="bold"), table)
