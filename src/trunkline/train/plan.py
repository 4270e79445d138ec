"""Choosing one candidate for each task by marginal benefit (paper section 4.2). No torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from trunkline.bundle.files import swap_file
from trunkline.core.errors import BundleError, SpecError, UnknownNameError, nearest_hint
from trunkline.core.specs import Metric, Pooling, Spec, decode_spec, encode_spec
from trunkline.train.candidates import Candidate, candidates_of, comparable
from trunkline.train.ledger import Ledger
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


class Plan(Spec, frozen=True, kw_only=True):
    """One candidate for each task, and what they cost together.

    Attributes:
        min_gain: The least points that each added layer must bring (c in the paper).
        backbone: What all branches were trained on, as the user named it.
        n_layers: Of the backbone.
        tasks: The choices, by task name.
        trunk_depth: Deepest exit layer.
        layer_cost: Trunk depth plus all own layers.
        single_task_layers: What one whole backbone a task would cost.
        n_runs_left_out: Runs of these tasks on other rows, labels or selection than were asked for last.
    """

    min_gain: float
    backbone: str
    n_layers: int
    tasks: tuple[PlannedTask, ...]
    trunk_depth: int
    layer_cost: int
    single_task_layers: int
    n_runs_left_out: int = 0


def choose_by_gain(candidates: Sequence[PricedT], *, min_gain: float) -> tuple[PricedT, str]:
    """The paper's rule, read per layer (paper section 4.2; design.md, section 3).

    Start at the shortest candidate. Accept the next one when its gain for each layer added since the last accepted
    one is at least `min_gain`; pass over those that do not pay. Where several have equally many layers, the
    best of them stands for that length.

    Args:
        candidates: At least one; any order.
        min_gain: c, in points a layer.

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
    lengths = sorted(best)
    chosen = best[lengths[0]]
    steps = [f"start at {_layers(chosen.own_layers)} with {chosen.selection_mean:.1f}"]
    for length in lengths[1:]:
        nominee = best[length]
        gain = (nominee.selection_mean - chosen.selection_mean) / (length - chosen.own_layers)
        # Figures are points with one decimal in print; a hair below the bound is a tie broken by binary fractions.
        accepted = gain >= min_gain - 1e-9
        steps.append(
            f"{_layers(length)} {nominee.selection_mean:.1f} ({gain:+.2f} a layer): "
            + ("accepted" if accepted else "passed over")
        )
        if accepted:
            chosen = nominee
    return chosen, "; ".join(steps)


def make_plan(
    candidates: Sequence[Candidate], *, min_gain: float, backbone: str, n_layers: int, branch_folders: dict[str, str]
) -> Plan:
    """Choose for every task that has candidates.

    Args:
        candidates: Of all tasks; full fine-tunings are passed over, because they can never be a branch.
        min_gain: c, in points a layer.
        backbone: What they were trained on.
        n_layers: Of the backbone.
        branch_folders: Run id -> folder of its branch.

    Raises:
        SpecError: No task has a candidate that can be a branch, or `min_gain` is negative or not finite.
    """
    if not 0 <= min_gain < math.inf:
        raise SpecError(f"plan: min_gain is {min_gain}; it must be 0 or more; give points a layer, for example 1.0")
    by_task: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.branch_digest is not None:
            by_task.setdefault(candidate.task, []).append(candidate)
    if not by_task:
        raise SpecError("plan: no task has a candidate that can be a branch; run `trunkline train` first")
    tasks = tuple(_planned(by_task[task], min_gain, branch_folders) for task in sorted(by_task))
    depth = max(task.exit_layer for task in tasks)
    return Plan(
        min_gain=min_gain,
        backbone=backbone,
        n_layers=n_layers,
        tasks=tasks,
        trunk_depth=depth,
        layer_cost=depth + sum(task.own_layers for task in tasks),
        single_task_layers=n_layers * len(tasks),
    )


def _planned(candidates: Sequence[Candidate], min_gain: float, branch_folders: dict[str, str]) -> PlannedTask:
    most = {c.own_layers: max(len(o.seeds) for o in candidates if o.own_layers == c.own_layers) for c in candidates}
    # Of equally many layers, a mean over more seeds is worth more than a lucky seed.
    steady = [candidate for candidate in candidates if len(candidate.seeds) == most[candidate.own_layers]]
    chosen, reason = choose_by_gain(steady, min_gain=min_gain)
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


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def plan_runs(runs: Path, *, min_gain: float, tasks: Sequence[str] | None = None) -> Plan:
    """Plan from a runs folder.

    Of each task only those runs compete that saw the same rows, labels and selection as the one that was asked for
    last: metrics on other rows cannot be compared, and a redefined task is another task. How many were left out
    stands in the plan.

    Args:
        runs: Folder that training wrote.
        min_gain: c, in points a layer.
        tasks: Plan these only; None for all.

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
    plan = make_plan(
        candidates,
        min_gain=min_gain,
        backbone=records[-1].backbone,
        n_layers=records[-1].sizes.n_layers,
        branch_folders={c.run_id: str(ledger.branch_folder(c.run_id).resolve()) for c in candidates},
    )
    return msgspec.structs.replace(plan, n_runs_left_out=len(asked) - len(records))


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
