"""What a plan is chosen from and judged by: the candidates that compete, what is kept, prices and weights. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import msgspec

from trunkline.core.costs import CostTable
from trunkline.core.errors import SpecError, UnknownNameError, nearest_hint
from trunkline.core.specs import LONGEST, Spec
from trunkline.model.cost import EncoderSizes
from trunkline.train.candidates import Candidate, candidates_of, comparable, competing
from trunkline.train.ledger import Ledger
from trunkline.train.optimum import Choice, pareto_front
from trunkline.train.price import (
    LAYER_PRICES,
    Budget,
    Placed,
    Prices,
    Unit,
    cost_text,
    flop_prices,
    ms_prices,
)

_POINT = 1_000_000  # Points are compared in millionths, as whole numbers.


class PlanRequest(Spec, frozen=True, kw_only=True):
    """How a plan is chosen: by the paper's rule (`min_gain`) or as the optimum for a budget, one of the two.

    Attributes:
        min_gain: The least points that each added layer must bring (c in the paper).
        budget: The most that the plan may cost.
        floors: By task the least points on the selection rows; candidates below do not compete.
        weights: By task its weight in the mean of points, above 0; 1 where none is given. With `min_gain` there are
            none: the rule looks at each task alone.
        tokens: Length of the row that FLOPs are of; None for the mean length of the tasks' rows.
        cost_table: Measured costs; needed where the budget is in milliseconds.
    """

    min_gain: float | None = None
    budget: Budget | None = None
    floors: dict[str, float] = msgspec.field(default_factory=dict)
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    tokens: float | None = None
    cost_table: CostTable | None = None

    def __post_init__(self) -> None:
        """Refuse two ways of choosing, or none, and numbers that mean nothing."""
        if (self.min_gain is None) == (self.budget is None):
            raise SpecError("plan: min_gain and budget are two ways of choosing; give exactly one of them")
        if self.min_gain is not None and not 0 <= self.min_gain < math.inf:
            raise SpecError(
                f"plan: min_gain is {self.min_gain}; it must be 0 or more; give points a layer, for example 1.0"
            )
        if self.min_gain is not None and self.weights:
            raise SpecError(
                f"plan: weights are given (of {', '.join(self.weights)}) beside min_gain; its rule looks at each task "
                "alone, and they would change nothing; leave them out, or give a budget"
            )
        if self.budget is not None and self.budget.unit == "ms" and self.cost_table is None:
            raise SpecError("plan: a budget in ms needs measured costs; give a cost table (--cost-table FILE)")
        if self.tokens is not None and not 0 < self.tokens <= LONGEST:
            raise SpecError(f"plan: tokens is {self.tokens}; give the length of a row, above 0 and up to {LONGEST}")
        for task, floor in self.floors.items():
            if not math.isfinite(floor):
                raise SpecError(f"plan: the floor of task {task!r} is {floor}; give points, for example 80")
        for task, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise SpecError(f"plan: the weight of task {task!r} is {weight}; give a number above 0")


@dataclass(frozen=True, slots=True)
class KeptBranch:
    """A branch of a bundle that stays where it is.

    Attributes:
        exit_layer: Trunk layers below.
        own_layers: Layers of its own.
        folded: Whether its last layer makes the first token alone.
        selection_mean: Points: the mean over seeds where the ledger knows its run, else what it reached itself.
        run_id: The run that it came of.
        mean_tokens: Of the rows that run learned from; None where the ledger does not know it.
        other_rows: Whether the ledger knows that it learned from other rows, labels or selection than were asked for
            last: then its points are those that it reached itself, and cannot be compared.
    """

    exit_layer: int
    own_layers: int
    folded: bool
    selection_mean: float
    run_id: str
    mean_tokens: float | None
    other_rows: bool = False


@dataclass(frozen=True, slots=True)
class Contest:
    """What there is to choose from.

    Attributes:
        options: The candidates of each task that is planned, at least one each.
        backbone: What they were trained on, as the user named it.
        n_layers: Of the backbone.
        branch_folders: Run id -> folder of its branch.
        kept: Branches of other tasks that stay.
        n_runs_left_out: Runs of these tasks that cannot be compared with the latest.
    """

    options: Mapping[str, tuple[Candidate, ...]]
    backbone: str
    n_layers: int
    branch_folders: Mapping[str, str]
    kept: Mapping[str, KeptBranch] = field(default_factory=dict)
    n_runs_left_out: int = 0

    @property
    def sizes(self) -> EncoderSizes:
        """Of the backbone."""
        return next(iter(self.options.values()))[0].sizes

    @property
    def mean_tokens(self) -> float:
        """Mean over the tasks of the mean length of their rows; kept tasks count where it is known."""
        planned = [fmean(c.mean_tokens for c in candidates) for candidates in self.options.values()]
        return fmean([*planned, *(b.mean_tokens for b in self.kept.values() if b.mean_tokens is not None)])


class FrontTask(Spec, frozen=True, kw_only=True):
    """What a plan has for one task.

    Attributes:
        task: The task's name.
        exit_layer: Trunk layers below its branch.
        own_layers: Layers of its branch.
        points: Mean over seeds on the selection rows.
        run_id: The run whose branch it is.
    """

    task: str
    exit_layer: int
    own_layers: int
    points: float
    run_id: str


class FrontPoint(Spec, frozen=True, kw_only=True):
    """What a plan reaches and what it costs for one row when every task is asked.

    Attributes:
        mean_points: Weighted mean over the tasks.
        trunk_depth: Deepest exit layer.
        layer_cost: Trunk depth plus all own layers.
        flops: Floating-point operations by formula.
        flops_share: Of what one whole backbone a task would take (`trunkline.train.price.Prices.share`).
        ms: Milliseconds by the cost table; None without one.
        tasks: The choices, by task name.
    """

    mean_points: float
    trunk_depth: int
    layer_cost: int
    flops: float
    flops_share: float
    ms: float | None
    tasks: tuple[FrontTask, ...]


def contest_of(
    candidates: Sequence[Candidate], *, backbone: str, n_layers: int, branch_folders: Mapping[str, str]
) -> Contest:
    """What candidates of several tasks may be chosen.

    Raises:
        SpecError: None of them can be a branch.
    """
    options = competing(candidates)
    if not options:
        raise SpecError("plan: no task has a candidate that can be a branch; run `trunkline train` first")
    return Contest(options, backbone=backbone, n_layers=n_layers, branch_folders=branch_folders)


def read_contest(runs: Path, tasks: Sequence[str] | None = None) -> Contest:
    """What a runs folder gives to choose from.

    Of each task only those runs compete that saw the same rows, labels and selection as the one that was asked for
    last: metrics on other rows cannot be compared, and a redefined task is another task.

    Args:
        runs: Folder that training wrote.
        tasks: These only; None for all.

    Raises:
        SpecError: The folder has no usable candidates, or holds runs on more than one backbone.
        UnknownNameError: A task was not trained.
    """
    ledger = Ledger(runs)
    records = ledger.records()
    known = {record.spec.task for record in records}
    for task in tasks or ():
        if task not in known:
            raise UnknownNameError(f"plan: task {task!r} is not in {ledger.path}; {nearest_hint(task, known)}")
    asked = [record for record in records if tasks is None or record.spec.task in tasks]
    records = comparable(asked)
    used = {record.spec.backbone_digest for record in records}
    if not records:
        raise SpecError(f"plan: {ledger.path} has no runs; run `trunkline train` first")
    if len(used) > 1:
        raise SpecError(f"plan: {ledger.path} holds runs on {len(used)} backbones; plan each from a folder of its own")
    candidates = candidates_of(records)
    contest = contest_of(
        candidates,
        backbone=records[-1].backbone,
        n_layers=records[-1].sizes.n_layers,
        branch_folders={c.run_id: str(ledger.branch_folder(c.run_id).resolve()) for c in candidates},
    )
    return replace(contest, n_runs_left_out=len(asked) - len(records))


def meeting_floors(contest: Contest, request: PlanRequest) -> Contest:
    """The same without the candidates that are below their task's floor.

    Raises:
        UnknownNameError: A floor or a weight is of a task that is not planned.
        SpecError: A task has no candidate that reaches its floor.
    """
    for name in (*request.floors, *(w for w in request.weights if w not in contest.kept)):
        if name not in contest.options:
            raise UnknownNameError(f"plan: task {name!r} is not planned; {nearest_hint(name, contest.options)}")
    options = dict(contest.options)
    for task, floor in request.floors.items():
        # A hair below is a tie broken by binary fractions.
        options[task] = tuple(c for c in contest.options[task] if c.selection_mean >= floor - 1e-9)
        if not options[task]:
            best = max(contest.options[task], key=lambda c: c.selection_mean)
            raise SpecError(
                f"plan: task {task!r}: no candidate reaches {floor:g} {best.metric} on the selection rows; its best "
                f"has {best.selection_mean:.2f} ({place_text(best)}); lower the floor, or train more candidates"
            )
    return replace(contest, options=options)


def prices_of(contest: Contest, request: PlanRequest) -> dict[Unit, Prices]:
    """Prices in each unit that there are prices in."""
    flops = flop_prices(contest.sizes, request.tokens or contest.mean_tokens)
    prices: dict[Unit, Prices] = {"layers": LAYER_PRICES, "flops": flops}
    if request.cost_table is not None:
        prices["ms"] = ms_prices(request.cost_table)
    return prices


def point_of(chosen: Mapping[str, Placed], contest: Contest, request: PlanRequest) -> FrontPoint:
    """What one choice for every task reaches and costs, kept tasks included."""
    every = {**contest.kept, **chosen}
    prices = prices_of(contest, request)
    weights = {task: request.weights.get(task, 1.0) for task in every}
    flops = prices["flops"].total(every.values())
    return FrontPoint(
        mean_points=math.fsum(weights[task] * p.selection_mean for task, p in every.items()) / sum(weights.values()),
        trunk_depth=max(p.exit_layer for p in every.values()),
        layer_cost=prices["layers"].total(every.values()),
        flops=flops,
        flops_share=prices["flops"].share(every.values(), contest.n_layers),
        ms=prices["ms"].total(every.values()) / 1e6 if "ms" in prices else None,
        tasks=tuple(
            FrontTask(
                task=task,
                exit_layer=every[task].exit_layer,
                own_layers=every[task].own_layers,
                points=every[task].selection_mean,
                run_id=every[task].run_id,
            )
            for task in sorted(every)
        ),
    )


def front_of(contest: Contest, request: PlanRequest, prices: Prices) -> list[tuple[int, dict[str, Candidate]]]:
    """All choices for the planned tasks that are not beaten in points and cost, by rising cost; exact.

    Args:
        contest: Kept tasks count in the trunk's depth.
        request: Whose weights are used.
        prices: What is cheap.

    Returns:
        The cost of each, in the smallest steps of the prices' unit, kept tasks included; and the choice.
    """
    heaviest = max(request.weights.get(task, 1.0) for task in contest.options)
    scales = {task: _POINT * request.weights.get(task, 1.0) / heaviest for task in contest.options}
    choices = [
        [Choice(round(scales[task] * c.selection_mean), c.exit_layer, prices.own(c)) for c in candidates]
        for task, candidates in contest.options.items()
    ]
    kept = [[Choice(0, branch.exit_layer, prices.own(branch))] for branch in contest.kept.values()]
    deepest = max(choice.exit_layer for each in (*choices, *kept) for choice in each)
    picks = pareto_front([*choices, *kept], [prices.trunk(depth) for depth in range(deepest + 1)])
    planned = contest.options.items()
    return [
        (pick.cost, {task: each[index] for (task, each), index in zip(planned, pick.choices, strict=False)})
        for pick in picks
    ]


def place_text(placed: Placed) -> str:
    """For example ``2 layers from exit 4``."""
    return f"{cost_text(placed.own_layers, 'layers')} from exit {placed.exit_layer}"


def name_text(mine: Candidate, others: Sequence[Candidate], *, depth: int | None = None, always_exit: bool) -> str:
    """A candidate in words that tell it from the others of its task: ``2 layers from exit 4 (mean)``.

    Args:
        mine: The candidate.
        others: All of its task.
        depth: Of the trunk that is there anyway, where a deeper one counts as layers; None where it does not.
        always_exit: Whether the exit is named even where others of as many layers have the same.
    """
    peers = [other for other in others if other.own_layers == mine.own_layers]
    differ = always_exit or depth is not None or any(other.exit_layer != mine.exit_layer for other in peers)
    place = place_text(mine) if differ else cost_text(mine.own_layers, "layers")
    details = []
    if depth is not None and mine.exit_layer > depth:
        details.append(f"+{mine.exit_layer - depth} of trunk")
    if any(other.pooling != mine.pooling for other in peers):
        details.append(mine.pooling)
    if any(_start_text(other) != _start_text(mine) for other in peers):
        details.append(_start_text(mine))
    return f"{place} ({', '.join(details)})" if details else place


def _start_text(candidate: Candidate) -> str:
    if candidate.init == "teacher":
        known = isinstance(candidate.started_in, int)
        return f"{candidate.arm} from a teacher{f' of {candidate.started_in}' if known else ''}"
    if candidate.init == "branch":
        return f"{candidate.arm} from another branch"
    return f"{candidate.arm} from the backbone"
