"""The table and the picture of search-cost, made from its result file alone."""

from pathlib import Path
from typing import Any

from benchmarks.pages import measured_by, picture, publish


def write_page(path: Path) -> None:
    """Draw the picture beside the result; put both into the page when the result is the kept one."""
    publish(path, "search-cost", table=markdown_table, draw=draw)


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task; costs in full fine-tunings, dev in points as the mean over the fresh seeds."""
    headings = (
        "task", "train rows", "search costs", "of it trunk", "in seconds", "grid costs", "search chose", "grid chose",
        "dev: search", "dev: grid", "regret",
    )  # fmt: skip
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in result["details"]["tasks"]:
        searched, grid = row["searched"], row["grid"]
        theirs = "the same" if grid["same"] else grid["winner"]
        lines.append(
            f"| {row['task']} | {row['n_train_rows']} | {row['cost']:.2f} | {row['trunk_share'] * row['cost']:.2f} | "
            f"{row['seconds_ratio']:.2f} | {row['grid_cost']:.1f} | {searched['winner']} | "
            f"{theirs} | {_mean(searched)} | {_mean(grid)} | {row['regret']:+.2f} |"
        )
    f = result["figures"]
    half = f.get("regret_points_half_width")
    interval = "" if half is None else f" ± {half:.2f}"
    lines.append(
        f"| **mean** | | **{f['cost_in_full_finetunes_mean']:.2f}** | | "
        f"**{f['seconds_in_full_finetunes_mean']:.2f}** | "
        f"**{f['grid_cost_in_full_finetunes_mean']:.1f}** | | | | | "
        f"**{f['regret_points_mean']:+.2f}{interval}** |"
    )
    seeds = ", ".join(str(seed) for seed in result["details"]["fresh_seeds"])
    spread = "" if half is None else "; ± is the half-width of the 95% interval over tasks (Student's t)"
    return "\n".join([*lines, "", f"{measured_by(result)} Fresh seeds: {seeds}{spread}."])


def draw(result: dict[str, Any], path: Path) -> None:
    """What the search and the grid cost, by task, and the regret."""
    tasks = result["details"]["tasks"]
    names = [row["task"] for row in tasks]
    with picture(path, width=10, height=3.6) as figure:
        left, right = figure.subplots(1, 2)
        places = range(len(tasks))
        left.bar([i - 0.2 for i in places], [row["cost"] for row in tasks], width=0.4, label="search")
        left.bar([i + 0.2 for i in places], [row["grid_cost"] for row in tasks], width=0.4, label="whole grid")
        left.axhline(1, color="black", linewidth=1, linestyle=":", label="one full fine-tuning")
        left.set_yscale("log")
        left.set_ylabel("cost, full fine-tunings (FLOPs)")
        left.legend(fontsize=8)
        right.bar(places, [row["regret"] for row in tasks], width=0.5)
        right.axhline(0, color="black", linewidth=1)
        right.set_ylabel("regret on dev, points")
        for axes in (left, right):
            axes.set_xticks(list(places), names, rotation=20, ha="right")


def _mean(arm: dict[str, Any]) -> str:
    values = arm["dev_metrics"]
    return f"{sum(values) / len(values):.1f}"
