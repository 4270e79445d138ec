"""`trunkline reproduce`: the paper's tables and figures on one's own tasks and backbone."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli.bench import CacheLimitOption, cache_limit_bytes, open_bench
from trunkline.cli.options import (
    BackboneOption,
    JsonOption,
    PresetOption,
    TaskFiles,
    numbers,
    open_backbone,
    read_tasks,
    train_request,
)
from trunkline.cli.show import show_json
from trunkline.core.errors import MissingDependencyError, SpecError

if TYPE_CHECKING:
    from trunkline.model.backbone import Backbone
    from trunkline.train.spec import TrainRequest


def reproduce_command(  # noqa: PLR0913 - each option is one of the study's choices
    tasks: TaskFiles,
    *,
    out: Annotated[Path, typer.Option(help="Folder of runs and their ledger.")],
    backbone: BackboneOption = "minilm",
    layers: Annotated[str, typer.Option(help="Numbers L of table 1; empty: every L of the backbone.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds; the paper has five.")] = "0,1,2,3,4",
    students: Annotated[str, typer.Option(help="Numbers l of student layers.")] = "1,2,3",
    preset: PresetOption = "default",
    cache_limit: CacheLimitOption = "",
    budget_minutes: Annotated[float | None, typer.Option(help="Begin no run after so many minutes.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Begin no run; report what there is.")] = False,
    report: Annotated[Path | None, typer.Option(help="Folder of the report; OUT/report by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce the paper's tables 1, 2 and 5 and figures 2 and 5; given again, it goes on where it stopped."""
    from trunkline.reports.tables import markdown_tables
    from trunkline.reports.write import write_report
    from trunkline.train.ledger import Ledger
    from trunkline.train.reproduction import check_studied
    from trunkline.train.reproduction_tables import reproduce
    from trunkline.train.study import Study

    deadline = _deadline(budget_minutes, report_only=report_only)
    limit_bytes = cache_limit_bytes(cache_limit)
    specs = read_tasks(tasks)
    check_studied(specs)
    loaded = open_backbone(backbone)
    request = _request(loaded, layers=layers, seeds=seeds, students=students, preset=preset)
    if not report_only:
        from trunkline.train.pipeline import train_each

        with open_bench(loaded, out, limit_bytes=limit_bytes) as bench:
            train_each(bench, [(spec, request) for spec in specs], needed="record", deadline=deadline)
    study = Study.of(loaded, {spec.name: request for spec in specs})
    made = reproduce(study, Ledger(out).records())
    if as_json:
        show_json(made)
    else:
        typer.echo(markdown_tables(made))
    folder = report or out / "report"
    try:
        write_report(made, folder)
    except MissingDependencyError as error:
        typer.echo(f"no picture was drawn: {error}", err=True)
    n_open = made.cells_wanted - made.cells_done
    state = f"{n_open} of {made.cells_wanted} cells are open: the same command goes on" if n_open else "no cell is open"
    typer.echo(f"written to {folder}; {state}", err=True)


def _deadline(budget_minutes: float | None, *, report_only: bool) -> float | None:
    """When the last run may begin, in seconds of `time.monotonic`.

    Raises:
        SpecError: The budget is no number above 0, or there is one for no runs.
    """
    if budget_minutes is None:
        return None
    if report_only:
        raise SpecError("--budget-minutes: is of runs, and --report-only begins no run; leave one of the two out")
    if not 0 < budget_minutes < math.inf:
        raise SpecError(
            f"--budget-minutes is {budget_minutes:g}; give minutes above 0, or leave it out to run everything; "
            "--report-only begins no run"
        )
    return time.monotonic() + 60 * budget_minutes


def _request(loaded: "Backbone", *, layers: str, seeds: str, students: str, preset: str) -> "TrainRequest":
    from trunkline.train.pipeline import check_request
    from trunkline.train.reproduction import teacher_range

    n_layers = loaded.config.n_layers
    tuned = numbers(layers, "--layers") or tuple(range(1, n_layers + 1))
    request: TrainRequest = train_request(
        width=loaded.config.width,
        layers=tuned,
        seeds=numbers(seeds, "--seeds"),
        full=True,
        teacher_layers=teacher_range(tuned, n_layers),
        student_layers=numbers(students, "--students"),
        student_inits=("teacher", "backbone"),
        preset=preset,
    )
    check_request(request, n_layers)
    return request
