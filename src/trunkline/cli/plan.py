"""`trunkline plan`: one candidate for each task, or for one task of a bundle."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trunkline.cli.options import JsonOption, names, numbers_of_tasks
from trunkline.cli.show import show, show_json
from trunkline.core.errors import MissingDependencyError, SpecError

_MIN_GAIN = 1.0


def plan_command(  # noqa: PLR0913 - each option is one of the request's fields, or says where something goes
    runs: Annotated[Path, typer.Argument(help="Folder that `train` wrote.")],
    *,
    min_gain: Annotated[
        float | None, typer.Option(help="Points that each added layer must bring (the paper's c); 1 without --budget.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Take the optimum that costs no more, e.g. 20layers, 3.5GFLOP or 12ms.")
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="TASK=POINTS", help="Least points of a task; may be given again.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="TASK=NUMBER", help="Weight of a task in the mean; may be given again.")
    ] = None,
    tokens: Annotated[float | None, typer.Option(help="Length of the row that FLOPs are of.")] = None,
    cost_table: Annotated[Path | None, typer.Option(help="Measured costs (JSON), for milliseconds.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Plan these tasks only, for example cola,mrpc.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A bundle whose other tasks stay; needs --task.")] = None,
    task: Annotated[str | None, typer.Option(help="The one task to plan for the bundle of --keep.")] = None,
    pareto: Annotated[bool, typer.Option("--pareto", help="Show and write every plan that no other beats.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the plan goes; RUNS/plan.json by default, RUNS/plan-TASK.json with --keep."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose one candidate for each task: by marginal benefit (paper section 4.2), or the optimum for a budget."""
    from trunkline.bundle.store import open_bundle
    from trunkline.train.contest import PlanRequest, read_contest
    from trunkline.train.keep import plan_kept, read_kept_contest
    from trunkline.train.pareto import pareto_of
    from trunkline.train.plan import plan_contest, write_plan
    from trunkline.train.price import parse_budget, read_cost_table
    from trunkline.views import plan_table

    request = PlanRequest(
        min_gain=_MIN_GAIN if min_gain is None and budget is None else min_gain,
        budget=None if budget is None else parse_budget(budget),
        floors=numbers_of_tasks(require or (), "--require"),
        weights=numbers_of_tasks(weight or (), "--weight"),
        tokens=tokens,
        cost_table=None if cost_table is None else read_cost_table(cost_table),
    )
    if keep is not None and task is not None and tasks is None:
        bundle = open_bundle(keep)
        contest = read_kept_contest(runs, bundle, task)
        made = plan_kept(runs, bundle, contest, request)
    elif keep is None and task is None:
        contest = read_contest(runs, names(tasks, "--tasks"))
        made = plan_contest(contest, request)
    else:
        raise SpecError("--keep BUNDLE and --task TASK go together, and without --tasks; give both of them or neither")
    which = "" if task is None else f"-{task}"
    path = write_plan(made, out or runs / f"plan{which}.json")
    if as_json:
        show_json(made)
    else:
        show(plan_table(made))
    if pareto:
        found, beside = pareto_of(contest, request, made), path.with_name(f"{path.stem}.pareto.json")
        _show_pareto(found, request, beside, as_json=as_json)
    if not as_json:
        step = f"next: trunkline merge {path} --out BUNDLE" if made.kept is None else made.kept.next_step
        typer.echo(f"written to {path}; {step}")


def _show_pareto(pareto: Any, request: Any, path: Path, *, as_json: bool) -> None:
    """Write the fronts as JSON and, where matplotlib is installed, as a picture beside it."""
    from trunkline.train.pareto import draw_pareto, write_pareto
    from trunkline.views import front_table

    written = [write_pareto(pareto, path)]
    try:
        written.append(draw_pareto(pareto, path.with_suffix(".png")))
    except MissingDependencyError as error:
        sys.stderr.write(f"no picture was drawn: {error}\n")
    if not as_json:
        show(front_table(pareto, "layers" if request.budget is None else request.budget.unit))
    typer.echo(f"fronts written to {' and '.join(map(str, written))}", err=as_json)
