"""From the text of arguments and options to values."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from trunkline.core.errors import SpecError

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of tables.")]

TaskFiles = Annotated[list[Path], typer.Argument(help="Task files (YAML).")]
PresetOption = Annotated[Literal["default", "paper"], typer.Option(help="Hyperparameters; paper: its table 4.")]
SelectOption = Annotated[
    Literal["train_slice", "dev"], typer.Option(help="Rows that choices are made on; dev is the paper's way.")
]
BackboneOption = Annotated[str, typer.Option(help="'minilm', a folder, or a name on the Hugging Face Hub.")]
BackendOption = Annotated[
    Literal["openvino", "torch"] | None,
    typer.Option(help="What computes; by default openvino on the processor, torch on another device."),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option(help="What is computed in; by default bf16 where the machine has it, else fp32."),
]
DeviceOption = Annotated[str, typer.Option(help="'cpu', or a device as torch names it, such as 'cuda'.")]


def open_backbone(name: str) -> Any:
    """The backbone of this name.

    Raises:
        CheckpointError: It cannot be read.
    """
    from trunkline.model.backbone import load_backbone

    return load_backbone(name)


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; none for an empty text.

    Raises:
        SpecError: There is something else.
    """
    try:
        return tuple(int(part) for part in _parts(text))
    except ValueError as error:
        raise SpecError(f"{option} is {text!r}; give whole numbers separated by commas, for example 2,4") from error


def names(text: str | None, option: str) -> tuple[str, ...] | None:
    """Names separated by commas; None where the option was not given.

    Raises:
        SpecError: It was given and names nothing, which must not come to mean everything.
    """
    if text is None:
        return None
    found = _parts(text)
    if not found:
        raise SpecError(f"{option} is {text!r}: it names no task; give names separated by commas, or leave it out")
    return found


def numbers_of_tasks(given: Iterable[str], option: str) -> dict[str, float]:
    """A number for each task, from texts such as ``cola=50``.

    Raises:
        SpecError: There is something else, or a task twice.
    """
    found: dict[str, float] = {}
    for text in given:
        task, _, number = text.partition("=")
        if task.strip() in found:
            raise SpecError(f"{option} is given twice for task {task.strip()!r}; give it once")
        try:
            found[task.strip()] = float(number)
        except ValueError as error:
            raise SpecError(f"{option} is {text!r}; give a task and a number, for example cola=50") from error
    return found


def read_tasks(paths: list[Path]) -> list[Any]:
    """Read task files, one a task.

    Raises:
        SpecError: A file is wrong, or two describe one task.
    """
    from trunkline.core.specs import read_task

    specs = [read_task(path) for path in paths]
    given = [spec.name for spec in specs]
    for name in given:
        if given.count(name) > 1:
            raise SpecError(f"task {name!r} is described by {given.count(name)} files; give each task once")
    return specs


def train_request(*, width: int, **fields: Any) -> Any:
    """A request for a backbone of this width, its preset given by name.

    Args:
        width: Of the backbone.
        fields: Of the request; ``preset`` is a name, and ``distillation`` maps fields of it to values, None for
            those that stay.

    Raises:
        SpecError: A field has a value that is not allowed.
    """
    from trunkline.core.specs import convert_spec
    from trunkline.train.spec import TrainRequest, preset

    chosen = msgspec.to_builtins(preset(fields["preset"], width=width))
    changes = fields.pop("distillation", {})
    chosen["distillation"] |= {name: value for name, value in changes.items() if value is not None}
    values = fields | {"preset": chosen}
    return convert_spec(values, TrainRequest, "options")


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
