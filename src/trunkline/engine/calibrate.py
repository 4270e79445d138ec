"""Calibrate a task of a bundle: fit on a slice of train, put the branch back with its new calibration."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from trunkline.bundle.merge import replace
from trunkline.bundle.store import open_bundle, write_branch
from trunkline.core.errors import SpecError, UnknownNameError, nearest_hint
from trunkline.core.specs import BranchSpec, Calibration, Spec, TaskSpec
from trunkline.core.types import Example
from trunkline.data.read import read_part
from trunkline.data.split import selection_slice
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import check_same_task
from trunkline.model.calibration import check_kind, fit_calibration
from trunkline.model.score import answer, score_predictions


class Calibrated(Spec, frozen=True, kw_only=True):
    """What calibration did to one task.

    Attributes:
        task: Its name.
        branch: Digest of the branch that is now in the bundle.
        calibration: What was fitted.
        n_rows: Rows that it was fitted on.
        metric_before: Points on these rows with the former calibration.
        metric_after: Points on these rows with the new one.
    """

    task: str
    branch: str
    calibration: Calibration
    n_rows: int
    metric_before: float
    metric_after: float


def calibrate(path: Path, task: TaskSpec, *, abstain_below: float | None = None) -> Calibrated:
    """Fit temperature and thresholds on the selection slice of train, and replace the branch.

    Where the task has dev rows, the branch's dev metric is measured again with the new calibration.

    Args:
        path: The bundle.
        task: Where the task's rows are.
        abstain_below: Classification: confidence, 0 to 1, under which no label is given; None keeps what is set.

    Raises:
        UnknownNameError: The bundle has no such task.
        SpecError: The task file speaks of another kind of task than the branch, or `abstain_below` does not fit.
        DataError: The rows are wrong, or the kind has nothing to calibrate.
        BundleError: Another writer replaced the task's branch in the meantime; its branch stays.
    """
    bundle = open_bundle(path)
    if task.name not in bundle.manifest.tasks:
        raise UnknownNameError(f"task {task.name!r}: not in {path}; {nearest_hint(task.name, bundle.manifest.tasks)}")
    stored = bundle.branch(task.name)
    check_same_task(stored.spec, task)
    check_kind(stored.spec)
    _check_abstention(stored.spec, abstain_below)
    rows = selection_slice(read_part(task, "train"))[1]
    engine = Engine.open(path)
    logits = engine.logits(rows, task.name)
    fitted = fit_calibration(stored.spec, logits, rows)
    if abstain_below is not None:
        fitted = msgspec.structs.replace(fitted, abstain_below=abstain_below)
    changed = msgspec.structs.replace(stored.spec, calibration=fitted)
    if task.data.dev is not None:
        dev = read_part(task, "dev")
        reached = _points(changed, engine.logits(dev, task.name), dev)
        provenance = msgspec.structs.replace(changed.provenance, dev_metric=reached)
        changed = msgspec.structs.replace(changed, provenance=provenance)
    with tempfile.TemporaryDirectory() as folder:
        branch = Path(folder) / "branch"
        digest = write_branch(branch, changed, stored.tensors, stored.golden)
        replace(bundle, branch, expected=stored.digest)
    return Calibrated(
        task=task.name,
        branch=digest,
        calibration=fitted,
        n_rows=len(rows),
        metric_before=_points(stored.spec, logits, rows),
        metric_after=_points(changed, logits, rows),
    )


def _check_abstention(branch: BranchSpec, abstain_below: float | None) -> None:
    if abstain_below is None:
        return
    if branch.kind != "classification":
        raise SpecError(f"task {branch.task!r}: a {branch.kind} branch cannot abstain; leave abstain_below out")
    if not 0 <= abstain_below <= 1:
        raise SpecError(f"task {branch.task!r}: abstain_below {abstain_below} is outside 0..1")


def _points(branch: BranchSpec, logits: Sequence[np.ndarray], rows: Sequence[Example]) -> float:
    return score_predictions(branch, [answer(row, branch) for row in logits], rows)
