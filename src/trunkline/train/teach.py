"""What label teachers answer to the rows that their students learn from; computed once and kept."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trunkline.bundle.files import swap_file
from trunkline.bundle.store import read_branch
from trunkline.core.errors import TrainingError
from trunkline.model.branch import FullModel
from trunkline.model.cost import branch_flops, folds, sizes_of
from trunkline.model.encoder import load_parameters
from trunkline.model.tensors import read_tensors
from trunkline.train.bench import Workbench, source_of
from trunkline.train.loop import predict_logits
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import Start, Taught, build_model
from trunkline.train.spec import RunRecord


def taught_by(bench: Workbench, task: PreparedTask, teachers: Sequence[RunRecord], rows: Split) -> Taught:
    """The logits of several teachers, averaged: of a classifier this is the geometric mean of its distributions.

    Args:
        bench: Backbone, ledger, cache.
        task: The prepared task.
        teachers: Finished runs of this task; full fine-tunings must have been kept.
        rows: What they answer.

    Raises:
        TrainingError: A full fine-tuning was not kept.
    """
    each = [_teacher_logits(bench, task, teacher, rows) for teacher in teachers]
    flops = sum(taught.flops for taught in each)
    if len(each) == 1:
        return each[0]
    logits = [np.stack(row).mean(axis=0) for row in zip(*(taught.logits for taught in each), strict=True)]
    return Taught(logits=logits, flops=flops)


def _teacher_logits(bench: Workbench, task: PreparedTask, teacher: RunRecord, rows: Split) -> Taught:
    spec = teacher.spec
    weights, digest = _weights(bench, teacher)
    folder = bench.ledger.run_folder(spec.run_id)
    path = folder / f"logits-{digest[:20]}-{_digest(rows)[:20]}.npz"
    kept = _kept(path)
    if kept is not None:
        return Taught(logits=_split(*kept, tagging=rows.positions is not None), flops=0.0)
    model = build_model(bench, task, spec, Start(weights, head=True))
    if isinstance(model, FullModel):
        load_parameters(model, weights, subject=f"full fine-tuning {spec.run_id}")
    source = source_of(bench, rows, spec, dtype=spec.cache_dtype)
    logits = predict_logits(model, source, rows)
    content = io.BytesIO()
    lines = [row.reshape(-1, task.n_outputs) for row in logits]
    np.savez(content, flat=np.concatenate(lines), counts=np.array([len(row) for row in lines]))
    swap_file(path, content.getvalue())
    folded = folds(task.spec.kind, spec.pooling)
    flops = branch_flops(sizes_of(bench.backbone.config), source.lengths, own_layers=spec.own_layers, folded=folded)
    return Taught(logits=logits, flops=flops)


def _weights(bench: Workbench, teacher: RunRecord) -> tuple[Mapping[str, np.ndarray], str]:
    """A finished run's tensors and their digest."""
    if teacher.spec.arm != "full":
        branch = read_branch(bench.ledger.branch_folder(teacher.run_id))
        return branch.tensors, branch.digest
    path = bench.ledger.model_file(teacher.run_id)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"run {teacher.run_id!r}: the weights of this full fine-tuning were not kept ({path}); "
            "run `trunkline train --full --label-teacher full` again"
        ) from error
    return read_tensors(content, str(path)), hashlib.sha256(content).hexdigest()


def _digest(rows: Split) -> str:
    digest = hashlib.sha256()
    for i, row in enumerate(rows.rows):
        digest.update(row.key())
        if rows.positions is not None:
            digest.update(rows.positions[i].tobytes())
    return digest.hexdigest()


def _kept(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What was kept; None where nothing was, or where it was damaged: it is computed again then."""
    try:
        # Read first: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            return kept["flat"], kept["counts"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _split(flat: np.ndarray, counts: np.ndarray, *, tagging: bool) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(counts)[:-1]) if tagging else list(flat)
