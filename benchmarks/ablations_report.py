"""The table and the picture of ablations, made from its result file alone."""

from pathlib import Path
from typing import Any

from benchmarks.pages import measured_by, picture, publish

NAMES = {
    "free_depth": "students at any exit, chosen on the selection rows",
    "label_teacher_ensemble": "labels from all seeds of the teacher",
    "label_teacher_full": "labels from full fine-tuning",
    "init_backbone": "students start in the backbone instead of the teacher",
    "temperature": "T of 1, 2 or 4, chosen on the selection rows",
    "alpha": "alpha of 0, 0.3 or 0.6, chosen on the selection rows",
    "labels_alone": "labels alone: no distillation",
    "hidden_states": "hidden states matched too (weight 1)",
    "augmented_text": "two augmented rows for each row",
    "pooling_mean": "mean pooling, teacher and students",
    "warm_start": "teacher starts in that of MNLI",
}


def write_page(path: Path) -> None:
    """Draw the picture beside the result; put both into the page when the result is the kept one."""
    publish(path, "ablations", table=markdown_table, draw=draw)


def markdown_table(result: dict[str, Any]) -> str:
    """One line an option: points gained on dev, a mean over tasks, student lengths and seeds."""
    rows, details = result["details"]["tasks"], result["details"]
    headings = ["option", "gain", *(row["task"] for row in rows), "spread within tasks"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    ordered = sorted(details["gains"], key=lambda name: -result["figures"][f"{name}_gain"])
    for name in ordered:
        half = details["half_widths"][name]
        options = [row["options"].get(name) for row in rows]
        cells = ["-" if option is None else f"{option['gain']:+.1f}" for option in options]
        spreads = [option["spread"] for option in options if option is not None and option["spread"] is not None]
        spread = f"{sum(spreads) / len(spreads):.1f}" if spreads else "-"
        interval = "" if half is None else f" ± {half:.1f}"
        gain = result["figures"][f"{name}_gain"]
        lines.append(f"| {NAMES[name]} | {gain:+.2f}{interval} | {' | '.join(cells)} | {spread} |")
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """The gain of each option with its interval over tasks; dots are tasks."""
    details = result["details"]
    names = sorted(details["gains"], key=lambda name: result["figures"][f"{name}_gain"])
    with picture(path, width=9, height=0.45 * len(names) + 1.2) as figure:
        axes = figure.subplots()
        for place, name in enumerate(names):
            gain, half = result["figures"][f"{name}_gain"], details["half_widths"][name] or 0.0
            axes.errorbar([gain], [place], xerr=[half], fmt="o", color="tab:blue", capsize=3)
            axes.plot(details["gains"][name], [place] * len(details["gains"][name]), "k.", markersize=4, alpha=0.6)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_yticks(range(len(names)), [NAMES[name] for name in names], fontsize=8)
        axes.set_xlabel("points gained on dev; bars: 95% interval over tasks, dots: tasks")
