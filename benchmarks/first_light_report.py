"""The table and the picture of first-light, made from its result file alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from benchmarks.harness import RESULTS, ROOT

PAGES = (ROOT / "docs" / "benchmarks" / "first-light.md", ROOT / "README.md")
TABLE_START, TABLE_END = "<!-- table: first-light -->", "<!-- end of table -->"


def write_page(path: Path) -> None:
    """Draw the picture beside the result; put the table into the pages when the result is the kept one."""
    result = msgspec.json.decode(path.read_bytes())
    table = markdown_table(result)
    print(table)
    draw(result, path.with_suffix(".png"))
    if path.resolve() == (RESULTS / "first-light.json").resolve():
        for page in PAGES:
            replace_table(page, table)


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task: mean ± spread (maximum) of each arm on dev, in points.

    Beside the dev rows of an accuracy stands the half-width of its 95% interval (normal approximation).
    """
    headings = (
        "task", "metric", "train rows", "dev rows", "seeds", "full", "partial (L)", "l = 3", "l = 2", "l = 1",
        "merged (exit + own)", "s a run: full, partial, l = 3",
    )  # fmt: skip
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in result["details"]["tasks"]:
        merged, partial = row["merged"], row["partial"]
        students = [_cell(row["students"][n]) for n in ("3", "2", "1")]
        lines.append(
            f"| {row['task']} | {row['set']['metric']} | {row['full']['n_train_rows']} | "
            f"{_dev_rows(row)} | {len(row['set']['seeds'])} | "
            f"{_cell(row['full'])} | {_cell(partial)} ({partial['own_layers']}) | {' | '.join(students)} | "
            f"{merged['dev_metric']:.1f} ({merged['exit_layer']} + {merged['own_layers']}) | "
            f"{', '.join(f'{_seconds(cell):.0f}' for cell in (row['full'], partial, row['students']['3']))} |"
        )
    f = result["figures"]
    lines.append(
        f"| **average** | | | | | **{f['full_average']:.1f}** | **{f['partial_average']:.1f}** | "
        f"**{f['student3_average']:.1f}** | | | **{f['merged_average']:.1f}** "
        f"({f['layer_cost']:g} of {f['single_task_layers']:g} layers) | |"
    )
    return "\n".join(lines)


def replace_table(page: Path, table: str) -> None:
    """Put a table between the page's marks; everything else stays."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(TABLE_START, 1)
    after = rest.split(TABLE_END, 1)[1]
    page.write_text(f"{before}{TABLE_START}\n{table}\n{TABLE_END}{after}", encoding="utf-8")


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of each arm by task, seeds as dots."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tasks = result["details"]["tasks"]
    arms = [
        ("full", "full fine-tuning"),
        ("partial", "partial"),
        ("3", "student l = 3"),
        ("2", "l = 2"),
        ("1", "l = 1"),
    ]
    figure, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    for position, (key, label) in enumerate(arms):
        cells = [row[key] if key in row else row["students"][key] for row in tasks]
        places = [i + (position - 2) * 0.16 for i in range(len(tasks))]
        axes.bar(places, [cell["mean"] for cell in cells], width=0.15, label=label)
        for place, cell in zip(places, cells, strict=True):
            axes.plot([place] * len(cell["dev_metrics"]), cell["dev_metrics"], "k.", markersize=3)
    axes.set_xticks(range(len(tasks)), [row["task"] for row in tasks], rotation=20, ha="right")
    axes.set_ylabel("dev metric, points")
    axes.set_title("first-light: all-MiniLM-L6-v2, mean over seeds (dots: seeds)")
    axes.legend(ncols=5, fontsize=8, loc="lower center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _seconds(summary: dict[str, Any]) -> float:
    return fmean(summary["seconds_each"])


def _dev_rows(row: dict[str, Any]) -> str:
    n_rows: int = row["merged"]["n_dev_rows"]
    if row["set"]["metric"] != "accuracy":
        return str(n_rows)
    share = row["full"]["mean"] / 100
    return f"{n_rows} (±{196 * math.sqrt(share * (1 - share) / n_rows):.1f})"


def _cell(summary: dict[str, Any]) -> str:
    spread: float | None = summary["spread"]
    metrics: Sequence[float] = summary["dev_metrics"]
    if spread is None:
        return f"{summary['mean']:.1f}"
    return f"{summary['mean']:.1f} ± {spread:.1f} ({max(metrics):.1f})"
