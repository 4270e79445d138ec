"""The rows of the paper's tables and the points of its figure 5, out of cells. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec

from trunkline.model.cost import EncoderSizes
from trunkline.train.plan import choose_by_gain
from trunkline.train.price import LAYER_PRICES, Part, flop_prices
from trunkline.train.reproduction import (
    MIN_GAINS,
    Cell,
    Cost,
    Reproduction,
    Row,
    StudiedTask,
    TaskCells,
    TradeOff,
    average,
    cells_of_records,
    mean_gain_of_teacher_init,
)
from trunkline.train.spec import RunRecord
from trunkline.train.study import Study


@dataclass(frozen=True, slots=True)
class _Choice:
    """A cell as the rule of section 4.2 sees it."""

    cell: Cell
    selection_mean: float

    @property
    def own_layers(self) -> int:
        return self.cell.own_layers


def reproduce(study: Study, records: Sequence[RunRecord]) -> Reproduction:
    """Everything that a ledger has to say about a study, open cells included.

    Args:
        study: What is asked.
        records: Of any runs; what is not asked for is passed over.
    """
    return make_reproduction(study, cells_of_records(study, records))


def make_reproduction(study: Study, tasks: Sequence[TaskCells]) -> Reproduction:
    """Tables and figures of tasks whose cells are known."""
    finished = [each for each in tasks if each.finished]
    lengths = sorted({count for each in tasks for count in each.partial})
    table1 = [
        _row(f"L = {count}", [each.partial[count] for each in tasks if count in each.partial], finished)
        for count in lengths
    ]
    full = _row("full", [each.full for each in tasks], finished)
    students = [_student_row(count, tasks, finished) for count in _student_lengths(tasks)]
    teacher = _row("without KD", [each.teacher for each in tasks if each.teacher is not None], finished)
    mixed = [_mixed_row(c, finished) for c in MIN_GAINS]
    full, *priced = (_with_cost(row, finished, study.sizes) for row in (full, *students, teacher, *mixed))
    students, teacher, mixed = priced[: len(students)], priced[len(students)], priced[len(students) + 1 :]
    table5 = (full, *students, *mixed, teacher)
    cells = [cell for each in tasks for cell in (each.full, *each.partial.values(), *each.students.values())]
    return Reproduction(
        backbone=study.backbone,
        sizes=study.sizes,
        tasks=tuple(_studied(each) for each in tasks),
        table1=(*table1, msgspec.structs.replace(full, cost=None)),
        table2=(full, *students, teacher, mixed[0]),
        table5=table5,
        figure2=tuple(cell for each in tasks for cell in each.students.values()),
        figure5=(*_points(table5), *_sweep(finished, study.sizes)),
        teacher_init_gain=mean_gain_of_teacher_init(tasks),
        cells_done=sum(cell.done for cell in cells),
        cells_wanted=len(cells),
    )


def _studied(each: TaskCells) -> StudiedTask:
    return StudiedTask(
        task=each.task,
        metric=each.metric,
        n_train_rows=None if each.rows is None else each.rows.count,
        mean_tokens=None if each.rows is None else each.rows.mean_tokens,
        teacher_layers=None if each.teacher is None else each.teacher.own_layers,
        finished=each.finished,
    )


def _row(name: str, cells: Sequence[Cell], finished: Sequence[TaskCells]) -> Row:
    row = Row(name=name, cells=tuple(cells), average=None)
    return msgspec.structs.replace(row, average=average(row, [each.task for each in finished]))


def _student_lengths(tasks: Sequence[TaskCells]) -> list[int]:
    return sorted({count for each in tasks for count, _ in each.students})


def _student_row(count: int, tasks: Sequence[TaskCells], finished: Sequence[TaskCells]) -> Row:
    cells = [each.students[count, "teacher"] for each in tasks if (count, "teacher") in each.students]
    return _row(f"KD-{count}", cells, finished)


def _mixed_row(min_gain: float, finished: Sequence[TaskCells]) -> Row:
    return _row(f"mixed, c = {min_gain:g}", [_chosen(each, min_gain) for each in finished], finished)


def _choices(each: TaskCells) -> list[_Choice]:
    return [_Choice(cell, cell.selection_mean) for cell in each.options if cell.selection_mean is not None]


def _chosen(each: TaskCells, min_gain: float) -> Cell:
    chosen, _ = choose_by_gain(_choices(each), min_gain=min_gain)
    return chosen.cell


def _with_cost(row: Row, finished: Sequence[TaskCells], sizes: EncoderSizes) -> Row:
    cells = {cell.task: cell for cell in row.cells}
    if row.average is None:
        return row
    return msgspec.structs.replace(row, cost=_cost([cells[each.task] for each in finished], finished, sizes))


def _cost(cells: Sequence[Cell], tasks: Sequence[TaskCells], sizes: EncoderSizes) -> Cost:
    """Of one row of these tasks' mean length that every one of them is asked about; full fine-tuning shares nothing."""
    tokens = fmean(each.rows.mean_tokens for each in tasks if each.rows is not None)
    branches = [
        Part(cell.exit_layer or 0, cell.own_layers, each.folded) for cell, each in zip(cells, tasks, strict=True)
    ]
    return Cost(
        trunk_depth=max(branch.exit_layer for branch in branches),
        own_layers=sum(branch.own_layers for branch in branches),
        overhead=LAYER_PRICES.total(branches),
        share=LAYER_PRICES.share(branches, sizes.n_layers),
        flops_share=flop_prices(sizes, tokens).share(branches, sizes.n_layers),
    )


def _points(rows: Sequence[Row]) -> list[TradeOff]:
    return [
        TradeOff(name=row.name, min_gain=None, average=row.average, cost=row.cost)
        for row in rows
        if row.average is not None and row.cost is not None
    ]


def _sweep(finished: Sequence[TaskCells], sizes: EncoderSizes) -> list[TradeOff]:
    """Every choice that some c leads to: it changes only where c passes the gain of one of a task's pairs."""
    bounds = {0.0}
    for each in finished:
        choices = _choices(each)
        bounds |= {
            (longer.selection_mean - shorter.selection_mean) / (longer.own_layers - shorter.own_layers)
            for shorter in choices
            for longer in choices
            if longer.own_layers > shorter.own_layers
        }
    # Just above a bound the step that gains exactly so much is no longer taken.
    asked = sorted({c for bound in bounds if bound >= 0 for c in (bound, bound + 1e-6)})
    points: list[TradeOff] = []
    seen: set[tuple[tuple[str, int, int | None], ...]] = set()
    for min_gain in asked:
        cells = [_chosen(each, min_gain) for each in finished]
        key = tuple((cell.arm, cell.own_layers, cell.exit_layer) for cell in cells)
        means = [cell.mean for cell in cells if cell.mean is not None]
        if key in seen or len(means) < len(cells) or not cells:
            continue
        seen.add(key)
        cost = _cost(cells, finished, sizes)
        points.append(TradeOff(name="mixed", min_gain=min_gain, average=fmean(means), cost=cost))
    return points
