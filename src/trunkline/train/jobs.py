"""All runs of a task, in the paper's order: full (on request), partial for each L, then students of the best.

Which runs are needed follows from the request and from the metrics of earlier runs; every one of them goes through
the ledger, so what was killed goes on where it stopped, and several processes share the work.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.core.specs import Pooling
from trunkline.train.bench import Workbench
from trunkline.train.candidates import Candidate, best_partial, candidates_of
from trunkline.train.ledger import Needed
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import Start, Taught, execute
from trunkline.train.spec import Arm, Hyperparameters, RunRecord, RunSpec, TrainRequest, teachers_of
from trunkline.train.start import read_start, taken_over, teacher_start, warm_start
from trunkline.train.teach import taught_by

POLL_S = 1.0
"""How often is looked whether another process has finished, where a deadline forbids to wait for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One run that is to be done.

    Attributes:
        spec: What to do.
        start: Gives the weights that it starts from.
        teach: For students: gives the label teacher's answers to its rows.
        needed: What its record must come with.
    """

    spec: RunSpec
    start: Callable[[], Start]
    teach: Callable[[Split], Taught] | None = None
    needed: Needed = "branch"


class TaskRuns:
    """The runs of one task that a request asks for, and which of them are done.

    Args:
        bench: Backbone, ledger, cache.
        task: The prepared task.
        request: What is asked for.
        needed: What a finished run must come with: with ``record``, a run counts as done though its branch is gone.

    Raises:
        TrunkMismatchError: The branch to start in was trained on another trunk.
        BundleError: The branch to start in cannot be read.
    """

    def __init__(
        self, bench: Workbench, task: PreparedTask, request: TrainRequest, *, needed: Needed = "branch"
    ) -> None:
        self.bench = bench
        self.task = task
        self.request = request
        self.n_layers = bench.backbone.config.n_layers
        self.needed: Needed = needed
        self.done: dict[str, RunRecord] = {}
        self._branch = None if request.init_from is None else read_start(Path(request.init_from), bench.backbone)
        self._transfer = None if task.transfer is None else task.transfer.digest()
        self._first = self._first_jobs()
        self._students: list[Job] | None = None

    def open_jobs(self) -> list[Job]:
        """Runs that can be done now and are not; none when all are done."""
        waiting = [job for job in self._first if job.spec.run_id not in self.done]
        if waiting:
            return waiting
        if self._students is None:
            self._students = self._student_jobs()
        return [job for job in self._students if job.spec.run_id not in self.done]

    def records(self) -> list[RunRecord]:
        """Those of the runs that are done, in the order that they were asked for."""
        jobs = self._first + (self._students or [])
        return [self.done[job.spec.run_id] for job in jobs if job.spec.run_id in self.done]

    def execute(self, job: Job, *, wait: bool) -> bool:
        """Do one run, or find that it is done.

        Args:
            job: From `open_jobs`.
            wait: Whether to wait for another process that is at this run.

        Returns:
            False where another process is at it.
        """
        if not wait and self.bench.ledger.is_running(job.spec.run_id):
            return False
        record = execute(self.bench, self.task, job.spec, start=job.start, teach=job.teach, needed=job.needed)
        self.done[record.run_id] = record
        return True

    def _first_jobs(self) -> list[Job]:
        request = self.request
        jobs = []
        if request.full:
            kept: Needed = "model" if request.label_teacher == "full" else self.needed
            for seed in request.seeds:
                spec = self._spec("full", self.n_layers, seed, request.preset.full)
                jobs.append(Job(spec, lambda: Start(tensors={}, head=False), needed=kept))
        for layers in request.layers:
            for seed in request.seeds:
                spec = self._spec("partial", layers, seed, request.preset.for_layers(layers))
                jobs.append(Job(spec, self._first_start(spec), needed=self.needed))
        return jobs

    def _student_jobs(self) -> list[Job]:
        """Students of the best partial fine-tuning; who labels and where they start is the request's choice."""
        request, name = self.request, self.task.spec.name
        partial = [record for record in self.records() if record.spec.arm == "partial"]
        if not request.student_layers:
            return []
        if not partial:
            self.bench.reporter.note(
                f"task {name!r}: no students, which need a partially fine-tuned teacher (--layers)"
            )
            return []
        best = best_partial(candidates_of([r for r in partial if r.spec.own_layers in teachers_of(request)]))
        self.bench.reporter.note(
            f"task {name!r}: the teacher has {best.own_layers} layers "
            f"({best.metric} {best.selection_mean:.1f} on the selection rows)"
        )
        labels = self._label_teachers(best)
        starts = [r for r in partial if r.spec.own_layers == (request.init_layers or best.own_layers)]
        first = max(starts, key=lambda record: record.selection_metric)
        return [
            Job(
                spec,
                self._start(spec, first if spec.init == "teacher" else None),
                teach=lambda rows: self._taught_by(labels, rows),
                needed=self.needed,
            )
            for spec in self._student_specs(best, labels=labels, start_run=first.run_id)
        ]

    def _label_teachers(self, best: Candidate) -> list[RunRecord]:
        records = self.records()
        if self.request.label_teacher == "full":
            full = [record for record in records if record.spec.arm == "full"]
            return [max(full, key=lambda record: record.selection_metric)]
        seeds = [r for r in records if r.spec.arm == "partial" and r.spec.own_layers == best.own_layers]
        if self.request.label_teacher == "ensemble":
            return seeds
        return [record for record in seeds if record.run_id == best.run_id]

    def _taught_by(self, teachers: Sequence[RunRecord], rows: Split) -> Taught:
        matches_hidden = self.request.preset.distillation.hidden_weight > 0
        whole = [self._whole(teacher) for teacher in teachers]
        return taught_by(self.bench, self.task, whole, rows, features=matches_hidden)

    def _first_start(self, spec: RunSpec) -> Callable[[], Start]:
        branch = self._branch
        if branch is None:
            return self._start(spec, None)

        def start() -> Start:
            self.bench.reporter.note(taken_over(self.task, branch.spec, spec))
            return warm_start(self.bench.backbone, self.task, branch, spec)

        return start

    def _start(self, spec: RunSpec, teacher: RunRecord | None) -> Callable[[], Start]:
        return lambda: teacher_start(self.bench, spec, None if teacher is None else self._whole(teacher))

    def _whole(self, record: RunRecord) -> RunRecord:
        """A finished run with its weights; where they are gone, it is run again."""
        (job,) = [job for job in self._first if job.spec.run_id == record.run_id]
        needed: Needed = "model" if record.spec.arm == "full" else "branch"
        return execute(self.bench, self.task, job.spec, start=job.start, needed=needed)

    def _student_specs(self, teacher: Candidate, *, labels: Sequence[RunRecord], start_run: str) -> list[RunSpec]:
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
                    RunSpec(
                        **self._shared(seed),
                        arm="student",
                        exit_layer=exit_layer,
                        own_layers=own_layers,
                        hyperparameters=request.preset.student,
                        distillation=request.preset.distillation,
                        taught_by=request.label_teacher,
                        label_teachers=tuple(record.run_id for record in labels),
                        transfer=self._transfer,
                        init=init,
                        init_from=start_run if init == "teacher" else None,
                    )
                    for init in request.student_inits
                    for seed in request.seeds
                ]
        return specs

    def _spec(self, arm: Arm, layers: int, seed: int, hyperparameters: Hyperparameters) -> RunSpec:
        branch = self._branch if arm == "partial" else None
        return RunSpec(
            **self._shared(seed),
            arm=arm,
            exit_layer=self.n_layers - layers,
            own_layers=layers,
            hyperparameters=hyperparameters,
            init="backbone" if branch is None else "branch",
            init_from=None if branch is None else branch.spec.provenance.run_id,
        )

    def _shared(self, seed: int) -> dict[str, Any]:
        fields = run_fields(self.bench, self.task, seed=seed, pooling=self.task.spec.pooling)
        return fields | {"selection": self.request.selection, "cache_dtype": self.request.cache_dtype}


