"""`trunkline registry` and `trunkline tasks`: versions of tasks, and who changed what, when and why."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli.options import JsonOption
from trunkline.cli.show import show, show_json
from trunkline.cli.status import working
from trunkline.cli.user import user

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.table import Table

    from trunkline.bundle.history import Entry
    from trunkline.bundle.registry import Registry
    from trunkline.cli.tasks import Tasks
    from trunkline.wire import HistoryEntry

registry_app = typer.Typer(
    help="A registry: every version of every task on one trunk, with its history.",
    no_args_is_help=True,
    rich_markup_mode=None,  # As for all commands: help that answers at once.
)
tasks_app = typer.Typer(
    help="Tasks of a registry: which versions there are, which one answers, and what was changed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RegistryArgument = Annotated[Path, typer.Argument(help="Folder of the registry.")]
WhereArgument = Annotated[str, typer.Argument(help="Folder of the registry, or address of a server: http://HOST:PORT.")]
TaskArgument = Annotated[str, typer.Argument(help="Name of the task.")]
VersionArgument = Annotated[str, typer.Argument(help="Digest of the branch, or its first 8 digits or more.")]
WhyOption = Annotated[str, typer.Option(help="The reason, one line; it stands in the history.")]
WhoOption = Annotated[str, typer.Option(help="Who makes the change; by default the user of the operating system.")]


@registry_app.command("create")
def create_command(
    registry: Annotated[Path, typer.Argument(help="Folder of the new registry; must not exist or be empty.")],
    *,
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle; it is copied.")],
    why: WhyOption = "created from a bundle",
    who: WhoOption = "",
) -> None:
    """Make a registry of a bundle; each task's branch is its first version, and active."""
    from trunkline.bundle.registry import Registry
    from trunkline.bundle.store import open_bundle

    with working(f"copying {bundle}"):
        made = Registry.create(registry, open_bundle(bundle), who=who or user(), why=why)
    typer.echo(f"{registry}: {len(made.state.tasks)} tasks registered and active; last entry {made.state.seq}")


@registry_app.command("add")
def add_command(
    registry: RegistryArgument,
    branch: Annotated[Path, typer.Argument(help="Folder of the branch, for example RUNS/runs/<id>/branch.")],
    *,
    why: WhyOption,
    who: WhoOption = "",
) -> None:
    """Register a branch as a version of its task; it answers nothing before `tasks activate` or `tasks canary`."""
    with working(f"registering {branch}"):
        target = _open(registry)
        version = target.register(branch, who=who or user(), why=why)
    typer.echo(f"version {version} is registered; last entry {target.state.seq}")


@registry_app.command("prune")
def prune_command(registry: RegistryArgument) -> None:
    """Remove files of versions that were removed; whoever still reads them loses them."""
    removed = _open(registry).prune()
    for name in removed:
        typer.echo(name)
    typer.echo(f"{registry}: {len(removed)} files and folders removed")


@tasks_app.command("list")
def list_command(registry: WhereArgument, *, as_json: JsonOption = False) -> None:
    """List tasks and their versions."""
    with _tasks_of(registry) as tasks:
        listing = tasks.listing()
    if as_json:
        show_json(listing.value)
        return
    table = _table(("task", "version", "use", "exit + own layers", "dev", "registered", "by"))
    for row in listing.rows:
        _add_row(table, row)
    show(table)
    for line in listing.hidden:
        typer.echo(line)


@tasks_app.command("history")
def history_command(
    registry: WhereArgument,
    *,
    task: Annotated[str | None, typer.Option(help="Entries about this task only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, when and why, oldest first."""
    with _tasks_of(registry) as tasks:
        _show_history(tasks.history(task), as_json=as_json)


@tasks_app.command("activate")
def activate_command(
    registry: WhereArgument, task: TaskArgument, version: VersionArgument, *, why: WhyOption, who: WhoOption = ""
) -> None:
    """Let a version answer; a canary of the task ends."""
    with _tasks_of(registry, who) as tasks:
        typer.echo(tasks.activate(task, version, why=why))


@tasks_app.command("rollback")
def rollback_command(registry: WhereArgument, task: TaskArgument, *, why: WhyOption, who: WhoOption = "") -> None:
    """Let the version answer that was active before the present one; a canary of the task ends."""
    with _tasks_of(registry, who) as tasks:
        typer.echo(tasks.rollback(task, why=why))


@tasks_app.command("canary")
def canary_command(
    registry: WhereArgument,
    task: TaskArgument,
    version: VersionArgument,
    percent: Annotated[float, typer.Argument(help="Share of the requests, up to 100; 0 ends the canary.")],
    *,
    why: WhyOption,
    who: WhoOption = "",
) -> None:
    """Let a version beside the active one answer some of the requests."""
    with _tasks_of(registry, who) as tasks:
        typer.echo(tasks.canary(task, version, percent, why=why))


@tasks_app.command("remove")
def remove_command(
    registry: WhereArgument,
    task: TaskArgument,
    version: Annotated[str | None, typer.Argument(help="A version to drop; without it the task stops.")] = None,
    *,
    why: WhyOption,
    who: WhoOption = "",
) -> None:
    """Take a task out of service, or drop a version of it."""
    with _tasks_of(registry, who) as tasks:
        typer.echo(tasks.remove(task, version, why=why))


def _open(registry: Path) -> "Registry":
    from trunkline.bundle.registry import Registry

    return Registry.open(registry)


def _tasks_of(registry: str, who: str = "") -> "AbstractContextManager[Tasks]":
    from trunkline.cli.tasks import tasks_of

    return tasks_of(registry, who=who)


def _show_history(entries: "Sequence[Entry | HistoryEntry]", *, as_json: bool) -> None:
    if as_json:
        show_json(entries)
        return
    from trunkline.bundle.versions import short

    table = _table(("entry", "at", "who", "action", "task", "version", "why"))
    for entry in entries:
        action = entry.action if entry.percent is None else f"{entry.action} {entry.percent:g}%"
        version = "" if entry.version is None else short(entry.version)
        _add_row(table, (str(entry.seq), entry.at, entry.who, action, entry.task or "", version, entry.why))
    show(table)


def _table(headings: Iterable[str]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _add_row(table: "Table", cells: Iterable[str]) -> None:
    from rich.text import Text

    # As plain text: a reason may hold brackets, which rich would take for markup.
    table.add_row(*map(Text, cells))
