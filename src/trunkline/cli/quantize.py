"""`trunkline quantize`: the precision that a bundle is served in, judged by what its tasks lose."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trunkline.cli.options import JsonOption, read_tasks
from trunkline.cli.show import show, show_json
from trunkline.cli.status import working
from trunkline.core.errors import BundleError


def quantize_command(  # noqa: PLR0913 - options of a command
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    tasks: Annotated[
        list[Path] | None, typer.Argument(help="Further task files, so that --data tasks/*.yaml works.")
    ] = None,
    *,
    data: Annotated[list[Path], typer.Option(help="Task file (YAML); may be given again.")],
    precision: Annotated[Literal["int8", "bf16"], typer.Option(help="What the trunk is tried in.")] = "int8",
    max_loss: Annotated[float, typer.Option(help="Most points that a task may lose against fp32.")] = 0.5,
    rows: Annotated[int | None, typer.Option(help="Judge on so many dev rows of each task; by default on all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a bundle in a narrower precision, and have it served so where no task loses too much."""
    from trunkline.engine.quantize import QuantizeRequest, quantize

    request = QuantizeRequest(precision=precision, max_loss=max_loss, rows=rows)
    with working(f"opening {bundle}") as tell:
        report = quantize(bundle, read_tasks([*data, *(tasks or ())]), request, on_step=tell)
    if as_json:
        show_json(report)
    else:
        from trunkline.views import quantize_table

        show(quantize_table(report))
    if report.refused:
        raise _refusal(report)


def _refusal(report: Any) -> BundleError:
    kept = any(task.precision is not None for task in report.tasks)
    left = "they are as they were, the others were accepted" if kept else "the bundle is as it was"
    return BundleError(
        f"bundle {report.path!r}: with its trunk in {report.trunk} more than {report.max_loss:g} points are lost by "
        f"{', '.join(report.refused)}; {left}; allow more with --max-loss, or try --precision bf16"
    )
