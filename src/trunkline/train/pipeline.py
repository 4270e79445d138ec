"""All runs of a task, in the paper's order: full (on request), partial for each L, then students of the best.

Which runs are needed follows from the request and from the metrics of earlier runs; every one of them goes through
the ledger, so a pipeline that was killed goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trunkline.bundle.store import read_branch
from trunkline.core.errors import SpecError
from trunkline.core.specs import TaskSpec
from trunkline.model.backbone import Backbone
from trunkline.train.candidates import Candidate, best_partial, candidates_of
from trunkline.train.prepare import PreparedTask, prepare
from trunkline.train.run import Start, Workbench, execute, teacher_logits
from trunkline.train.spec import Arm, Hyperparameters, Init, RunRecord, RunSpec, TrainRequest


def check_request(request: TrainRequest, n_layers: int) -> None:
    """Refuse layer counts that the backbone does not have, before any work.

    Raises:
        SpecError: A count is out of range, or there is nothing to do.
    """
    if not request.layers and not request.full:
        raise SpecError("train: nothing to do; give at least one of --layers, or --full")
    if not request.seeds:
        raise SpecError("train: no seeds; give at least one")
    if min(request.seeds) < 0:
        raise SpecError(f"train: seed {min(request.seeds)} is below 0; give whole numbers from 0")
    if min(request.student_layers, default=0) < 0:
        raise SpecError(f"train: --students {min(request.student_layers)} is below 0; give counts of layers")
    for count in request.layers:
        if not 1 <= count <= n_layers:
            raise SpecError(f"train: --layers {count} is outside 1..{n_layers} (backbone has {n_layers} layers)")
    _check_students(request, n_layers)


def _check_students(request: TrainRequest, n_layers: int) -> None:
    longest = max(request.layers, default=n_layers)
    if request.student_exits is None and min(request.student_layers, default=0) > longest:
        raise SpecError(
            f"train: --students {min(request.student_layers)} is more layers than any teacher tunes; at their "
            f"teacher's exit students have 0..{longest} (--layers); ask for shorter ones, or give --student-exits"
        )
    for exit_layer in request.student_exits or ():
        for own_layers in request.student_layers:
            if exit_layer < 0 or exit_layer + own_layers > n_layers:
                raise SpecError(
                    f"train: a student of {own_layers} layers at exit layer {exit_layer} does not fit into "
                    f"{n_layers} layers; choose a lower exit or fewer layers"
                )


def train_tasks(bench: Workbench, tasks: Sequence[TaskSpec], request: TrainRequest) -> list[RunRecord]:
    """Run everything that the request asks, for one task after the other.

    All tasks are read and checked before the first run.

    Args:
        bench: Backbone, ledger, cache.
        tasks: What to learn.
        request: Layers, seeds, students.

    Returns:
        The records, in the order of the runs.

    Raises:
        SpecError: The request or a task does not fit the backbone.
        DataError: A row is wrong.
        TrainingError: A run failed.
    """
    check_request(request, bench.backbone.config.n_layers)
    for task in tasks:
        _check_length(task, bench.backbone)
    prepared = [prepare(task, bench.backbone.tokenizer, selection=request.selection) for task in tasks]
    for each in prepared:
        _tell_about_data(bench, each)
    _tell_about_room(bench, prepared, request)
    return [record for each in prepared for record in _train_prepared(bench, each, request)]


def train_task(bench: Workbench, task: TaskSpec, request: TrainRequest) -> list[RunRecord]:
    """`train_tasks` of a single task."""
    return train_tasks(bench, [task], request)


def _train_prepared(bench: Workbench, task: PreparedTask, request: TrainRequest) -> list[RunRecord]:
    name = task.spec.name
    runs = _Runs(bench, task, request)
    records = []
    if request.full:
        records += [runs.full(seed) for seed in request.seeds]
    partial = [runs.partial(layers, seed) for layers in request.layers for seed in request.seeds]
    records += partial
    if request.student_layers and not partial:
        bench.reporter.note(f"task {name!r}: no students, which need a partially fine-tuned teacher (--layers)")
    if request.student_layers and partial:
        teacher = best_partial(candidates_of(partial))
        bench.reporter.note(
            f"task {name!r}: the teacher has {teacher.own_layers} layers "
            f"({teacher.metric} {teacher.selection_mean:.1f} on the selection rows)"
        )
        records += runs.students(teacher)
    return records


def initial_tensors(
    backbone: Backbone, teacher: Mapping[str, np.ndarray] | None, *, exit_layer: int, own_layers: int
) -> Start:
    """Where a branch starts: each layer from the teacher if it tuned that layer, else from the backbone.

    With a teacher that leaves the trunk at or above `exit_layer`, the branch on its trunk then equals the
    teacher's bottommost `exit_layer + own_layers` layers (paper section 3.2), because what the teacher did not tune
    is the backbone's.

    Args:
        backbone: The pretrained encoder.
        teacher: The initialization teacher's tensors by canonical name, its head included; None for a new head.
        exit_layer: Of the branch.
        own_layers: Of the branch.
    """
    tensors = {}
    for layer in range(exit_layer, exit_layer + own_layers):
        prefix = f"layers.{layer}."
        tuned = {} if teacher is None else {name: a for name, a in teacher.items() if name.startswith(prefix)}
        tensors.update(tuned or {name: a for name, a in backbone.tensors.items() if name.startswith(prefix)})
    if teacher is not None:
        tensors.update({name: a for name, a in teacher.items() if name.startswith("head.")})
    return Start(tensors=tensors, head=teacher is not None)


class _Runs:
    """Specs of one task's runs, executed one by one."""

    def __init__(self, bench: Workbench, task: PreparedTask, request: TrainRequest) -> None:
        self.bench = bench
        self.task = task
        self.request = request
        self.n_layers = bench.backbone.config.n_layers

    def full(self, seed: int) -> RunRecord:
        spec = self._spec("full", self.n_layers, seed, self.request.preset.full)
        return execute(self.bench, self.task, spec, start=Start(tensors={}, head=False))

    def partial(self, layers: int, seed: int) -> RunRecord:
        spec = self._spec("partial", layers, seed, self.request.preset.partial)
        start = initial_tensors(self.bench.backbone, None, exit_layer=spec.exit_layer, own_layers=layers)
        return execute(self.bench, self.task, spec, start=start)

    def students(self, teacher: Candidate) -> list[RunRecord]:
        found = self.bench.ledger.get(teacher.run_id)
        stored = read_branch(self.bench.ledger.branch_folder(found.run_id))
        taught: list[np.ndarray] | None = None
        records = []
        for spec in self._student_specs(teacher):
            if taught is None and self.bench.ledger.find(spec) is None:
                taught = teacher_logits(self.bench, found.spec, stored, self.task)
            start = initial_tensors(
                self.bench.backbone,
                stored.tensors if spec.init == "teacher" else None,
                exit_layer=spec.exit_layer,
                own_layers=spec.own_layers,
            )
            records.append(execute(self.bench, self.task, spec, start=start, teacher=taught))
        return records

    def _student_specs(self, teacher: Candidate) -> list[RunSpec]:
        request = self.request
        specs = []
        for exit_layer in request.student_exits or (teacher.exit_layer,):
            for own_layers in request.student_layers:
                if exit_layer + own_layers > self.n_layers:
                    self.bench.reporter.note(
                        f"task {self.task.spec.name!r}: no student of {own_layers} layers at the teacher's exit layer "
                        f"{exit_layer}, which leaves {self.n_layers - exit_layer}"
                    )
                    continue
                specs += [
                    self._student_spec(teacher, exit_layer, own_layers, seed=seed, init=init)
                    for init in request.student_inits
                    for seed in request.seeds
                ]
        return specs

    def _student_spec(self, teacher: Candidate, exit_layer: int, own_layers: int, *, seed: int, init: Init) -> RunSpec:
        return RunSpec(
            **self._shared(seed),
            arm="student",
            exit_layer=exit_layer,
            own_layers=own_layers,
            hyperparameters=self.request.preset.student,
            distillation=self.request.preset.distillation,
            label_teacher=teacher.run_id,
            init=init,
        )

    def _spec(self, arm: Arm, layers: int, seed: int, hyperparameters: Hyperparameters) -> RunSpec:
        return RunSpec(
            **self._shared(seed),
            arm=arm,
            exit_layer=self.n_layers - layers,
            own_layers=layers,
            hyperparameters=hyperparameters,
        )

    def _shared(self, seed: int) -> dict[str, Any]:
        return {
            "task": self.task.spec.name,
            "task_digest": self.task.task_digest,
            "data_digest": self.task.data_digest,
            "backbone_digest": self.bench.backbone.chain[-1],
            "pooling": self.task.spec.pooling,
            "seed": seed,
            "selection": self.request.selection,
            "cache_dtype": self.request.cache_dtype,
            "precision": self.bench.precision,
            "hidden_dropout": self.bench.backbone.config.hidden_dropout,
            "attention_dropout": self.bench.backbone.config.attention_dropout,
        }


