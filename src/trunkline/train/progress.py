"""Progress of training runs on a terminal."""

from types import TracebackType
from typing import Self

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trunkline.train.spec import RunRecord, RunSpec


class RunProgress:
    """A bar for the present run, a line for each finished one; losses go to trackers if there are any.

    Args:
        console: Where bars and lines go; standard error, so that standard output stays machine-readable.
        accelerator: Whose trackers are told.
    """

    def __init__(self, console: Console, accelerator: Accelerator) -> None:
        self.console = console
        self._accelerator = accelerator
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"), console=console, transient=True,
        )  # fmt: skip
        self._bar: TaskID | None = None
        self._rows: TaskID | None = None
        self._n_steps = 0
        self._name = ""

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bars.stop()
        self._accelerator.end_training()

    def rows(self, count: int) -> None:
        """So many rows of activations were computed."""
        if self._rows is None:
            self._rows = self._bars.add_task("activations of the trunk (rows)", total=None, loss="")
        self._bars.advance(self._rows, count)

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """A run begins that takes this many optimizer steps."""
        if self._rows is not None:
            self._bars.remove_task(self._rows)
            self._rows = None
        self._name = _title(spec)
        self._bar = self._bars.add_task(self._name, total=n_steps, loss="")

    def step(self, loss: float) -> None:
        """One step is done."""
        self._n_steps += 1
        self._accelerator.log({f"loss/{self._name}": loss}, step=self._n_steps)
        if self._bar is not None:
            self._bars.update(self._bar, advance=1, loss=f"loss {loss:.3f}")

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """A run is in the ledger; `resumed` when it was there already."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        if not resumed:
            name = _title(record.spec)
            self._accelerator.log({f"{record.metric}/{name}": record.selection_metric}, step=self._n_steps)
        dev = "" if record.dev_metric is None else f", dev {record.dev_metric:.1f}"
        when = "already in the ledger" if resumed else f"{record.seconds:.0f} s"
        self.console.print(
            f"{_title(record.spec)}: {record.metric} {record.selection_metric:.1f} on the selection rows{dev} ({when})",
            highlight=False,
            markup=False,
        )

    def note(self, message: str) -> None:
        """Something that its reader should know."""
        self.console.print(message, style="dim", highlight=False, markup=False)


def _title(spec: RunSpec) -> str:
    layers = f"exit {spec.exit_layer}, {spec.own_layers} own"
    start = f" from {spec.init}" if spec.arm == "student" or spec.init != "backbone" else ""
    return f"{spec.task} {spec.arm}{start} ({layers}) seed {spec.seed}"
