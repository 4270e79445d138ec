"""Every plan that no other beats, in each unit of cost: as values, as JSON and as a picture. No torch."""

import io
from pathlib import Path

from trunkline.bundle.files import swap_file
from trunkline.core.errors import MissingDependencyError
from trunkline.core.specs import Spec, encode_spec
from trunkline.train.contest import Contest, FrontPoint, PlanRequest, front_of, meeting_floors, point_of, prices_of
from trunkline.train.plan import Plan
from trunkline.train.price import Unit


class Pareto(Spec, frozen=True, kw_only=True):
    """The plans of a contest that are not beaten in points and cost, exactly, and the plan that was chosen.

    Attributes:
        layers: By rising layer cost and points.
        flops: By rising floating-point operations.
        ms: By rising milliseconds of the cost table; None without one.
        chosen: The plan; one by the paper's rule need not be on a front.
    """

    layers: tuple[FrontPoint, ...]
    flops: tuple[FrontPoint, ...]
    ms: tuple[FrontPoint, ...] | None
    chosen: FrontPoint

    def front(self, unit: Unit) -> tuple[FrontPoint, ...]:
        """The front in one unit."""
        return {"layers": self.layers, "flops": self.flops, "ms": self.ms or ()}[unit]


def pareto_of(contest: Contest, request: PlanRequest, plan: Plan) -> Pareto:
    """The fronts of what a plan was chosen from.

    Args:
        contest: What there is to choose from.
        request: Whose floors, weights, row length and cost table hold for the fronts too.
        plan: What was chosen.

    Raises:
        SpecError: No candidate of a task reaches its floor.
    """
    contest = meeting_floors(contest, request)
    fronts = {
        unit: tuple(point_of(choice, contest, request) for _, choice in front_of(contest, request, prices))
        for unit, prices in prices_of(contest, request).items()
    }
    by_run = {c.run_id: c for candidates in contest.options.values() for c in candidates}
    chosen = {planned.task: by_run[planned.run_id] for planned in plan.tasks}
    return Pareto(
        layers=fronts["layers"],
        flops=fronts["flops"],
        ms=fronts.get("ms"),
        chosen=point_of(chosen, contest, request),
    )


def write_pareto(pareto: Pareto, path: Path) -> Path:
    """Write fronts as JSON, whole or not at all; into a folder that is there.

    Raises:
        BundleError: They cannot be written.
    """
    swap_file(path, encode_spec(pareto))
    return path


def draw_pareto(pareto: Pareto, path: Path) -> Path:
    """Draw the fronts in layers and FLOPs, and milliseconds where there are any, with the chosen plan in each.

    The picture is written whole or not at all.

    Args:
        pareto: The fronts.
        path: Of the picture; its suffix says the format.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
        BundleError: The picture cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "package 'matplotlib': not installed; pictures of fronts need it; "
            "install the extra with: pip install 'trunkline[bench]'"
        ) from error

    panels: list[tuple[str, list[tuple[float, float]]]] = [
        ("layers", [(p.layer_cost, p.mean_points) for p in (*pareto.layers, pareto.chosen)]),
        (
            "share of the FLOPs of single models",
            [(p.flops_share, p.mean_points) for p in (*pareto.flops, pareto.chosen)],
        ),
        ("ms", [(p.ms, p.mean_points) for p in (*(pareto.ms or ()), pareto.chosen) if p.ms is not None]),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (label, points) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), position)
        costs, reached = zip(*points, strict=True)
        axes.step(costs[:-1], reached[:-1], ".-", where="post", label="front")
        axes.plot(costs[-1], reached[-1], "o", fillstyle="none", markersize=12, label="chosen")
        axes.set_xlabel(label)
        axes.set_ylabel("mean points on the selection rows")
        axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix(".") or "png", dpi=110)
    swap_file(path, drawn.getvalue())
    return path
