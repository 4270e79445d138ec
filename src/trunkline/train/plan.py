"""Choosing one candidate for each task: by marginal benefit (paper section 4.2) or for a budget. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Protocol, TypeVar

from trunkline.bundle.files import swap_file
from trunkline.core.errors import BundleError, SpecError
from trunkline.core.specs import Metric, Pooling, Spec, decode_spec, encode_spec
from trunkline.train.candidates import Candidate
from trunkline.train.contest import (
    Contest,
    PlanRequest,
    front_of,
    meeting_floors,
    name_text,
    point_of,
    prices_of,
    read_contest,
)
from trunkline.train.price import Budget, Placed, Prices, cost_text
from trunkline.train.spec import Arm, Init


class Priced(Protocol):
    """What the rule needs to know of a candidate."""

    @property
    def own_layers(self) -> int:
        """Layers that it adds."""

    @property
    def selection_mean(self) -> float:
        """Points that it reaches."""


PricedT = TypeVar("PricedT", bound=Priced)


class PlannedTask(Spec, frozen=True, kw_only=True):
    """The candidate that was chosen for one task.

    Attributes:
        task: The task's name.
        arm: How it was trained.
        init: Where its layers started.
        pooling: Where its head reads.
        exit_layer: Trunk layers below.
        own_layers: Layers of its own.
        metric: What the figures are, in points.
        selection_metric: Mean over seeds; what it was chosen by.
        dev_metric: Mean over seeds; None without dev rows.
        run_id: The run whose branch is merged.
        branch_digest: That branch.
        branch: Its folder, absolute.
        reason: Why this one: each candidate that was looked at, and what became of it.
    """

    task: str
    arm: Arm
    init: Init
    pooling: Pooling
    exit_layer: int
    own_layers: int
    metric: Metric
    selection_metric: float
    dev_metric: float | None
    run_id: str
    branch_digest: str
    branch: str
    reason: str


class Kept(Spec, frozen=True, kw_only=True):
    """The bundle that a plan for one of its tasks leaves as it is otherwise.

    Attributes:
        bundle: Its folder, absolute.
        tasks: The tasks that stay, by name.
        command: What puts the planned branch into it; None where it is there already.
        all_again: What planning all of its tasks again would give instead.
        other_rows: Tasks that stay and whose branch is known to have learned from other rows, labels or selection than
            were asked for last; their points, which count in the mean, cannot be compared.
    """

    bundle: str
    tasks: tuple[str, ...]
    command: str | None
    all_again: str
    other_rows: tuple[str, ...] = ()

    @property
    def next_step(self) -> str:
        """What to do now, for people."""
        return "nothing to do: the bundle has this branch" if self.command is None else f"next: {self.command}"


class Plan(Spec, frozen=True, kw_only=True):
    """One candidate for each task, and what they reach and cost together.

    Attributes:
        min_gain: The least points that each added layer must bring (c in the paper); None for an optimum.
        budget: The most that the plan may cost; None for the paper's rule.
        floors: By task the least points that were asked for.
        weights: By task its weight in the mean; 1 where none is given.
        backbone: What all branches were trained on, as the user named it.
        n_layers: Of the backbone.
        tasks: The choices, by task name.
        mean_points: Weighted mean over the tasks on the selection rows.
        trunk_depth: Deepest exit layer.
        layer_cost: Trunk depth plus all own layers.
        single_task_layers: What one whole backbone a task would cost.
        tokens: Length of the row that the operations are of.
        flops: Floating-point operations of one row when every task is asked, by formula.
        flops_share: Of what one whole backbone a task would take (`trunkline.train.price.Prices.share`).
        ms: The same in milliseconds by the cost table; None without one.
        n_runs_left_out: Runs of these tasks on other rows, labels or selection than were asked for last.
        kept: The bundle whose other tasks stay; they count in all sums above. None for a plan of its own.
    """

    min_gain: float | None
    budget: Budget | None
    floors: dict[str, float]
    weights: dict[str, float]
    backbone: str
    n_layers: int
    tasks: tuple[PlannedTask, ...]
    mean_points: float
    trunk_depth: int
    layer_cost: int
    single_task_layers: int
    tokens: float
    flops: float
    flops_share: float
    ms: float | None
    n_runs_left_out: int = 0
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class _Added:
    """A candidate by the layers that it adds; beside kept branches those of a deeper trunk are included."""

    own_layers: int
    selection_mean: float
    candidate: Candidate
    name: str

    @staticmethod
    def of(candidate: Candidate, others: Sequence[Candidate], depth: int | None) -> "_Added":
        """Of one task's candidates, beside a trunk of `depth` layers that is there anyway; None where none is."""
        deeper = 0 if depth is None else max(0, candidate.exit_layer - depth)
        name = name_text(candidate, others, depth=depth, always_exit=False)
        return _Added(candidate.own_layers + deeper, candidate.selection_mean, candidate, name)


