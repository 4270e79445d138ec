"""What commands print: JSON for programs, pictures for people."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of tables.")]


def print_rich(picture: "RenderableType") -> None:
    """Print a table or a picture on standard output."""
    from rich.console import Console

    Console().print(picture, highlight=False)


def print_json(value: Any) -> None:
    """Print one line of JSON on standard output."""
    sys.stdout.write(msgspec.json.encode(value, enc_hook=str).decode() + "\n")
    # Flushed here, where a reader that has gone is met; at exit it would be a message on standard error.
    sys.stdout.flush()
