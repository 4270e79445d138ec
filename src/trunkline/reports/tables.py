"""Markdown tables of a reproduction."""

from collections.abc import Sequence

from trunkline.train.reproduction import Cell, Reproduction, Row, average

OPEN, NOT_ASKED = "open", "–"
LEGEND = (
    "Points on dev: mean over seeds ± standard deviation (maximum, which is what the paper prints). "
    "**Bold**: the mean is at least 99% of that of full fine-tuning."
)


def markdown_tables(made: Reproduction, *, without: Sequence[str] = ()) -> str:
    """Tables 1, 2 and 5 and the numbers of figure 2.

    Args:
        made: What to show.
        without: Tasks that a second average leaves out.
    """
    parts = (
        f"{LEGEND} {progress_line(made)}",
        "**Table 1.** Partial fine-tuning of the top L layers.",
        table1(made, without=without),
        "**Table 2.** One branch a task over a shared trunk; behind the points exit layer + own layers.",
        methods_table(made, made.table2, without=without),
        "**Table 5.** The same for each c, the points that an added layer must bring.",
        methods_table(made, made.table5, without=without),
        "**Figure 2, as numbers.** Students that start in the teacher and in the backbone.",
        students_table(made),
    )
    return "\n\n".join(parts) + "\n"


def progress_line(made: Reproduction) -> str:
    """How many cells are open, and over which tasks averages are taken."""
    finished = [each.task for each in made.tasks if each.finished]
    if made.cells_done == made.cells_wanted:
        return f"All {made.cells_wanted} cells are done."
    over = f"averages and layers are over {', '.join(finished)}" if finished else "there are no averages yet"
    return f"{made.cells_wanted - made.cells_done} of {made.cells_wanted} cells are open; {over}."


def table1(made: Reproduction, *, without: Sequence[str] = ()) -> str:
    """One line for each L, then full fine-tuning; one column a task."""
    names = [each.task for each in made.tasks]
    lines = []
    for row in made.table1:
        cells = {cell.task: cell_text(cell) for cell in row.cells}
        lines.append([row.name, *(cells.get(name, NOT_ASKED) for name in names), *_averages(made, row, without)])
    return _table(["", *names, *_average_headings(made, without)], lines)


def methods_table(made: Reproduction, rows: Sequence[Row], *, without: Sequence[str] = ()) -> str:
    """One line for each row of table 2 or 5, with layers and overhead."""
    lines = []
    for row in rows:
        cells = {cell.task: f"{cell_text(cell)}{_place(cell)}" for cell in row.cells}
        missing = {each.task: NOT_ASKED if each.finished else OPEN for each in made.tasks}
        shown = [cells.get(each.task, missing[each.task]) for each in made.tasks]
        lines.append([row.name, *shown, *_averages(made, row, without), *_cost(row)])
    headings = ["", *(each.task for each in made.tasks), *_average_headings(made, without)]
    return _table([*headings, "layers", "overhead", "of operations"], lines)


def students_table(made: Reproduction) -> str:
    """One line for each l and start; one column a task."""
    names = [each.task for each in made.tasks]
    by_row: dict[tuple[int, str], dict[str, str]] = {}
    for cell in made.figure2:
        by_row.setdefault((cell.own_layers, cell.init), {})[cell.task] = cell_text(cell)
    lines = [
        [f"l = {count}, from the {init}", *(cells.get(name, NOT_ASKED) for name in names)]
        for (count, init), cells in sorted(by_row.items(), key=lambda item: (item[0][0], item[0][1] != "teacher"))
    ]
    table = _table(["", *names], lines)
    if made.teacher_init_gain is None:
        return table
    return f"{table}\n\nTo start in the teacher is worth {made.teacher_init_gain:+.1f} points on average."


def cell_text(cell: Cell) -> str:
    """Mean ± spread (maximum), bold from 99% of full fine-tuning; what is missing is said."""
    if not cell.seeds:
        return OPEN
    if cell.mean is None:
        return NOT_ASKED
    text = f"**{cell.mean:.1f}**" if cell.reaches_99 else f"{cell.mean:.1f}"
    if cell.spread is not None:
        text += f" ± {cell.spread:.1f} ({cell.max:.1f})"
    return text if cell.done else f"{text} [{len(cell.seeds)} of {cell.n_wanted} seeds]"


def _place(cell: Cell) -> str:
    return "" if cell.exit_layer is None or cell.arm == "full" else f", {cell.exit_layer} + {cell.own_layers}"


def _averages(made: Reproduction, row: Row, without: Sequence[str]) -> list[str]:
    averages = [row.average]
    if without:
        averages.append(average(row, [e.task for e in made.tasks if e.finished and e.task not in without]))
    return [NOT_ASKED if each is None else f"{each:.1f}" for each in averages]


def _average_headings(made: Reproduction, without: Sequence[str]) -> list[str]:
    n_finished = sum(each.finished for each in made.tasks)
    headings = ["average" if n_finished == len(made.tasks) else f"average ({n_finished} of {len(made.tasks)} tasks)"]
    return [*headings, f"without {', '.join(without)}"] if without else headings


def _cost(row: Row) -> list[str]:
    if row.cost is None:
        return [NOT_ASKED] * 3
    c = row.cost
    return [f"{c.trunk_depth} + {c.own_layers}", f"{c.overhead} ({c.share:.1%})", f"{c.flops_share:.1%}"]


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))