def _check_length(task: TaskSpec, backbone: Backbone) -> None:
    if task.max_length > backbone.config.max_tokens:
        raise SpecError(
            f"task {task.name!r}: max_length {task.max_length} is more than the {backbone.config.max_tokens} tokens "
            f"that backbone {backbone.name!r} has positions for; lower max_length in the task file"
        )


def _tell_about_room(bench: Workbench, tasks: Sequence[PreparedTask], request: TrainRequest) -> None:
    """Say before the first run what the runs that are sure to come will add to the cache."""
    n_layers, cache = bench.backbone.config.n_layers, bench.cache
    exits = sorted({n_layers - layers for layers in request.layers} | set(request.student_exits or ()))
    wanted = 0
    for exit_layer in exits:
        learned = [row for task in tasks for row in task.fit.rows]
        measured = [
            row for task in tasks for part in (task.selection, task.dev) if part is not None for row in part.rows
        ]
        for rows, dtype in ((learned, request.cache_dtype), (measured, "float32")):
            wanted += cache.missing_bytes(bench.backbone, rows, exit_layer=exit_layer, dtype=dtype)
    if wanted:
        bench.reporter.note(
            f"activations at {len(exits)} exits ({', '.join(map(str, exits))}) add up to {wanted / 1e6:,.0f} MB to "
            f"{cache.root}, which has room for {cache.room_bytes() / 1e6:,.0f} MB"
        )


def _tell_about_data(bench: Workbench, task: PreparedTask) -> None:
    name = task.spec.name
    if task.n_truncated:
        bench.reporter.note(f"task {name!r}: {task.n_truncated} of {task.n_rows} rows were cut to max_length tokens")
    if task.n_unseen_labels:
        bench.reporter.note(f"task {name!r}: {task.n_unseen_labels} dev labels are not in train and count as errors")
