"""One run, from its spec to its record: model, inputs, loop, metrics, saved branch.

A run that the ledger has is not run again. A run that was killed left no record and starts anew.
"""

import io
import shutil
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from accelerate import Accelerator
from torch import nn

import trunkline
from trunkline.bundle.files import swap_file
from trunkline.bundle.golden import golden_inputs, make_golden
from trunkline.bundle.store import StoredBranch, write_branch
from trunkline.core.specs import BranchSpec, Provenance
from trunkline.model.backbone import Backbone
from trunkline.model.branch import Branch, FullModel
from trunkline.model.golden_run import golden_logits
from trunkline.model.heads import start_at_frequencies
from trunkline.model.score import answer, score_predictions
from trunkline.model.trunk import Trunk
from trunkline.train.cache import ActivationCache, CachedRows
from trunkline.train.device import best_precision
from trunkline.train.ledger import Ledger
from trunkline.train.loop import (
    CachedSource,
    ComputedSource,
    Fitted,
    Lesson,
    Source,
    TokenSource,
    fit,
    predict_logits,
)
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.spec import CacheDtype, Precision, RunRecord, RunSpec


class Reporter(Protocol):
    """Told what happens; the command line draws progress bars from it."""

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """A run begins that takes this many optimizer steps."""

    def step(self, loss: float) -> None:
        """One step is done."""

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """A run is in the ledger; `resumed` when it was there already."""

    def note(self, message: str) -> None:
        """Something that its reader should know."""


