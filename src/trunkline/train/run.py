"""One run, from its spec to its record: model, inputs, loop, metrics, saved branch.

A run that the ledger has is not run again. A run that was killed left no record and starts anew.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec
import numpy as np
from torch import nn

import trunkline
from trunkline.bundle.files import swap_file
from trunkline.bundle.golden import golden_inputs, make_golden
from trunkline.bundle.store import write_branch
from trunkline.core.specs import BranchSpec, Provenance
from trunkline.model.branch import Branch, FullModel
from trunkline.model.cost import EncoderSizes, branch_flops, folds, sizes_of
from trunkline.model.golden_run import golden_logits
from trunkline.model.heads import start_at_frequencies
from trunkline.model.score import answer, score_predictions
from trunkline.model.tensors import write_tensors
from trunkline.train.bench import Workbench, source_of, trunk_flops
from trunkline.train.device import return_memory
from trunkline.train.ledger import Needed
from trunkline.train.loop import Fitted, Lesson, Source, fit, predict_logits
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.spec import RunRecord, RunSpec


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a branch's weights start.

    Attributes:
        tensors: By canonical name: own layers and, if `head`, the head.
        head: Whether the head starts from `tensors` too; a new one otherwise.
    """

    tensors: Mapping[str, np.ndarray]
    head: bool


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What a student learns from its label teacher.

    Attributes:
        logits: One float32 array a row, as `predict_logits` gives them.
        flops: Operations that were spent on them now; 0 where they were kept.
        features: What the teacher's head reads, one float32 array a row, each position normalized to length 1 (of
            several teachers, their mean); None where they were not asked for.
    """

    logits: Sequence[np.ndarray]
    flops: float
    features: Sequence[np.ndarray] | None = None


def execute(
    bench: Workbench,
    task: PreparedTask,
    spec: RunSpec,
    *,
    start: Callable[[], Start],
    teach: Callable[[Split], Taught] | None = None,
    needed: Needed = "branch",
) -> RunRecord:
    """Run what the spec says, or return the record of when it was run; one process at a time runs it.

    Args:
        bench: Backbone, ledger, cache.
        task: The prepared rows; its digests are in the spec.
        spec: What to do.
        start: Gives where the weights start; unused by ``full``, which starts from the backbone.
        teach: For students: gives the label teacher's answers to the rows that the run learns from.
        needed: What the record must come with; ``model`` keeps the weights of a full fine-tuning, which no branch
            holds, so that it can teach.

    Raises:
        TrainingError: The loss became NaN, or the cache or ledger cannot be written.
    """
    waiting = f"task {spec.task!r}: another process is at a {spec.arm} run of {spec.own_layers} layers; waiting for it"
    with bench.ledger.running(spec.run_id, on_wait=lambda: bench.reporter.note(waiting)):
        found = bench.ledger.find(spec, needed=needed)
        if found is None:
            found = _run(bench, task, spec, start=start(), teach=teach, keep_model=needed == "model")
            return_memory()
            return found
    bench.ledger.renew(found)
    bench.reporter.run_finished(found, resumed=True)
    return found


def _run(
    bench: Workbench,
    task: PreparedTask,
    spec: RunSpec,
    *,
    start: Start,
    teach: Callable[[Split], Taught] | None,
    keep_model: bool,
) -> RunRecord:
    started, cached_before, cache_flops_before = time.perf_counter(), bench.cache.seconds, bench.cache.flops
    draft = draft_branch(bench, task, spec)
    model = build_model(bench, task, spec, start)
    rows = learned_rows(task, spec)
    _begin_head(bench, task, model, start, rows)
    lesson_source = source_of(bench, rows, spec, dtype=spec.cache_dtype)
    selection_score = _Scorer(draft, task.selection, source_of(bench, task.selection, spec, dtype="float32"))
    dev_score = None
    if task.dev is not None:
        dev_score = _Scorer(draft, task.dev, source_of(bench, task.dev, spec, dtype="float32"))
    taught = None if teach is None else teach(rows)
    cache_seconds = bench.cache.seconds - cached_before
    n_batches = -(-len(rows) // spec.hyperparameters.batch_size)
    bench.reporter.run_started(spec, n_batches * spec.hyperparameters.epochs)
    lesson = Lesson(task.spec.kind, rows, lesson_source)
    if taught is not None:
        lesson = replace(lesson, teacher=taught.logits, features=taught.features)
    fitted = fit(
        model,
        lesson,
        spec=spec,
        score=selection_score,
        accelerator=bench.accelerator,
        reporter=bench.reporter,
    )
    dev_metric = None if dev_score is None else dev_score(model)
    branch = _finished_branch(draft, fitted, dev_metric)
    digest = _save(bench, spec, branch, model, keep_full=keep_model)
    sizes = sizes_of(bench.backbone.config)
    flops = planned_flops(task, spec, sizes) + (0.0 if taught is None else taught.flops)
    for source, n_passes in (
        (lesson_source, spec.hyperparameters.epochs),
        (selection_score.source, len(fitted.curve)),
        *(((dev_score.source, 1),) if dev_score is not None else ()),
    ):
        flops += n_passes * trunk_flops(source, spec, sizes)
    record = RunRecord(
        run_id=spec.run_id,
        spec=spec,
        backbone=bench.backbone.name,
        sizes=sizes,
        metric=task.spec.metric_name,
        curve=fitted.curve,
        best_epoch=fitted.best_epoch,
        selection_metric=branch.provenance.selection_metric,
        dev_metric=dev_metric,
        n_train_rows=len(rows),
        mean_tokens=float(lesson_source.lengths.mean()),
        n_truncated=task.n_truncated,
        n_unseen_labels=task.n_unseen_labels,
        seconds=time.perf_counter() - started - cache_seconds,
        cache_seconds=cache_seconds,
        flops=flops,
        cache_flops=bench.cache.flops - cache_flops_before,
        finished_at=_now(),
        branch_digest=digest,
        trunkline_version=trunkline.__version__,
    )
    bench.ledger.append(record)
    _tell_if_nothing_was_learned(bench, record)
    bench.reporter.run_finished(record, resumed=False)
    return record


def _begin_head(bench: Workbench, task: PreparedTask, model: Branch | FullModel, start: Start, rows: Split) -> None:
    if not start.head:
        names = ", ".join(f"head.{name}" for name, _ in model.head.named_parameters())
        bench.reporter.note(f"task {task.spec.name!r}: new head: {names}")
        if task.spec.kind == "multilabel":
            # A student may learn from rows without labels, which have no shares.
            start_at_frequencies(model.head, rows.labelled().targets)


def _tell_if_nothing_was_learned(bench: Workbench, record: RunRecord) -> None:
    spec, before = record.spec, record.curve[0].selection_metric
    if record.curve[0].epoch == 0 and record.selection_metric <= before:
        bench.reporter.note(
            f"task {spec.task!r}: a {spec.arm} run of {spec.own_layers} layers learned nothing: "
            f"{record.metric} {record.selection_metric:.1f} on the selection rows, {before:.1f} before its first step; "
            "try a lower learning rate or more epochs"
        )


def planned_flops(task: PreparedTask, spec: RunSpec, sizes: EncoderSizes, *, with_dev: bool = True) -> float:
    """Operations of a run's steps, a backward pass counted as two forward ones, and of its measurements.

    Frozen layers and teachers are not in it.

    Args:
        task: The prepared rows.
        spec: The run.
        sizes: Of the backbone.
        with_dev: Whether the dev rows are measured too, once.
    """
    folded, epochs = folds(task.spec.kind, spec.pooling), spec.hyperparameters.epochs

    def once(rows: Split) -> float:
        return branch_flops(sizes, rows.lengths, own_layers=spec.own_layers, folded=folded)

    n_measured = epochs + 1 if spec.fit_rows is None else 1
    dev = once(task.dev) if task.dev is not None and with_dev else 0.0
    return 3 * epochs * once(learned_rows(task, spec)) + n_measured * once(task.selection) + dev


def learned_rows(task: PreparedTask, spec: RunSpec) -> Split:
    """The rows that a run takes steps on.

    Rows without a label, and with them the transfer set, are a student's alone: without a teacher they would be steps
    of decay. Of a transfer set a sample takes the same share as of the fit part.
    """
    if spec.arm != "student":
        return task.fit.labelled().sample(spec.fit_rows)
    sampled = task.fit.sample(spec.fit_rows)
    if spec.transfer is None or task.transfer is None:
        return sampled
    share = len(sampled) / len(task.fit)
    return sampled.joined(task.transfer.sample(round(share * len(task.transfer))))


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
            label_teacher=", ".join(spec.label_teachers) or None,
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


def build_model(bench: Workbench, task: PreparedTask, spec: RunSpec, start: Start) -> Branch | FullModel:
    """The model that a run tunes, at its start."""
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
    metric = fitted.selection_metric
    provenance = msgspec.structs.replace(draft.provenance, selection_metric=metric, dev_metric=dev_metric)
    return msgspec.structs.replace(draft, provenance=provenance)


def _save(
    bench: Workbench, spec: RunSpec, branch: BranchSpec, model: Branch | FullModel, *, keep_full: bool
) -> str | None:
    """Write the branch and give its digest; of full fine-tuning, which has none, the weights on request.

    What a killed run left, or a branch that the ledger does not know, is removed.
    """
    if spec.fit_rows is not None:  # A trial, looked at and forgotten.
        return None
    if isinstance(model, FullModel):
        if keep_full:
            path = bench.ledger.model_file(spec.run_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            swap_file(path, write_tensors(model.tensors()))
        return None
    inputs = golden_inputs(branch.input)
    golden = make_golden(inputs, golden_logits(bench.trunk, model, bench.backbone.tokenizer, branch, inputs))
    folder = bench.ledger.branch_folder(spec.run_id)
    for left in (folder, *folder.parent.glob(".*.tmp-*")):
        shutil.rmtree(left, ignore_errors=True)
    return write_branch(folder, branch, model.tensors(), golden)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
