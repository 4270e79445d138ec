"""The table and the picture of first-light, made from its result file alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from benchmarks.harness import RESULTS, ROOT
from benchmarks.pages import half_width, measured_by, picture, replace_between

PAGE = ROOT / "docs" / "benchmarks" / "first-light.md"
PAGES = (PAGE, ROOT / "README.md")
TABLE = ("<!-- table: first-light -->", "<!-- end of table -->")
SEEDS = 3
PROTOCOL = ("<!-- protocol: first-light -->", "<!-- end of protocol -->")


def write_page(path: Path) -> None:
    """Draw the picture beside the result; put the table into the pages when the result is the kept one."""
    result = msgspec.json.decode(path.read_bytes())
    table = markdown_table(result)
    print(table)
    draw(result, path.with_suffix(".png"))
    if path.resolve() == (RESULTS / "first-light.json").resolve():
        for page in PAGES:
            replace_between(page, TABLE, table)
        replace_between(PAGE, PROTOCOL, markdown_protocol(result))


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task: mean ± spread (maximum) of each arm on dev, in points; below them what measured it.

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
    return "\n".join([*lines, "", measured_by(result)])


def markdown_protocol(result: dict[str, Any]) -> str:
    """What was run, as the result says it: rows, seeds, trials and the control of the cache's dtype."""
    protocol, tasks = result["details"]["protocol"], result["details"]["tasks"]
    rows = ", ".join(f"{row['task']} {row['full']['n_train_rows']}" for row in tasks)
    fewer = [f"{row['task']} {len(row['set']['seeds'])}" for row in tasks if len(row["set"]["seeds"]) < SEEDS]
    three = ", ".join(row["task"] for row in tasks if row["set"]["n_trials"] > 2)
    chosen = ", ".join(
        f"{row['task']} {row['full']['learning_rate']:g} / {row['partial']['learning_rate']:g}" for row in tasks
    )
    control = "; ".join(
        f"{each['task']} {_mean(each['bfloat16'])} from bfloat16, {_mean(each['float32'])} from float32"
        for each in result["details"]["cache_dtype"]
    )
    return "\n".join(
        (
            (
                f"- Rows that a run learned from, after {protocol['selection'].split(';')[0]} were set aside to choose "
                f"on: {rows}. They are a seeded sample of the official train part; the dev part is whole."
            ),
            f"- Seeds: {SEEDS}" + (f" ({', '.join(fewer)})." if fewer else "."),
            (
                f"- Every run has {protocol['epochs']} epochs. Each arm had as many trials on the first seed, the "
                f"first two of these, or all three ({three}): full fine-tuning at {_trials(protocol['full_trials'])}; "
                f"partial fine-tuning at {_trials(protocol['partial_trials'])}. "
                "The best one on the selection rows was run on the other seeds; students are taught at its rate. "
                "Dev was only reported on."
            ),
            f"- Rates that won, full / partial: {chosen}.",
            (
                f"- The same partial fine-tunings from a cache in bfloat16, the default, and in float32, mean on dev: "
                f"{control}."
            ),
        )
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars of each arm by task, seeds as dots."""
    tasks = result["details"]["tasks"]
    arms = [
        ("full", "full fine-tuning"),
        ("partial", "partial"),
        ("3", "student l = 3"),
        ("2", "l = 2"),
        ("1", "l = 1"),
    ]
    with picture(path, width=11, height=4.2) as figure:
        axes = figure.subplots()
        for position, (key, label) in enumerate(arms):
            cells = [row[key] if key in row else row["students"][key] for row in tasks]
            places = [i + (position - 2) * 0.16 for i in range(len(tasks))]
            axes.bar(places, [cell["mean"] for cell in cells], width=0.15, label=label)
            for place, cell in zip(places, cells, strict=True):
                axes.plot([place] * len(cell["dev_metrics"]), cell["dev_metrics"], "k.", markersize=3)
        axes.set_xticks(range(len(tasks)), [row["task"] for row in tasks], rotation=20, ha="right")
        axes.set_ylabel("dev metric, points")
        axes.set_title("first-light: all-MiniLM-L6-v2, mean over seeds (dots: seeds)")
        figure.legend(ncols=5, fontsize=8, loc="outside lower center")


def _trials(trials: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{layers} layers and {rate:g}" for layers, rate in trials)


def _mean(points: Sequence[float]) -> str:
    return f"{fmean(points):.1f}"


def _seconds(summary: dict[str, Any]) -> float:
    return fmean(summary["seconds_each"])


def _dev_rows(row: dict[str, Any]) -> str:
    n_rows: int = row["merged"]["n_dev_rows"]
    if row["set"]["metric"] != "accuracy":
        return str(n_rows)
    return f"{n_rows} (±{half_width(row['full']['mean'], n_rows):.1f})"


def _cell(summary: dict[str, Any]) -> str:
    spread: float | None = summary["spread"]
    metrics: Sequence[float] = summary["dev_metrics"]
    if spread is None:
        return f"{summary['mean']:.1f}"
    return f"{summary['mean']:.1f} ± {spread:.1f} ({max(metrics):.1f})"
