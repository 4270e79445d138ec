"""Calibrate a task of a bundle: fit on a slice of train, put the branch back with its new calibration."""

import tempfile
from pathlib import Path

import msgspec

from trunkline.bundle.merge import replace
from trunkline.bundle.store import open_bundle, write_branch
from trunkline.core.errors import UnknownNameError, nearest_hint
from trunkline.core.specs import Calibration, Spec, TaskSpec
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


def calibrate(path: Path, task: TaskSpec) -> Calibrated:
    """Fit temperature and thresholds on the selection slice of train, and replace the branch.

    Args:
        path: The bundle.
        task: Where the task's train rows are.

    Raises:
        UnknownNameError: The bundle has no such task.
        SpecError: The task file speaks of another kind of task than the branch.
        DataError: The rows are wrong, or the kind has nothing to calibrate.
    """
    bundle = open_bundle(path)
    if task.name not in bundle.manifest.tasks:
        raise UnknownNameError(f"task {task.name!r}: not in {path}; {nearest_hint(task.name, bundle.manifest.tasks)}")
    stored = bundle.branch(task.name)
    check_same_task(stored.spec, task)
    check_kind(stored.spec)
    rows = selection_slice(read_part(task, "train"))[1]
    logits = Engine.open(path).logits(rows, task.name)
    fitted = fit_calibration(stored.spec, logits, rows)
    changed = msgspec.structs.replace(stored.spec, calibration=fitted)
    with tempfile.TemporaryDirectory() as folder:
        branch = Path(folder) / "branch"
        digest = write_branch(branch, changed, stored.tensors, stored.golden)
        replace(bundle, branch)
    before, after = (
        score_predictions(spec, [answer(row, spec) for row in logits], rows) for spec in (stored.spec, changed)
    )
    return Calibrated(
        task=task.name,
        branch=digest,
        calibration=fitted,
        n_rows=len(rows),
        metric_before=before,
        metric_after=after,
    )
