"""The table and the picture of assistant12, made from its result file alone."""

from pathlib import Path
from typing import Any

from benchmarks.pages import half_width, measured_by, picture, publish


def write_page(path: Path) -> None:
    """Draw the picture beside the result; put both into the page when the result is the kept one."""
    publish(path, "assistant12", table=markdown_table, draw=draw, pictures=(".png", ".pareto.png"))


def markdown_table(result: dict[str, Any]) -> str:
    """One line a task; dev in points, of accuracies with the half-width of the 95% interval."""
    headings = (
        "task", "metric", "train rows", "dev rows", "full", "mixed", "difference", "exit + own", "arm, pooling",
        "search, in full fine-tunings",
    )  # fmt: skip
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in result["details"]["tasks"]:
        rows = str(row["n_dev_rows"])
        if row["metric"] == "accuracy":
            rows += f" (±{half_width(row['full'], row['n_dev_rows']):.1f})"
        lines.append(
            f"| {row['task']} | {row['metric']} | {row['n_train_rows']} | {rows} | {row['full']:.1f} | "
            f"{row['mixed']:.1f} | {row['mixed'] - row['full']:+.1f} | {row['exit_layer']} + {row['own_layers']} | "
            f"{row['arm']}, {row['pooling']} | {row['search_cost']:.2f} |"
        )
    f = result["figures"]
    plan = result["details"]["plan"]
    lines += [
        (
            f"| **average** | | | | **{f['full_average']:.1f}** | **{f['mixed_average']:.1f}** | "
            f"**{f['mixed_average'] - f['full_average']:+.1f}** | **{plan['layer_cost']} of "
            f"{plan['single_task_layers']} layers, {100 * f['flops_share']:.0f}% of FLOPs** | | "
            f"**{f['search_cost_mean']:.2f}** |"
        ),
        "",
        measured_by(result),
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Full fine-tuning and the bundle's own answers, by task."""
    tasks = result["details"]["tasks"]
    places = range(len(tasks))
    with picture(path, width=11, height=4) as figure:
        axes = figure.subplots()
        axes.bar(
            [i - 0.2 for i in places], [row["full"] for row in tasks], width=0.4, label="full fine-tuning", color="0.7"
        )
        axes.bar(
            [i + 0.2 for i in places], [row["mixed"] for row in tasks], width=0.4, label="one bundle", color="tab:blue"
        )
        for i, row in enumerate(tasks):
            axes.annotate(
                f"{row['exit_layer']}+{row['own_layers']}",
                (i + 0.2, row["mixed"]),
                ha="center",
                va="bottom",
                fontsize=7,
            )
        axes.set_xticks(list(places), [row["task"] for row in tasks], rotation=25, ha="right")
        axes.set_ylabel("dev metric, points")
        axes.set_title("assistant12: all-MiniLM-L6-v2; above the bars: exit layer + own layers")
        figure.legend(ncols=2, fontsize=8, loc="outside lower center")