class Silence:
    """A reporter that says nothing."""

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """Say nothing."""

    def step(self, loss: float) -> None:
        """Say nothing."""

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """What all runs on one backbone share.

    Attributes:
        backbone: The pretrained encoder.
        trunk: Its frozen layers, all of them, in evaluation mode.
        ledger: Where records go.
        cache: Where activations are kept.
        accelerator: Device and trackers.
        precision: Of the multiplications in training.
        reporter: Told what happens.
    """

    backbone: Backbone
    trunk: Trunk
    ledger: Ledger
    cache: ActivationCache
    accelerator: Accelerator
    precision: Precision
    reporter: Reporter

    @staticmethod
    def build(
        backbone: Backbone,
        ledger: Ledger,
        cache: ActivationCache,
        *,
        accelerator: Accelerator,
        precision: Precision | None = None,
        reporter: Reporter | None = None,
    ) -> "Workbench":
        """Put the whole backbone on the accelerator's device as a frozen trunk.

        Args:
            backbone: The pretrained encoder.
            ledger: Where records go.
            cache: Where activations are kept.
            accelerator: Device and trackers.
            precision: None takes `best_precision`.
            reporter: Told what happens; None for silence.

        Raises:
            TrainingError: The ledger's folder cannot be written.
        """
        ledger.make_folder()
        trunk = Trunk.build(backbone.config, backbone.tensors, depth=backbone.config.n_layers)
        return Workbench(
            backbone=backbone,
            trunk=trunk.to(accelerator.device),
            ledger=ledger,
            cache=cache,
            accelerator=accelerator,
            precision=precision or best_precision(),
            reporter=reporter or Silence(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a branch's weights start.

    Attributes:
        tensors: By canonical name: own layers and, if `head`, the head.
        head: Whether the head starts from `tensors` too; a new one otherwise.
    """

    tensors: Mapping[str, np.ndarray]
    head: bool


def execute(
    bench: Workbench, task: PreparedTask, spec: RunSpec, *, start: Start, teacher: Sequence[np.ndarray] | None = None
) -> RunRecord:
    """Run what the spec says, or return the record of when it was run; one process at a time runs it.

    Args:
        bench: Backbone, ledger, cache.
        task: The prepared rows; its digests are in the spec.
        spec: What to do.
        start: Where the weights start; unused by ``full``, which starts from the backbone.
        teacher: For students: the label teacher's logits on the fit rows.

    Raises:
        TrainingError: The loss became NaN, or the cache or ledger cannot be written.
    """
    waiting = f"task {spec.task!r}: another process is at a {spec.arm} run of {spec.own_layers} layers; waiting for it"
    with bench.ledger.running(spec.run_id, on_wait=lambda: bench.reporter.note(waiting)):
        found = bench.ledger.find(spec)
        if found is None:
            return _run(bench, task, spec, start=start, teacher=teacher)
    bench.ledger.renew(found)
    bench.reporter.run_finished(found, resumed=True)
    return found


def _run(
    bench: Workbench, task: PreparedTask, spec: RunSpec, *, start: Start, teacher: Sequence[np.ndarray] | None
) -> RunRecord:
    started, cached_before = time.perf_counter(), bench.cache.seconds
    draft = draft_branch(bench, task, spec)
    model = _build_model(bench, task, spec, start)
    rows = learned_rows(task, spec)
    if not start.head:
        names = ", ".join(f"head.{name}" for name, _ in model.head.named_parameters())
        bench.reporter.note(f"task {spec.task!r}: new head: {names}")
        if task.spec.kind == "multilabel":
            start_at_frequencies(model.head, rows.targets)
    fit_source = source_of(bench, rows, spec, dtype=spec.cache_dtype)
    selection_score = _Scorer(draft, task.selection, source_of(bench, task.selection, spec, dtype="float32"))
    dev_score = None
    if task.dev is not None:
        dev_score = _Scorer(draft, task.dev, source_of(bench, task.dev, spec, dtype="float32"))
    cache_seconds = bench.cache.seconds - cached_before
    # What a new head on backbone layers gives; the other arms would only measure it again.
    untrained = dev_score(model) if dev_score is not None and spec.arm == "partial" else None
    n_batches = -(-len(rows) // spec.hyperparameters.batch_size)
    bench.reporter.run_started(spec, n_batches * spec.hyperparameters.epochs)
    fitted = fit(
        model,
        Lesson(task.spec.kind, rows, fit_source, teacher),
        spec=spec,
        score=selection_score,
        accelerator=bench.accelerator,
        reporter=bench.reporter,
    )
    dev_metric = None if dev_score is None else dev_score(model)
    branch = _finished_branch(draft, fitted, dev_metric)
    digest = None if isinstance(model, FullModel) else _save(bench, spec, branch, model)
    record = RunRecord(
        run_id=spec.run_id,
        spec=spec,
        backbone=bench.backbone.name,
        n_layers=bench.backbone.config.n_layers,
        metric=task.spec.metric_name,
        curve=fitted.curve,
        best_epoch=fitted.best_epoch,
        selection_metric=branch.provenance.selection_metric,
        dev_metric=dev_metric,
        untrained_dev_metric=untrained,
        n_train_rows=len(rows),
        n_truncated=task.n_truncated,
        n_unseen_labels=task.n_unseen_labels,
        seconds=time.perf_counter() - started - cache_seconds,
        cache_seconds=cache_seconds,
        finished_at=_now(),
        branch_digest=digest,
        trunkline_version=trunkline.__version__,
    )
    bench.ledger.append(record)
    if record.selection_metric <= fitted.curve[0].selection_metric:
        bench.reporter.note(
            f"task {spec.task!r}: a {spec.arm} run of {spec.own_layers} layers learned nothing: "
            f"{record.metric} {record.selection_metric:.1f} on the selection rows, "
            f"{fitted.curve[0].selection_metric:.1f} before its first step; try a lower learning rate or more epochs"
        )
    bench.reporter.run_finished(record, resumed=False)
    return record


def source_of(bench: Workbench, split: Split, spec: RunSpec, *, dtype: CacheDtype) -> Source:
    """Inputs of a split for the arm of a run: token ids for ``full``, else activations at its exit.

    Where the cache has no room for them, they are computed for each batch from the deepest exit that it has.
    """
    device, exit_layer = bench.accelerator.device, spec.exit_layer
    tokens = TokenSource(split.rows, bench.backbone.tokenizer.pad_id, device)
    if spec.arm == "full":
        return tokens
    wanted = bench.cache.missing_bytes(bench.backbone, split.rows, exit_layer=exit_layer, dtype=dtype)
    room = bench.cache.room_bytes()
    if wanted <= room:
        return CachedSource(_cached(bench, split, exit_layer, dtype), bench.trunk.bias, device)
    lower = bench.cache.deepest_whole(bench.backbone, split.rows, below=exit_layer, dtype=dtype)
    kept = None if lower is None else CachedSource(_cached(bench, split, lower, dtype), bench.trunk.bias, device)
    bench.reporter.note(
        f"task {spec.task!r}: activations at exit layer {exit_layer} take {wanted / 1e6:,.0f} MB, the cache has room "
        f"for {room / 1e6:,.0f} MB (--cache-limit): they are computed in every epoch from "
        + ("the token ids" if lower is None else f"exit layer {lower}")
    )
    return ComputedSource(tokens, kept, lower or 0, bench.trunk, exit_layer)


def _cached(bench: Workbench, split: Split, exit_layer: int, dtype: CacheDtype) -> CachedRows:
    return bench.cache.rows(bench.trunk, bench.backbone, split.rows, exit_layer=exit_layer, dtype=dtype)


def teacher_logits(bench: Workbench, spec: RunSpec, branch: StoredBranch, task: PreparedTask) -> list[np.ndarray]:
    """A finished branch's logits on the fit rows, from the activations it was trained on; computed once and kept.

    Args:
        bench: Backbone, ledger, cache.
        spec: The run that gave the branch; the logits are kept in its folder.
        branch: As it was read from there.
        task: The prepared rows.

    Returns:
        One float32 array a row, as `predict_logits` gives them.
    """
    path = bench.ledger.run_folder(spec.run_id) / f"logits-{branch.digest[:20]}-{task.data_digest[:20]}.npz"
    kept = _kept_logits(path)
    if kept is not None:
        return _split_logits(*kept, tagging=task.fit.positions is not None)
    model = _build_model(bench, task, spec, Start(branch.tensors, head=True))
    logits = predict_logits(model, source_of(bench, task.fit, spec, dtype=spec.cache_dtype), task.fit)
    content = io.BytesIO()
    lines = [row.reshape(-1, task.n_outputs) for row in logits]
    np.savez(content, flat=np.concatenate(lines), counts=np.array([len(row) for row in lines]))
    swap_file(path, content.getvalue())
    return logits


def _kept_logits(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What was kept; None where nothing was, or where it was damaged: it is computed again then."""
    try:
        # Read first: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            return kept["flat"], kept["counts"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def _split_logits(flat: np.ndarray, counts: np.ndarray, *, tagging: bool) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(counts)[:-1]) if tagging else list(flat)


def learned_rows(task: PreparedTask, spec: RunSpec) -> Split:
    """The rows that a run takes steps on: without a teacher a row without a label would be a step of decay alone."""
    return task.fit if spec.arm == "student" else task.fit.labelled()


def draft_branch(bench: Workbench, task: PreparedTask, spec: RunSpec) -> BranchSpec:
    """The branch that a run will give, its metrics still open."""
    return BranchSpec(
        task=task.spec.name,
        kind=task.spec.kind,
        input=task.spec.input,
        labels=task.labels,
        metric=task.spec.metric_name,
        positive_label=task.spec.positive_label,
        max_length=task.spec.max_length,
        pooling=spec.pooling,
        exit_layer=spec.exit_layer,
        own_layers=spec.own_layers,
        trunk_digest=bench.backbone.chain[spec.exit_layer],
        score_mean=task.score_mean,
        score_std=task.score_std,
        label_schema_version=task.spec.label_schema_version,
        provenance=Provenance(
            trunkline_version=trunkline.__version__,
            created_at=_now(),
            backbone=bench.backbone.name,
            run_id=spec.run_id,
            seed=spec.seed,
            train_rows=len(learned_rows(task, spec)),
            train_digest=task.data_digest,
            selection_metric=0.0,
            label_teacher=spec.label_teacher,
            init=spec.init,
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scorer:
    branch: BranchSpec
    split: Split
    source: Source

    def __call__(self, model: nn.Module) -> float:
        logits = predict_logits(model, self.source, self.split)
        positions = self.split.positions or (None,) * len(logits)
        answers = [answer(row, self.branch, place) for row, place in zip(logits, positions, strict=True)]
        return score_predictions(self.branch, answers, self.split.examples)


def _build_model(bench: Workbench, task: PreparedTask, spec: RunSpec, start: Start) -> Branch | FullModel:
    config, device = bench.backbone.config, bench.accelerator.device
    if spec.arm == "full":
        full = FullModel.build(
            config,
            bench.backbone.tensors,
            kind=task.spec.kind,
            pooling=spec.pooling,
            n_outputs=task.n_outputs,
            seed=spec.seed,
        )
        return full.to(device)
    branch = Branch.build(
        config,
        exit_layer=spec.exit_layer,
        own_layers=spec.own_layers,
        kind=task.spec.kind,
        pooling=spec.pooling,
        n_outputs=task.n_outputs,
        seed=spec.seed,
    )
    branch.load(start.tensors, head=start.head)
    return branch.to(device)


def _finished_branch(draft: BranchSpec, fitted: Fitted, dev_metric: float | None) -> BranchSpec:
    metric = fitted.curve[fitted.best_epoch].selection_metric
    provenance = msgspec.structs.replace(draft.provenance, selection_metric=metric, dev_metric=dev_metric)
    return msgspec.structs.replace(draft, provenance=provenance)


def _save(bench: Workbench, spec: RunSpec, branch: BranchSpec, model: Branch) -> str:
    """Write the branch; what a killed run left, or a branch that the ledger does not know, is removed."""
    inputs = golden_inputs(branch.input)
    golden = make_golden(inputs, golden_logits(bench.trunk, model, bench.backbone.tokenizer, branch, inputs))
    folder = bench.ledger.branch_folder(spec.run_id)
    for left in (folder, *folder.parent.glob(".*.tmp-*")):
        shutil.rmtree(left, ignore_errors=True)
    return write_branch(folder, branch, model.tensors(), golden)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
