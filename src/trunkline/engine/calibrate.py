"""Calibrate tasks of a bundle: fit on a slice of train, put the branches back with their new calibration."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import msgspec
import numpy as np

from trunkline.bundle.manifest import Manifest
from trunkline.bundle.merge import replace
from trunkline.bundle.store import Bundle, StoredBranch, open_bundle, write_branch
from trunkline.core.errors import BundleError, SpecError, TrunklineError
from trunkline.core.specs import BranchSpec, Calibration, Spec, TaskSpec
from trunkline.core.types import Example
from trunkline.data.labels import unseen_labels
from trunkline.data.read import read_part
from trunkline.data.split import selection_slice
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import check_tasks
from trunkline.model.calibration import at_edge, check_kind, fit_calibration, usable_rows
from trunkline.model.score import answer, score_predictions


class Calibrated(Spec, frozen=True, kw_only=True):
    """What calibration did to one task.

    Attributes:
        task: Its name.
        branch: Digest of the branch that is now in the bundle.
        calibration: What was fitted.
        temperature_at_edge: Whether the temperature lies at an end of the range it is searched in: the rows alone do
            not determine it, for example because none of them is answered wrong.
        n_rows: Rows that it was fitted on.
        n_unseen_labels: How often the slice has a label that the branch does not know; a row of such a class is left
            out.
        metric_before: Points on these rows with the former calibration.
        metric_after: Points on these rows with the new one.
    """

    task: str
    branch: str
    calibration: Calibration
    temperature_at_edge: bool
    n_rows: int
    n_unseen_labels: int
    metric_before: float
    metric_after: float


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """One task, calibrated and not yet replaced."""

    stored: StoredBranch
    spec: BranchSpec
    rows: list[Example]
    logits: list[np.ndarray]
    n_unseen_labels: int

    def result(self, digest: str) -> Calibrated:
        return Calibrated(
            task=self.spec.task,
            branch=digest,
            calibration=self.spec.calibration,
            temperature_at_edge=at_edge(self.spec.calibration.temperature),
            n_rows=len(self.rows),
            n_unseen_labels=self.n_unseen_labels,
            metric_before=_points(self.stored.spec, self.logits, self.rows),
            metric_after=_points(self.spec, self.logits, self.rows),
        )


def calibrate(path: Path, task: TaskSpec, *, abstain_below: float | None = None) -> Calibrated:
    """As `calibrate_tasks`, for one task."""
    return calibrate_tasks(path, [task], abstain_below=abstain_below)[0]


def calibrate_tasks(
    path: Path,
    tasks: Sequence[TaskSpec],
    *,
    abstain_below: float | None = None,
    on_task: Callable[[str], None] = lambda _: None,
) -> list[Calibrated]:
    """Fit temperature and thresholds on the selection slice of train, and replace the branches.

    All tasks are fitted before the first branch is replaced. Where a task has dev rows, the branch's dev metric is
    measured again with the new calibration.

    Args:
        path: The bundle; only the branches of these tasks are read.
        tasks: Where the tasks' rows are, each task once.
        abstain_below: Classification: confidence, 0 to 1, under which no label is given; None keeps what is set.
        on_task: Called with a task's name before it is fitted.

    Raises:
        UnknownNameError: The bundle has no such task.
        SpecError: A task file speaks of another kind of task than the branch or names no train rows, or
            `abstain_below` does not fit.
        DataError: The rows are wrong, or the kind has nothing to calibrate.
        BundleError: Another writer replaced a task's branch in the meantime; its branch stays. The message says which
            branches were replaced before it, if any.
    """
    bundle = open_bundle(path)
    _check_request(bundle.manifest, tasks, abstain_below)
    stored = {task.name: bundle.branch(task.name) for task in tasks}
    fitted = []
    with Engine.open(path, tasks=tuple(stored), backend=choose_backend(precision="fp32")) as engine:
        for task in tasks:
            on_task(task.name)
            fitted.append(_fit(engine, task, stored[task.name], abstain_below))
    return _replace_all(bundle, fitted)


def _check_request(manifest: Manifest, tasks: Sequence[TaskSpec], abstain_below: float | None) -> None:
    check_tasks(manifest, tasks, "train")
    for task in tasks:
        check_kind(task.name, task.kind)
        if abstain_below is not None and task.kind != "classification":
            raise SpecError(f"task {task.name!r}: a {task.kind} branch cannot abstain; leave abstain_below out")
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise SpecError(f"abstain_below: {abstain_below} is outside 0..1; give a probability")


def _fit(engine: Engine, task: TaskSpec, stored: StoredBranch, abstain_below: float | None) -> _Fitted:
    rows = selection_slice(read_part(task, "train"))[1]
    usable = usable_rows(stored.spec, rows)
    logits = engine.logits(rows, task.name)
    calibration = fit_calibration(stored.spec, logits, rows)
    if abstain_below is not None:
        calibration = msgspec.structs.replace(calibration, abstain_below=abstain_below)
    changed = msgspec.structs.replace(stored.spec, calibration=calibration)
    used, used_logits = list(compress(rows, usable)), list(compress(logits, usable))
    provenance = changed.provenance
    if changed.kind == "multilabel" and changed != stored.spec:
        # Thresholds change the answers: the figures of the former ones are no longer true.
        reached = _points(changed, used_logits, used)
        provenance = msgspec.structs.replace(provenance, selection_metric=reached, dev_metric=None)
    if task.data.dev is not None:
        dev = read_part(task, "dev")
        reached = _points(changed, engine.logits(dev, task.name), dev)
        provenance = msgspec.structs.replace(provenance, dev_metric=reached)
    changed = msgspec.structs.replace(changed, provenance=provenance)
    n_unseen = sum(unseen_labels(stored.spec.labels, rows).values())
    return _Fitted(stored, changed, used, used_logits, n_unseen)


def _replace_all(bundle: Bundle, fitted: Sequence[_Fitted]) -> list[Calibrated]:
    done: list[Calibrated] = []
    for task in fitted:
        try:
            done.append(task.result(_replace(bundle, task)))
        except (TrunklineError, OSError) as error:
            if not done:
                raise
            replaced = ", ".join(result.task for result in done)
            left = ", ".join(other.spec.task for other in fitted[len(done) :])
            raise BundleError(f"{error} (calibrated and replaced before: {replaced}; as they were: {left})") from error
    return done


def _replace(bundle: Bundle, task: _Fitted) -> str:
    with tempfile.TemporaryDirectory() as folder:
        branch = Path(folder) / "branch"
        digest = write_branch(branch, task.spec, task.stored.tensors, task.stored.golden)
        replace(bundle, branch, expected=task.stored.digest)
    return digest


def _points(branch: BranchSpec, logits: Sequence[np.ndarray], rows: Sequence[Example]) -> float:
    return score_predictions(branch, [answer(row, branch) for row in logits], rows)
