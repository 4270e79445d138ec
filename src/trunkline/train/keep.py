"""Planning one task of a bundle while all others stay: owners do not move each other's tasks. No torch."""

import shlex
from dataclasses import replace
from pathlib import Path

import msgspec

from trunkline.bundle.manifest import TaskEntry
from trunkline.bundle.merge import check_change
from trunkline.bundle.store import Bundle, read_branch
from trunkline.core.errors import BundleError, SpecError, TrunkMismatchError
from trunkline.model.cost import folds
from trunkline.train.candidates import Candidate, comparable, groups_of
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
    # Where the ledger knows the run, the mean over seeds stands for the branch, as it does for candidates.
    records = Ledger(runs).records()
    usable = comparable(records)
    known = {run_id: candidate for candidate in groups_of(usable) for run_id in candidate.run_ids}
    former = {record.run_id for record in records} - {record.run_id for record in usable}
    others = {name: entry for name, entry in sorted(bundle.manifest.tasks.items()) if name != task}
    kept = {
        name: _kept_branch(entry, known.get(entry.provenance.run_id), other_rows=entry.provenance.run_id in former)
        for name, entry in others.items()
    }
    return replace(contest, kept=kept)


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
        BundleError: The chosen branch cannot be read, or the bundle would refuse it
            (`trunkline.bundle.merge.check_change`).
        SpecError: As of `trunkline.train.plan.plan_contest`.
    """
    plan = plan_contest(contest, request)
    (planned,) = plan.tasks
    check_change(bundle, read_branch(Path(planned.branch)))
    if planned.exit_layer > bundle.manifest.trunk.depth:
        _check_backbone(Ledger(runs), bundle, planned)
    kept = Kept(
        bundle=str(bundle.path.resolve()),
        tasks=tuple(contest.kept),
        other_rows=tuple(name for name, branch in contest.kept.items() if branch.other_rows),
        command=_command(bundle, planned, plan.backbone),
        all_again=_all_again(runs, contest, request, plan),
    )
    return msgspec.structs.replace(plan, kept=kept)


def _check_backbone(ledger: Ledger, bundle: Bundle, planned: PlannedTask) -> None:
    """Refuse a branch deeper than the stored trunk whose backbone is another one, as other runs on it show.

    The trunk's chain ends above such a branch; a run on the same backbone whose branch reads less deep stands in for
    it. Where there is none, `attach` and `replace` judge the backbone when they are given it.
    """
    records = ledger.records()
    digest = next(r.spec.backbone_digest for r in records if r.run_id == planned.run_id)
    for record in records:
        same, deep = record.spec.backbone_digest == digest, record.spec.exit_layer > bundle.manifest.trunk.depth
        if not same or deep or record.branch_digest is None:
            continue
        try:
            spec = read_branch(ledger.branch_folder(record.run_id)).spec
        except BundleError:
            continue
        if spec.trunk_digest != bundle.manifest.trunk.chain[spec.exit_layer]:
            raise TrunkMismatchError(
                f"task {planned.task!r}: was trained on another backbone than that of bundle {str(bundle.path)!r}, as "
                f"run {record.run_id} on the same one shows at layer {spec.exit_layer}; train the branch on "
                f"{bundle.manifest.backbone!r}"
            )
        return


def _command(bundle: Bundle, planned: PlannedTask, backbone: str) -> str | None:
    present = bundle.manifest.tasks.get(planned.task)
    # By its run: calibration makes another branch of it, which is not to be undone.
    if present is not None and present.provenance.run_id == planned.run_id:
        return None
    words = ["trunkline", "attach" if present is None else "replace", str(bundle.path), planned.branch]
    deeper = planned.exit_layer > bundle.manifest.trunk.depth
    return shlex.join([*words, "--backbone", backbone] if deeper else words)


def _kept_branch(entry: TaskEntry, trained: Candidate | None, *, other_rows: bool) -> KeptBranch:
    source = entry.provenance
    return KeptBranch(
        exit_layer=entry.exit_layer,
        own_layers=entry.own_layers,
        folded=folds(entry.kind, entry.pooling),
        selection_mean=source.selection_metric if trained is None else trained.selection_mean,
        run_id=source.run_id,
        mean_tokens=None if trained is None else trained.mean_tokens,
        other_rows=other_rows,
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
