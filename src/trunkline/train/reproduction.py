"""The paper's tables 1, 2 and 5 and its figures 2 and 5, from the records of runs alone. No torch.

Whatever the ledger has at the moment is shown: a cell without all its seeds is open, and open cells are counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec

from trunkline.core.errors import SpecError
from trunkline.core.specs import Metric, Spec, TaskSpec
from trunkline.model.cost import EncoderSizes
from trunkline.train.candidates import Candidate, best_partial, candidates_of
from trunkline.train.spec import Arm, Init, RunRecord, TrainRequest, teachers_of
from trunkline.train.study import Study, asked_records

MIN_GAINS = (1.0, 2.0, 3.0)
"""The paper's c: its table 2 has the first, its table 5 all of them."""
SHADED = 0.99
"""Share of full fine-tuning from which on a cell is shaded (paper, table 2)."""


class Cell(Spec, frozen=True, kw_only=True):
    """One figure of a table: a task trained in one way, over its seeds.

    Attributes:
        task: The task's name.
        arm: What was tuned.
        init: Where a student started.
        exit_layer: Trunk layers below; None for a student whose teacher is not known yet.
        own_layers: Layers of its own.
        seeds: Those that are done.
        n_wanted: How many seeds are asked for; the cell is open until all of them are done.
        dev_metrics: Points on dev, one a seed.
        selection_mean: Mean on the selection rows, what choices are made by; None before the first seed.
        mean: Over the seeds on dev, points; None before the first seed.
        spread: Standard deviation over seeds (n − 1), points; None below two seeds.
        max: The best seed, which is what the paper prints.
        reaches_99: Whether the mean is at least 99% of the mean of full fine-tuning; None for full fine-tuning itself
            and where a figure is missing.
    """

    task: str
    arm: Arm
    init: Init
    exit_layer: int | None
    own_layers: int
    seeds: tuple[int, ...]
    n_wanted: int
    dev_metrics: tuple[float, ...]
    selection_mean: float | None
    mean: float | None
    spread: float | None
    max: float | None
    reaches_99: bool | None

    @property
    def done(self) -> bool:
        """Whether every seed is there."""
        return len(self.seeds) >= self.n_wanted


class Cost(Spec, frozen=True, kw_only=True):
    """What one row costs that every task is asked about (paper section 4.1).

    Attributes:
        trunk_depth: Shared layers: up to the deepest exit.
        own_layers: Layers of all branches.
        overhead: Both together.
        share: Of the layers of one whole backbone a task, 0 to 1.
        flops_share: Of their floating-point operations, 0 to 1 (`trunkline.train.price.Prices.share`).
    """

    trunk_depth: int
    own_layers: int
    overhead: int
    share: float
    flops_share: float


class Row(Spec, frozen=True, kw_only=True):
    """One row of a table.

    Attributes:
        name: ``full``, ``L = 4``, ``KD-1``, ``without KD``, or ``mixed, c = 1``.
        cells: One a task that has such a cell.
        average: Of the means of the finished tasks, points; None where one has no such cell.
        cost: Of the finished tasks together; None where `average` is, and in table 1.
    """

    name: str
    cells: tuple[Cell, ...]
    average: float | None
    cost: Cost | None = None


class TradeOff(Spec, frozen=True, kw_only=True):
    """One point of figure 5.

    Attributes:
        name: Of the row of table 5; for the sweep, ``mixed``.
        min_gain: The least c that gives this point of the sweep; None for the rows.
        average: Of the finished tasks, points.
        cost: Of the finished tasks together.
    """

    name: str
    min_gain: float | None
    average: float
    cost: Cost


class StudiedTask(Spec, frozen=True, kw_only=True):
    """What is known of a task.

    Attributes:
        task: Its name.
        metric: What its figures are, in points; None before its first run.
        n_train_rows: Rows learned from.
        mean_tokens: Of the rows learned from.
        teacher_layers: L of the teacher, as it is chosen now; None until every L that may teach has a run.
        finished: Whether all that the tables rest on is done; averages and costs are over these tasks.
    """

    task: str
    metric: Metric | None
    n_train_rows: int | None
    mean_tokens: float | None
    teacher_layers: int | None
    finished: bool


