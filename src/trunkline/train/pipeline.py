"""Training by request: checked before the first run, then every run goes through the ledger."""

from collections.abc import Sequence

from trunkline.core.errors import SpecError
from trunkline.core.specs import Selection, TaskSpec
from trunkline.core.types import Encoded
from trunkline.model.backbone import Backbone
from trunkline.train.bench import Workbench
from trunkline.train.jobs import TaskRuns, run_all
from trunkline.train.ledger import Needed
from trunkline.train.prepare import PreparedTask, prepare
from trunkline.train.spec import CacheDtype, RunRecord, TrainRequest, teachers_of
from trunkline.train.transfer import with_transfer


def check_request(request: TrainRequest, n_layers: int) -> None:
    """Refuse layer counts that the backbone does not have, before any work.

    Raises:
        SpecError: A count is out of range, or there is nothing to do.
    """
    if not request.layers and not request.full:
        raise SpecError("train: nothing to do; give at least one of --layers, or --full")
    if request.label_teacher == "full" and not request.full:
        raise SpecError("train: --label-teacher full needs a full fine-tuning; add --full")
    if request.init_layers is not None and request.init_layers not in request.layers:
        raise SpecError(
            f"train: --init-layers {request.init_layers} is not among --layers; students can start in what was tuned"
        )
    if not request.seeds:
        raise SpecError("train: no seeds; give at least one")
    if min(request.seeds) < 0:
        raise SpecError(f"train: seed {min(request.seeds)} is below 0; give whole numbers from 0")
    if min(request.student_layers, default=0) < 0:
        raise SpecError(f"train: --students {min(request.student_layers)} is below 0; give counts of layers")
    for count in request.layers:
        if not 1 <= count <= n_layers:
            raise SpecError(f"train: --layers {count} is outside 1..{n_layers} (backbone has {n_layers} layers)")
    _check_repeats(request)
    _check_teachers(request)
    _check_students(request, n_layers)
    _check_further_inputs(request)


def _check_repeats(request: TrainRequest) -> None:
    named = {"--seeds": request.seeds, "--layers": request.layers, "--students": request.student_layers}
    for option, values in named.items():
        if len(set(values)) < len(values):
            raise SpecError(f"train: {option} {', '.join(map(str, values))} names one twice; give each once")


def _check_further_inputs(request: TrainRequest) -> None:
    """Refuse options that no run would use."""
    if request.augment < 0:
        raise SpecError(f"train: --augment {request.augment} is below 0; give how many rows to make of each row")
    has_students = bool(request.layers and request.student_layers)
    if (request.transfer is not None or request.augment) and not has_students:
        raise SpecError(
            "train: --transfer and --augment give rows to students, and none is asked for; add --layers and "
            "--students, or leave them out"
        )
    if request.init_from is not None and not request.layers:
        raise SpecError("train: --init-from is where partial fine-tuning starts, and none is asked for; add --layers")


def _check_teachers(request: TrainRequest) -> None:
    if request.teacher_layers is None:
        return
    if not request.teacher_layers and request.student_layers:
        raise SpecError("train: teacher_layers is empty; students need a teacher; give at least one L")
    for count in request.teacher_layers:
        if count not in request.layers:
            raise SpecError(
                f"train: teacher_layers {count} is not among --layers {', '.join(map(str, request.layers))}; "
                "what teaches must be tuned first; add it there"
            )