def choose_by_gain(
    candidates: Sequence[PricedT], *, min_gain: float, name: Callable[[PricedT], str] | None = None
) -> tuple[PricedT, str]:
    """The paper's rule, read per layer (paper section 4.2; design.md, section 3).

    Start at the shortest candidate. Accept the next one when its gain for each layer added since the last accepted
    one is at least `min_gain`; pass over those that do not pay. Where several have equally many layers, the
    best of them stands for that length.

    Args:
        candidates: At least one; any order.
        min_gain: c, in points a layer.
        name: Names a candidate in the reason; None for its layers alone.

    Returns:
        The last accepted candidate, and the steps that led there in words.

    Raises:
        SpecError: There are no candidates.
    """
    if not candidates:
        raise SpecError("no candidate to choose from; train some first")
    best: dict[int, PricedT] = {}
    for candidate in candidates:
        shown = best.get(candidate.own_layers)
        if shown is None or candidate.selection_mean > shown.selection_mean:
            best[candidate.own_layers] = candidate
    said = name or (lambda candidate: cost_text(candidate.own_layers, "layers"))
    lengths = sorted(best)
    chosen = best[lengths[0]]
    steps = [f"start at {said(chosen)} with {chosen.selection_mean:.1f}"]
    for length in lengths[1:]:
        nominee = best[length]
        gain = (nominee.selection_mean - chosen.selection_mean) / (length - chosen.own_layers)
        # Figures are points with one decimal in print; a hair below the bound is a tie broken by binary fractions.
        accepted = gain >= min_gain - 1e-9
        steps.append(
            f"{said(nominee)} {nominee.selection_mean:.1f} ({gain:+.2f} a layer): "
            + ("accepted" if accepted else "passed over")
        )
        if accepted:
            chosen = nominee
    return chosen, "; ".join(steps)


def plan_runs(runs: Path, *, min_gain: float, tasks: Sequence[str] | None = None) -> Plan:
    """Plan from a runs folder by the paper's rule; how many runs could not be compared stands in the plan.

    Args:
        runs: Folder that training wrote.
        min_gain: c, in points a layer.
        tasks: Plan these only; None for all.

    Raises:
        SpecError: The folder has no usable candidates, or holds runs on more than one backbone.
        UnknownNameError: A task was not trained.
    """
    return plan_contest(read_contest(runs, tasks), PlanRequest(min_gain=min_gain))


def plan_contest(contest: Contest, request: PlanRequest) -> Plan:
    """Choose for every task of a contest.

    Args:
        contest: What there is to choose from.
        request: How to choose.

    Raises:
        SpecError: No candidate of a task reaches its floor, or even the cheapest plan is beyond the budget.
        UnknownNameError: A floor or weight is of a task that is not planned.
    """
    contest = meeting_floors(contest, request)
    chosen: dict[str, tuple[Candidate, str]] = {}
    if request.min_gain is not None:
        chosen = _by_rule(contest, request.min_gain)
    if request.budget is not None:
        chosen = _by_budget(contest, request, request.budget)
    point = point_of({task: candidate for task, (candidate, _) in chosen.items()}, contest, request)
    return Plan(
        min_gain=request.min_gain,
        budget=request.budget,
        floors=request.floors,
        weights=request.weights,
        backbone=contest.backbone,
        n_layers=contest.n_layers,
        tasks=tuple(_planned(*chosen[task], contest.branch_folders) for task in sorted(chosen)),
        mean_points=point.mean_points,
        trunk_depth=point.trunk_depth,
        layer_cost=point.layer_cost,
        single_task_layers=contest.n_layers * len(point.tasks),
        tokens=request.tokens or contest.mean_tokens,
        flops=point.flops,
        flops_share=point.flops_share,
        ms=point.ms,
        n_runs_left_out=contest.n_runs_left_out,
    )