class Reproduction(Spec, frozen=True, kw_only=True):
    """The paper's tables and figures on other tasks and another backbone.

    Attributes:
        backbone: Its name.
        sizes: Of the backbone.
        tasks: In the order of the columns.
        table1: Partial fine-tuning: one row for each L, then ``full``.
        table2: The paper's own method: ``full``, KD-1 and so on, ``without KD``, mixed with the first c.
        table5: The same with every c.
        figure2: Students of both starts.
        figure5: Every row of table 5, and the sweep over c.
        teacher_init_gain: Mean over the pairs (task, l) of the mean that starts in the teacher minus that which
            starts in the backbone, points; None before the first pair.
        cells_done: Cells of table 1 and figure 2 with all their seeds; the other tables choose among these.
        cells_wanted: All of them.
    """

    backbone: str
    sizes: EncoderSizes
    tasks: tuple[StudiedTask, ...]
    table1: tuple[Row, ...]
    table2: tuple[Row, ...]
    table5: tuple[Row, ...]
    figure2: tuple[Cell, ...]
    figure5: tuple[TradeOff, ...]
    teacher_init_gain: float | None
    cells_done: int
    cells_wanted: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that a task learns from: how many, and their mean length in tokens."""

    count: int
    mean_tokens: float


@dataclass(frozen=True, slots=True, eq=False)
class TaskCells:
    """The cells of one task, and what they have in common.

    Attributes:
        task: Its name.
        metric: None before its first run.
        rows: What it learns from; None before its first run.
        folded: Whether the last layer makes the first token alone.
        full: Full fine-tuning.
        partial: By L.
        teacher: The partial fine-tuning that teaches; None while it is not known.
        students: By (l, init).
    """

    task: str
    metric: Metric | None
    rows: Rows | None
    folded: bool
    full: Cell
    partial: Mapping[int, Cell]
    teacher: Cell | None
    students: Mapping[tuple[int, Init], Cell]

    @property
    def finished(self) -> bool:
        """Whether full, every L and every student that starts in the teacher is done: then no row will change."""
        students = [cell for (_, init), cell in self.students.items() if init == "teacher"]
        cells = (self.full, *self.partial.values(), *students)
        return self.teacher is not None and all(cell.done for cell in cells)

    @property
    def options(self) -> list[Cell]:
        """What the mixed rows choose among: students that start in the teacher, and the teacher itself."""
        students = [cell for (_, init), cell in self.students.items() if init == "teacher"]
        teacher = [] if self.teacher is None else [self.teacher]
        return [cell for cell in (*students, *teacher) if cell.selection_mean is not None]


def teacher_range(layers: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Those L that may teach: from a third to five sixths of all layers, as 4 to 10 of 12 (paper section 3.1).

    A teacher that tunes more leaves nothing to share, and one that tunes less is hardly longer than its students.

    Raises:
        SpecError: None of `layers` is among them.
    """
    low, high = -(-n_layers // 3), 5 * n_layers // 6
    found = tuple(count for count in layers if low <= count <= high)
    if not found:
        raise SpecError(
            f"numbers L of tuned layers: {', '.join(map(str, layers)) or 'none'}; students on {n_layers} layers are "
            f"taught by {low} to {high} of them (the paper's 4 to 10 of 12); add one of these"
        )
    return found


def check_studied(tasks: Sequence[TaskSpec]) -> None:
    """Refuse tasks that no table could show.

    Raises:
        SpecError: A task has no dev rows.
    """
    for task in tasks:
        if task.data.dev is None:
            raise SpecError(
                f"task {task.name!r}: has no dev rows; every figure of a table is measured on dev; "
                "name its rows in the task file"
            )


def task_cells(study: Study, candidates: Sequence[Candidate], rows: Mapping[str, Rows]) -> list[TaskCells]:
    """The cells of every task of a study, done or open.

    Args:
        study: What is asked.
        candidates: What the ledger says; others than those that are asked for are passed over.
        rows: Of each task that has candidates.
    """
    made = []
    for task, request in study.requests.items():
        own = [candidate for candidate in candidates if candidate.task == task]
        made.append(_cells_of_task(task, request, own, rows.get(task), study.sizes.n_layers))
    return made


def cells_of_records(study: Study, records: Sequence[RunRecord]) -> list[TaskCells]:
    """`task_cells` from a ledger's records, whatever else they hold."""
    asked = asked_records(study, records)
    rows = {r.spec.task: Rows(r.n_train_rows, r.mean_tokens) for r in asked}
    return task_cells(study, candidates_of(asked), rows)


def _cells_of_task(
    task: str, request: TrainRequest, candidates: Sequence[Candidate], rows: Rows | None, n_layers: int
) -> TaskCells:
    found = {(c.arm, c.exit_layer, c.own_layers, c.init): c for c in candidates}
    n_wanted = len(request.seeds)

    def cell(arm: Arm, exit_layer: int | None, own_layers: int, init: Init, full: float | None) -> Cell:
        known = None if exit_layer is None else found.get((arm, exit_layer, own_layers, init))
        blank = _blank(task, arm, init, exit_layer, own_layers, n_wanted)
        return blank if known is None else _filled(blank, known, full)

    full = cell("full", 0, n_layers, "backbone", None)
    partial = {count: cell("partial", n_layers - count, count, "backbone", full.mean) for count in request.layers}
    teacher = _teacher_of(request, candidates, partial)
    exit_layer = None if teacher is None else teacher.exit_layer
    students: dict[tuple[int, Init], Cell] = {
        (count, init): cell("student", exit_layer, count, init, full.mean)
        for count in request.student_layers
        for init in request.student_inits
        if teacher is None or count <= teacher.own_layers
    }
    metric = candidates[0].metric if candidates else None
    folded = metric != "span_f1" and any(candidate.pooling == "cls" for candidate in candidates)
    return TaskCells(
        task=task, metric=metric, rows=rows, folded=folded, full=full, partial=partial, teacher=teacher,
        students=students,
    )  # fmt: skip


def _teacher_of(request: TrainRequest, candidates: Sequence[Candidate], partial: Mapping[int, Cell]) -> Cell | None:
    """The best L of those that may teach; None until each of them has a run."""
    teachers = teachers_of(request)
    if not teachers or any(not partial[count].seeds for count in teachers):
        return None
    best = best_partial([c for c in candidates if c.arm == "partial" and c.own_layers in teachers])
    return partial[best.own_layers]


def _blank(task: str, arm: Arm, init: Init, exit_layer: int | None, own_layers: int, n_wanted: int) -> Cell:
    return Cell(
        task=task, arm=arm, init=init, exit_layer=exit_layer, own_layers=own_layers, seeds=(), n_wanted=n_wanted,
        dev_metrics=(), selection_mean=None, mean=None, spread=None, max=None, reaches_99=None,
    )  # fmt: skip


def _filled(blank: Cell, candidate: Candidate, full: float | None) -> Cell:
    mean = candidate.dev_mean
    return msgspec.structs.replace(
        blank,
        seeds=candidate.seeds,
        dev_metrics=candidate.dev_metrics,
        selection_mean=candidate.selection_mean,
        mean=mean,
        spread=candidate.dev_spread,
        max=candidate.dev_max,
        # A hair below the bound is a tie broken by binary fractions.
        reaches_99=None if mean is None or full is None else mean >= SHADED * full - 1e-9,
    )


def mean_gain_of_teacher_init(tasks: Sequence[TaskCells]) -> float | None:
    """Mean over (task, l) of what starting in the teacher brings, points; None without a pair."""
    gains = []
    for each in tasks:
        for count in dict.fromkeys(count for count, _ in each.students):
            pair = [each.students.get((count, init)) for init in ("teacher", "backbone")]
            means = [cell.mean for cell in pair if cell is not None and cell.mean is not None]
            if len(means) == 2:
                gains.append(means[0] - means[1])
    return fmean(gains) if gains else None


def average(row: Row, tasks: Sequence[str]) -> float | None:
    """Average of a row over some tasks, points; None where one has no figure in this row, and over no task."""
    means = {cell.task: cell.mean for cell in row.cells}
    found = [mean for task in tasks if (mean := means.get(task)) is not None]
    return fmean(found) if found and len(found) == len(tasks) else None
