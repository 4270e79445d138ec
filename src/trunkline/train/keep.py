"""Planning one task of a bundle while all others stay: owners do not move each other's tasks. No torch."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from trunkline.bundle.manifest import TaskEntry
from trunkline.bundle.store import Bundle, check_trunk, read_branch
from trunkline.core.errors import SpecError
from trunkline.model.cost import folds
from trunkline.train.candidates import Candidate, candidates_of
from trunkline.train.contest import Contest, KeptBranch, PlanRequest, read_contest
from trunkline.train.ledger import Ledger
from trunkline.train.plan import Kept, Plan, PlannedTask, plan_contest
from trunkline.train.price import STEPS_OF_UNIT, Unit, cost_text


def read_kept_contest(runs: Path, bundle: Bundle, task: str) -> Contest:
    """What there is to choose from for one task, beside a bundle's other tasks as they are.

    Args:
        runs: Folder that training wrote.
        bundle: The bundle; it may lack the task.
        task: The task to plan.

    Raises:
        SpecError: The folder has no usable candidates of the task, or they are of another backbone's depth.
        UnknownNameError: The task was not trained.
    """
    contest = read_contest(runs, (task,))
    if contest.n_layers != bundle.manifest.n_layers:
        raise SpecError(
            f"plan: task {task!r} was trained on {contest.backbone!r} with {contest.n_layers} layers; bundle "
            f"{str(bundle.path)!r} is of {bundle.manifest.backbone!r} with {bundle.manifest.n_layers}; train it on that"
        )
    # Where the ledger knows the run, its mean over seeds stands for the branch, as it does for candidates.
    known = {c.run_id: c for c in candidates_of(Ledger(runs).records())}
    others = {name: entry for name, entry in sorted(bundle.manifest.tasks.items()) if name != task}
    return replace(contest, kept={name: _kept_branch(entry, known) for name, entry in others.items()})


def plan_kept(runs: Path, bundle: Bundle, contest: Contest, request: PlanRequest) -> Plan:
    """Plan the task of `read_kept_contest`.

    Args:
        runs: Where all tasks could be planned again from, for comparison.
        bundle: The bundle.
        contest: What there is to choose from.
        request: How to choose.

    Returns:
        A plan that names this task alone; its sums are those of the bundle after the change.

    Raises:
        TrunkMismatchError: The chosen branch was trained on another trunk than the bundle's.
        BundleError: The chosen branch cannot be read.
        SpecError: As of `trunkline.train.plan.plan_contest`.
    """
    plan = plan_contest(contest, request)
    (planned,) = plan.tasks
    if planned.exit_layer <= bundle.manifest.trunk.depth:
        spec = read_branch(Path(planned.branch)).spec
        check_trunk(spec, bundle.manifest.trunk.chain, f"bundle {str(bundle.path)!r}")
    kept = Kept(
        bundle=str(bundle.path.resolve()),
        tasks=tuple(contest.kept),
        command=_command(bundle, planned, plan.backbone),
        all_again=_all_again(runs, contest, request, plan),
    )
    return msgspec.structs.replace(plan, kept=kept)


def _command(bundle: Bundle, planned: PlannedTask, backbone: str) -> str | None:
    present = bundle.manifest.tasks.get(planned.task)
    # By its run: calibration makes another branch of it, which is not to be undone.
    if present is not None and present.provenance.run_id == planned.run_id:
        return None
    words = ["trunkline", "attach" if present is None else "replace", str(bundle.path), planned.branch]
    deeper = planned.exit_layer > bundle.manifest.trunk.depth
    return shlex.join([*words, "--backbone", backbone] if deeper else words)


def _kept_branch(entry: TaskEntry, known: Mapping[str, Candidate]) -> KeptBranch:
    source = entry.provenance
    trained = known.get(source.run_id)
    return KeptBranch(
        exit_layer=entry.exit_layer,
        own_layers=entry.own_layers,
        folded=folds(entry.kind, entry.pooling),
        selection_mean=source.selection_metric if trained is None else trained.selection_mean,
        run_id=source.run_id,
        mean_tokens=None if trained is None else trained.mean_tokens,
    )


def _all_again(runs: Path, contest: Contest, request: PlanRequest, plan: Plan) -> str:
    """What planning all tasks again, in the same way, would give instead of the plan; or why it cannot be said."""
    every = sorted((*contest.options, *contest.kept))
    # Of the same row, so that the operations can be compared.
    request = msgspec.structs.replace(request, tokens=plan.tokens)
    try:
        other = plan_contest(read_contest(runs, every), request)
    except SpecError as error:
        return f"what planning all {len(every)} tasks again would save cannot be said ({error})"
    runs_now = {name: branch.run_id for name, branch in contest.kept.items()}
    runs_now |= {each.task: each.run_id for each in plan.tasks}
    moved = [each.task for each in other.tasks if each.run_id != runs_now[each.task]]
    if not moved:
        return f"planning all {len(every)} tasks again would change nothing"
    unit: Unit = request.budget.unit if request.budget else "layers"
    costs = [cost_text(_cost(each, unit), unit) for each in (plan, other)]
    return (
        f"planning all {len(every)} tasks again would take {costs[1]} instead of {costs[0]}, with a mean of "
        f"{other.mean_points:.2f} points instead of {plan.mean_points:.2f}, and other branches of {', '.join(moved)}"
    )


def _cost(plan: Plan, unit: Unit) -> int:
    amounts = {"layers": plan.layer_cost, "flops": plan.flops, "ms": plan.ms or 0.0}
    return round(amounts[unit] * STEPS_OF_UNIT[unit])
