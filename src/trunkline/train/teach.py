"""What label teachers answer to the rows that their students learn from; computed once and kept."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trunkline.bundle.files import swap_file
from trunkline.bundle.store import read_branch
from trunkline.core.errors import TrainingError
from trunkline.model.branch import FullModel
from trunkline.model.cost import branch_flops, folds, sizes_of
from trunkline.model.encoder import load_parameters
from trunkline.model.tensors import read_tensors
from trunkline.train.bench import Workbench, source_of, trunk_flops
from trunkline.train.loop import predict_features_and_logits, predict_logits
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import Start, Taught, build_model
from trunkline.train.spec import RunRecord


def taught_by(
    bench: Workbench, task: PreparedTask, teachers: Sequence[RunRecord], rows: Split, *, features: bool = False
) -> Taught:
    """What several teachers answer, averaged: of a classifier's logits this is the geometric mean of distributions.

    Args:
        bench: Backbone, ledger, cache.
        task: The prepared task.
        teachers: Finished runs of this task; full fine-tunings must have been kept.
        rows: What they answer.
        features: Whether what their heads read is wanted too. All of them are of one backbone, and so of one width.

    Raises:
        TrainingError: A full fine-tuning was not kept.
    """
    each = [_answers(bench, task, teacher, rows, features=features) for teacher in teachers]
    if len(each) == 1:
        return each[0]
    return Taught(
        logits=_mean([taught.logits for taught in each]),
        flops=sum(taught.flops for taught in each),
        features=_mean([taught.features for taught in each if taught.features is not None]) if features else None,
    )


def _mean(answers: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.stack(row).mean(axis=0) for row in zip(*answers, strict=True)]


def _answers(bench: Workbench, task: PreparedTask, teacher: RunRecord, rows: Split, *, features: bool) -> Taught:
    spec = teacher.spec
    weights, digest = _weights(bench, teacher)
    path = bench.ledger.run_folder(spec.run_id) / f"logits-{digest[:20]}-{rows.digest()[:20]}.npz"
    kept = _kept(path, rows, features=features)
    if kept is not None:
        return kept
    model = build_model(bench, task, spec, Start(weights, head=True))
    if isinstance(model, FullModel):
        load_parameters(model, weights, subject=f"full fine-tuning {spec.run_id}")
    source = source_of(bench, rows, spec, dtype=spec.cache_dtype)
    directions = None
    if features:
        states, logits = predict_features_and_logits(model, source, rows)
        directions = [_normalized(row) for row in states]
    else:
        logits = predict_logits(model, source, rows)
    sizes, folded = sizes_of(bench.backbone.config), folds(task.spec.kind, spec.pooling)
    flops = branch_flops(sizes, source.lengths, own_layers=spec.own_layers, folded=folded)
    flops += trunk_flops(source, spec, sizes)
    taught = Taught(logits=logits, flops=flops, features=directions)
    _keep(path, taught)
    return taught


def _normalized(states: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(states, axis=-1, keepdims=True)
    directions: np.ndarray = states / np.maximum(lengths, 1e-12)
    return directions


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


def _keep(path: Path, taught: Taught) -> None:
    """Keep answers flat: all positions of all rows one after the other, and how many each row has."""
    columns = {"flat": taught.logits} | ({} if taught.features is None else {"features": taught.features})
    lines = {name: [np.atleast_2d(row) for row in column] for name, column in columns.items()}
    arrays: dict[str, Any] = {name: np.concatenate(rows) for name, rows in lines.items()}
    content = io.BytesIO()
    np.savez(content, counts=np.array([len(row) for row in lines["flat"]]), **arrays)
    swap_file(path, content.getvalue())


def _kept(path: Path, rows: Split, *, features: bool) -> Taught | None:
    """What was kept; None where nothing was, or less than is wanted, or where it was damaged: it is computed then."""
    try:
        # Read first: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            tagging, counts = rows.positions is not None, kept["counts"]
            logits = _split(kept["flat"], counts, tagging=tagging)
            directions = _split(kept["features"], counts, tagging=tagging) if features else None
            return Taught(logits=logits, flops=0.0, features=directions)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _split(flat: np.ndarray, counts: np.ndarray, *, tagging: bool) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(counts)[:-1]) if tagging else list(flat)