def _by_rule(contest: Contest, min_gain: float) -> dict[str, tuple[Candidate, str]]:
    """The paper's rule for each task; beside kept branches, a deeper trunk is among the layers that must pay."""
    depth = max((branch.exit_layer for branch in contest.kept.values()), default=None)
    chosen = {}
    for task, candidates in contest.options.items():
        added = [_Added.of(c, candidates, depth) for c in candidates]
        best, reason = choose_by_gain(added, min_gain=min_gain, name=lambda each: each.name)
        chosen[task] = (best.candidate, reason)
    return chosen


def _by_budget(contest: Contest, request: PlanRequest, budget: Budget) -> dict[str, tuple[Candidate, str]]:
    """The optimum: the last choice of the front that the budget allows."""
    prices = prices_of(contest, request)[budget.unit]
    front = front_of(contest, request, prices)
    affordable = [choice for cost, choice in front if cost <= budget.steps]
    if not affordable:
        cheapest = cost_text(front[0][0], budget.unit, rounding=ROUND_CEILING)
        raise SpecError(
            f"plan: budget of {budget.text}: the cheapest plan{' that keeps the floors' if request.floors else ''} "
            f"takes {cheapest}; raise the budget, or train candidates with fewer layers"
        )
    chosen = affordable[-1]
    return {task: (c, _explained(task, chosen, contest, prices, budget)) for task, c in chosen.items()}


def _explained(task: str, chosen: Mapping[str, Candidate], contest: Contest, prices: Prices, budget: Budget) -> str:
    """What other candidates of one task would give, with all other choices as they are."""
    mine, others = chosen[task], contest.options[task]

    def cost(candidate: Candidate) -> int:
        branches: dict[str, Placed] = {**contest.kept, **chosen, task: candidate}
        return prices.total(branches.values())

    def step(other: Candidate) -> str:
        saved, gained = cost(mine) - cost(other), other.selection_mean - mine.selection_mean
        change = f"{'saves' if saved >= 0 else 'adds'} {cost_text(abs(saved), prices.unit)}"
        return f"{name_text(other, others, always_exit=True)} {change} and gives {gained:+.2f} points"

    cheaper = [c for c in others if cost(c) < cost(mine)]
    better = [c for c in others if c.selection_mean > mine.selection_mean and cost(c) > budget.steps]
    said = [f"{name_text(mine, others, always_exit=True)} with {mine.selection_mean:.1f}"]
    if cheaper:
        said.append(f"cheaper: {step(max(cheaper, key=lambda c: (c.selection_mean, -cost(c))))}")
    else:
        said.append("nothing is cheaper")
    if better:
        nearest = min(better, key=lambda c: (cost(c), -c.selection_mean))
        said.append(f"dearer: {step(nearest)}, {cost_text(cost(nearest) - budget.steps, prices.unit)} over the budget")
    else:
        said.append("nothing is better")
    return "; ".join(said)


def _planned(chosen: Candidate, reason: str, branch_folders: Mapping[str, str]) -> PlannedTask:
    return PlannedTask(
        task=chosen.task,
        arm=chosen.arm,
        init=chosen.init,
        pooling=chosen.pooling,
        exit_layer=chosen.exit_layer,
        own_layers=chosen.own_layers,
        metric=chosen.metric,
        selection_metric=chosen.selection_mean,
        dev_metric=chosen.dev_mean,
        run_id=chosen.run_id,
        branch_digest=chosen.branch_digest or "",
        branch=branch_folders[chosen.run_id],
        reason=reason,
    )


def write_plan(plan: Plan, path: Path) -> Path:
    """Write a plan as JSON, whole or not at all.

    Raises:
        BundleError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"plan {str(path)!r}: its folder cannot be made ({error}); choose another place") from error
    swap_file(path, encode_spec(plan))
    return path


def read_plan(path: Path) -> Plan:
    """Read what `write_plan` wrote.

    Raises:
        SpecError: The file is missing or is no plan.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"plan {str(path)!r}: cannot be read ({error.strerror}); run `trunkline plan` first") from error
    return decode_spec(content, Plan, f"plan {str(path)!r}")