def _check_students(request: TrainRequest, n_layers: int) -> None:
    longest = max(teachers_of(request), default=n_layers)
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
        BundleError: The branch to start in cannot be read, or was trained on another trunk.
        TrainingError: A run failed.
    """
    return train_each(bench, [(task, request) for task in tasks])


def train_each(
    bench: Workbench,
    asked: Sequence[tuple[TaskSpec, TrainRequest]],
    *,
    needed: Needed = "branch",
    deadline: float | None = None,
) -> list[RunRecord]:
    """`train_tasks` with a request for each task, within a time.

    Args:
        bench: Backbone, ledger, cache.
        asked: Tasks with what is asked for each.
        needed: What a finished run must come with: with ``record``, a run counts as done though its branch is gone.
        deadline: In seconds of `time.monotonic`; after it no run is begun. None works to the end.

    Returns:
        The records of the runs that are done, by task.

    Raises:
        SpecError: A request or a task does not fit the backbone.
        DataError: A row is wrong.
        TrainingError: A run failed.
    """
    for task, request in asked:
        check_request(request, bench.backbone.config.n_layers)
        _check_kind(task, request)
    prepared = [
        (with_transfer(each, bench.backbone, request, note=bench.reporter.note), request)
        for task, request in asked
        for each in prepare_tasks(bench, [task], selection=request.selection)
    ]
    runs = [TaskRuns(bench, each, request, needed=needed) for each, request in prepared]
    _tell_about_room(bench, prepared)
    return run_all(runs, deadline=deadline)


def train_task(bench: Workbench, task: TaskSpec, request: TrainRequest) -> list[RunRecord]:
    """`train_tasks` of a single task."""
    return train_tasks(bench, [task], request)


def prepare_tasks(bench: Workbench, tasks: Sequence[TaskSpec], *, selection: Selection) -> list[PreparedTask]:
    """Read and check all tasks, and say what is odd about their rows.

    Raises:
        SpecError: A task does not fit the backbone.
        DataError: A row is wrong.
    """
    for task in tasks:
        _check_length(task, bench.backbone)
    prepared = [prepare(task, bench.backbone.tokenizer, selection=selection) for task in tasks]
    for each in prepared:
        _tell_about_data(bench, each)
    return prepared


def _check_length(task: TaskSpec, backbone: Backbone) -> None:
    if task.max_length > backbone.config.max_tokens:
        raise SpecError(
            f"task {task.name!r}: max_length {task.max_length} is more than the {backbone.config.max_tokens} tokens "
            f"that backbone {backbone.name!r} has positions for; lower max_length in the task file"
        )


def _check_kind(task: TaskSpec, request: TrainRequest) -> None:
    if request.augment and task.kind == "tagging":
        raise SpecError(
            f"task {task.name!r}: --augment {request.augment} is not for tagging, whose tags do not carry over to "
            "other words; give unlabelled rows with --transfer, or train this task without --augment"
        )


def _tell_about_room(bench: Workbench, asked: Sequence[tuple[PreparedTask, TrainRequest]]) -> None:
    """Say before the first run what the runs that are sure to come will add to the cache."""
    cache, exits, wanted = bench.cache, set[int](), 0
    for rows, dtype, exit_layer in _states_wanted(asked, bench.backbone.config.n_layers):
        exits.add(exit_layer)
        wanted += cache.missing_bytes(bench.backbone, rows, exit_layer=exit_layer, dtype=dtype)
    if wanted:
        bench.reporter.note(
            f"activations at {len(exits)} exits ({', '.join(map(str, sorted(exits)))}) add up to "
            f"{wanted / 1e6:,.0f} MB to {cache.root}, which has room for {cache.room_bytes() / 1e6:,.0f} MB"
        )


def _states_wanted(
    asked: Sequence[tuple[PreparedTask, TrainRequest]], n_layers: int
) -> list[tuple[list[Encoded], CacheDtype, int]]:
    """Rows with the dtype and exit that their states are wanted in; tasks on the same texts share rows."""
    wanted: dict[tuple[CacheDtype, int], list[Encoded]] = {}
    for task, request in asked:
        learned = task.fit.rows
        measured = [row for part in (task.selection, task.dev) if part is not None for row in part.rows]
        partial = {n_layers - layers for layers in request.layers}
        # Without --student-exits students read at the exit of the best teacher, known where there is only one.
        of_students = set(request.student_exits or (partial if len(partial) == 1 else ()))
        for exit_layer in partial | of_students:
            wanted.setdefault((request.cache_dtype, exit_layer), []).extend(learned)
            if task.transfer is not None and exit_layer in of_students:
                wanted[request.cache_dtype, exit_layer].extend(task.transfer.rows)
            wanted.setdefault(("float32", exit_layer), []).extend(measured)
    return [(rows, dtype, exit_layer) for (dtype, exit_layer), rows in wanted.items()]


def _tell_about_data(bench: Workbench, task: PreparedTask) -> None:
    name = task.spec.name
    if task.n_truncated:
        bench.reporter.note(f"task {name!r}: {task.n_truncated} of {task.n_rows} rows were cut to max_length tokens")
    if task.n_unseen_labels:
        bench.reporter.note(f"task {name!r}: {task.n_unseen_labels} dev labels are not in train and count as errors")
