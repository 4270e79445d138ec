"""The page and the pictures of paper-tables, made from its result file alone."""

from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages import half_width, measured_by, replace_between
from trunkline.bundle.files import swap_file
from trunkline.reports.pictures import pictures
from trunkline.reports.tables import markdown_tables
from trunkline.train.reproduction import Reproduction

PAGE = ROOT / "docs" / "benchmarks" / "paper-tables.md"
RESULT = RESULTS / "paper-tables.json"
MARKS = ("<!-- tables: paper-tables -->", "<!-- end of tables -->")
NO_RESULT = "No result is kept yet."
NOTE = (
    "all-mpnet-base-v2 and all-MiniLM-L6-v2 saw natural language inference, Quora duplicates and question-answer pairs "
    "in their own tuning, so MNLI, QNLI and QQP flatter frozen layers: averages are given without them too."
)
QQP_DEV = (
    "Dev parts are the official ones (MNLI: matched), but for QQP: the official one was not at hand, and rows of the "
    "official train, which are not learned from, stand for it. Of more than 1,000 rows of MNLI, QNLI and QQP a sample "
    "is measured."
)


def write_page(path: Path) -> None:
    """Draw the pictures beside the result; put the tables into the page when the result is the kept one."""
    result = msgspec.json.decode(path.read_bytes())
    tables = markdown_result(result)
    print(tables)
    swap_file(path.with_suffix(".md"), f"{tables}\n".encode())
    drawn = pictures(reproduction_of(result))
    for name, content in drawn.items():
        swap_file(path.with_name(f"{path.stem}.{name}"), content)
    if path.resolve() == RESULT.resolve():
        links = [f"![{name.removesuffix('.png')}](../../benchmarks/results/{path.stem}.{name})" for name in drawn]
        replace_between(PAGE, MARKS, "\n\n".join((tables, *links)))


def reproduction_of(result: dict[str, Any]) -> Reproduction:
    """The tables as values."""
    return msgspec.convert(result["details"]["reproduction"], Reproduction)


def markdown_result(result: dict[str, Any]) -> str:
    """What was measured on which rows, the note that belongs to every such table, and the tables."""
    made = reproduction_of(result)
    contaminated = result["details"]["contaminated"]
    said = [*([NOTE] if contaminated else []), *([QQP_DEV] if "qqp" in {each.task for each in made.tasks} else [])]
    some_left = any(each.finished and each.task not in contaminated for each in made.tasks)
    return "\n\n".join(
        (
            *([" ".join(said)] if said else []),
            columns_table(result),
            markdown_tables(made, without=contaminated if some_left else ()).strip(),
            measured_by(result),
        )
    )


def columns_table(result: dict[str, Any]) -> str:
    """One line a column of the tables: rows, whether they are a subset, seeds, and the interval of a small dev part.

    Beside the dev rows of an accuracy stands the half-width of its 95% interval at the mean of full fine-tuning.
    """
    made = reproduction_of(result)
    full = {cell.task: cell.mean for cell in made.table1[-1].cells}
    tasks = {each.task: each for each in made.tasks}
    lines = ["| task | metric | train rows | dev rows (95% interval) | seeds |", "| --- | --- | ---: | ---: | ---: |"]
    for entry in result["details"]["entries"]:
        learned, mean = tasks[entry["task"]].n_train_rows, full[entry["task"]]
        rows = "open" if learned is None else str(learned)
        sample = "" if entry["max_train_rows"] is None else f" (of a sample of {entry['max_train_rows']})"
        interval = ""
        if entry["metric"] == "accuracy" and mean is not None:
            interval = f" (±{half_width(mean, entry['n_dev_rows']):.1f})"
        lines.append(
            f"| {entry['task']} | {entry['metric']} | {rows}{sample} | {entry['n_dev_rows']}{interval} | "
            f"{entry['n_seeds']} |"
        )
    return "\n".join(lines)
