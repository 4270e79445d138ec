"""`trunkline measure`: what layers and branches cost on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from trunkline.cli.options import (
    BackboneOption,
    BackendOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    open_backbone,
)
from trunkline.cli.show import show_json
from trunkline.cli.status import working


def measure_command(  # noqa: PLR0913 - options of a command
    *,
    backbone: BackboneOption,
    out: Annotated[Path, typer.Option(help="Where the table goes (JSON), for `plan --cost-table`.")] = Path(
        "costs.json"
    ),
    rows: Annotated[int, typer.Option(help="Rows of a batch.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens of each row.")] = 16,
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure what trunk layers, own layers and branches cost, in milliseconds a row."""
    from trunkline.bundle.files import swap_file
    from trunkline.core.specs import encode_spec
    from trunkline.engine.backends.choose import choose_backend, describe
    from trunkline.engine.measure import measure_costs

    chosen = choose_backend(backend, precision=precision, device=device)
    with working(f"measuring {backbone} with {describe(chosen)}"):
        table = measure_costs(open_backbone(backbone), chosen, n_rows=rows, n_tokens=tokens)
    swap_file(out, encode_spec(table))
    if as_json:
        show_json(table)
    else:
        typer.echo(
            f"{out}: milliseconds a row: trunk layer {table.trunk_layer_ms:.3f}, own layer {table.own_layer_ms:.3f}, "
            f"folded layer {table.folded_layer_ms:.3f}, branch {table.branch_ms:.3f}, request {table.request_ms:.3f} "
            f"({table.measured_on})"
        )
