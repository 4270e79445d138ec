"""Pictures of a reproduction as PNG. Matplotlib is imported when something is drawn."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trunkline.core.errors import MissingDependencyError
from trunkline.train.reproduction import Cell, Reproduction, StudiedTask, TradeOff

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people tell apart whatever their colour vision.
TEACHER, BACKBONE = "#0072B2", "#E69F00"
METHODS = {"full": "#000000", "KD": "#009E73", "mixed": "#0072B2", "without": "#D55E00"}
MARKERS = {"full": "s", "KD": "^", "mixed": "o", "without": "D"}
COLUMNS = 4
"""Panels side by side."""


def pictures(made: Reproduction) -> dict[str, bytes]:
    """File name -> PNG of table 1, figure 2 and figure 5; one of which nothing is known yet is left out.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: F401 - whether it is there is asked before anything is drawn
    except ImportError as error:
        raise MissingDependencyError(
            "package 'matplotlib': not installed; the pictures need it; "
            "install the extra with: pip install 'trunkline[bench]'"
        ) from error
    drawn = {}
    if any(cell.mean is not None for row in made.table1 for cell in row.cells):
        drawn["table1.png"] = _png(draw_table1(made))
    if any(cell.mean is not None for cell in made.figure2):
        drawn["figure2.png"] = _png(draw_figure2(made))
    if made.figure5:
        drawn["figure5.png"] = _png(draw_figure5(made))
    return drawn


def draw_table1(made: Reproduction) -> "Figure":
    """One panel a task: points by L, every seed as a dot, full fine-tuning and 99% of it as lines."""
    figure, panels = _panels(len(made.tasks))
    lengths = sorted({cell.own_layers for row in made.table1[:-1] for cell in row.cells})
    for axes, task in zip(panels, made.tasks, strict=True):
        cells = [cell for row in made.table1 for cell in row.cells if cell.task == task.task and cell.mean is not None]
        partial = [cell for cell in cells if cell.arm == "partial"]
        axes.plot(
            [cell.own_layers for cell in partial],
            [cell.mean for cell in partial if cell.mean is not None],
            color=TEACHER, marker="o", label="mean of partial fine-tuning",
        )  # fmt: skip
        for cell in partial:
            axes.plot([cell.own_layers] * len(cell.dev_metrics), cell.dev_metrics, ".", color="#666666", zorder=3)
        for full in (cell.mean for cell in cells if cell.arm == "full" and cell.mean is not None):
            axes.axhline(full, color="black", linewidth=1, label="full fine-tuning")
            axes.axhline(0.99 * full, color="black", linewidth=1, linestyle=":", label="99% of it")
        axes.plot([], [], ".", color="#666666", label="one seed")
        axes.set_xticks(lengths)
        axes.set_xlim(min(lengths) - 0.5, max(lengths) + 0.5)
        _name(axes, task, "tuned layers L", drawn=bool(cells))
    _finish(figure, panels, f"Table 1: partial fine-tuning of {made.backbone}")
    return figure


def draw_figure2(made: Reproduction) -> "Figure":
    """One panel a task: boxes over seeds of students that start in the teacher and in the backbone, seeds as dots."""
    figure, panels = _panels(len(made.tasks))
    lengths = sorted({cell.own_layers for cell in made.figure2})
    for axes, task in zip(panels, made.tasks, strict=True):
        own = [cell for cell in made.figure2 if cell.task == task.task and cell.dev_metrics]
        for color, init, shift in ((BACKBONE, "backbone", -0.19), (TEACHER, "teacher", 0.19)):
            _boxes(axes, [cell for cell in own if cell.init == init], shift=shift, color=color)
            axes.plot([], [], "o", color=color, label=f"starts in the {init}")
        axes.set_xticks(lengths)
        axes.set_xlim(min(lengths) - 0.6, max(lengths) + 0.6)
        _name(axes, task, "student layers l", drawn=bool(own))
    _finish(figure, panels, f"Figure 2: where students start, {made.backbone} (boxes over seeds, dots: seeds)")
    return figure


def draw_figure5(made: Reproduction) -> "Figure":
    """Average points by layers: the rows of table 5, and what every c leads to as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    sweep = [point for point in made.figure5 if point.min_gain is not None]
    axes.plot(
        [point.cost.overhead for point in sweep], [point.average for point in sweep], color=METHODS["mixed"],
        linewidth=1, marker=".", label="mixed, every c",
    )  # fmt: skip
    rows = [point for point in made.figure5 if point.min_gain is None]
    for point in rows:
        method = _method(point)
        axes.plot(
            point.cost.overhead, point.average, MARKERS[method], color=METHODS[method], markersize=8, zorder=3,
            linestyle="none",
        )  # fmt: skip
    _label_points(axes, rows)
    full = next((point.average for point in rows if point.name == "full"), None)
    if full is not None:
        axes.axhline(0.99 * full, color="black", linewidth=1, linestyle=":", label="99% of full fine-tuning")
    n_tasks = sum(task.finished for task in made.tasks)
    axes.set_xlabel(f"layers that one row runs through for {n_tasks} tasks")
    axes.set_ylabel(f"average of {n_tasks} tasks on dev, points")
    axes.set_title(f"Figure 5: quality against cost, {made.backbone}", loc="left")
    axes.margins(x=0.16, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _label_points(axes: "Axes", rows: Sequence[TradeOff]) -> None:
    """Names beside the points, on the side where the line of the sweep is not; points that coincide share a label."""
    places: dict[tuple[int, float], list[TradeOff]] = {}
    for point in rows:
        places.setdefault((point.cost.overhead, round(point.average, 6)), []).append(point)
    for place, points in places.items():
        left = _method(points[0]) == "mixed"
        axes.annotate(
            "; ".join(point.name for point in points), place, xytext=(-8 if left else 8, 2 if left else -2),
            textcoords="offset points", ha="right" if left else "left", va="bottom" if left else "top", fontsize=8,
        )  # fmt: skip


def _method(point: TradeOff) -> str:
    return next(method for method in METHODS if point.name.startswith(method))


def _boxes(axes: "Axes", cells: Sequence[Cell], *, shift: float, color: str) -> None:
    places = [cell.own_layers + shift for cell in cells]
    if not cells:
        return
    axes.boxplot(
        [cell.dev_metrics for cell in cells], positions=places, widths=0.3, showfliers=False, manage_ticks=False,
        patch_artist=True, boxprops={"facecolor": color, "alpha": 0.3, "edgecolor": color},
        medianprops={"color": color}, whiskerprops={"color": color}, capprops={"color": color},
    )  # fmt: skip
    for place, cell in zip(places, cells, strict=True):
        axes.plot([place] * len(cell.dev_metrics), cell.dev_metrics, "o", color=color, markersize=4, zorder=3)


def _panels(count: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    n_columns = min(count, COLUMNS)
    n_rows = -(-count // n_columns)
    # Title and legend need seven inches even over a single panel.
    figure = Figure(figsize=(max(3.1 * n_columns + 0.6, 7.0), 2.7 * n_rows + 0.8), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _name(axes: "Axes", task: StudiedTask, x_label: str, *, drawn: bool) -> None:
    axes.set_title(task.task, loc="left", fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel("points" if task.metric is None else f"{task.metric}, points")
    axes.spines[["top", "right"]].set_visible(False)
    if not drawn:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "open", transform=axes.transAxes, ha="center", color="#666666")


def _finish(figure: "Figure", panels: Sequence["Axes"], title: str) -> None:
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    figure.suptitle(title, x=0.01, ha="left")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)


def _png(figure: "Figure") -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()