def run_fields(bench: Workbench, task: PreparedTask, *, seed: int, pooling: Pooling) -> dict[str, Any]:
    """The fields of a `RunSpec` that follow from the task and the bench."""
    return {
        "task": task.spec.name,
        "task_digest": task.task_digest,
        "data_digest": task.data_digest,
        "backbone_digest": bench.backbone.chain[-1],
        "pooling": pooling,
        "seed": seed,
        "selection": "train_slice",
        "cache_dtype": "bfloat16",
        "precision": bench.precision,
        "hidden_dropout": bench.backbone.config.hidden_dropout,
        "attention_dropout": bench.backbone.config.attention_dropout,
    }


def run_all(tasks: Sequence[TaskRuns], *, deadline: float | None = None) -> list[RunRecord]:
    """Do every run of every task, in order; a run that another process is at is left to it, and looked at later.

    Args:
        tasks: In the order that they are worked on.
        deadline: In seconds of `time.monotonic`; after it no run is begun. None works to the end.

    Returns:
        The records of the runs that are done, by task.

    Raises:
        TrainingError: A run failed.
    """
    late = False
    while not late and any(runs.open_jobs() for runs in tasks):
        progress = [_work_on(runs, deadline) for runs in tasks]
        late = deadline is not None and time.monotonic() > deadline
        if late or any(progress):
            continue
        if deadline is None:
            runs = next(runs for runs in tasks if runs.open_jobs())
            runs.execute(runs.open_jobs()[0], wait=True)
        else:
            time.sleep(POLL_S)
    return [record for runs in tasks for record in runs.records()]


def _work_on(runs: TaskRuns, deadline: float | None) -> bool:
    """Do what can be done of one task now, its students too as soon as their teacher is known; whether anything was."""
    did_something, progress = False, True
    while progress:
        progress = False
        for job in runs.open_jobs():
            if deadline is not None and time.monotonic() > deadline:
                return did_something
            progress |= runs.execute(job, wait=False)
        did_something |= progress
    return did_something
