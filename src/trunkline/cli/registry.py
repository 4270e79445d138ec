"""`trunkline registry` and `trunkline tasks`: versions of tasks, and who changed what, when and why."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli.options import JsonOption
from trunkline.cli.show import show, show_json
from trunkline.cli.status import working

if TYPE_CHECKING:
    from rich.table import Table

    from trunkline.bundle.history import Entry
    from trunkline.bundle.versions import RegistryState

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
        made = Registry.create(registry, open_bundle(bundle), who=who or _user(), why=why)
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
        version = target.register(branch, who=who or _user(), why=why)
    _tell(target, f"version {version} is registered")


@registry_app.command("prune")
def prune_command(registry: RegistryArgument) -> None:
    """Remove files of versions that were removed; whoever still reads them loses them."""
    removed = _open(registry).prune()
    for name in removed:
        typer.echo(name)
    typer.echo(f"{registry}: {len(removed)} files and folders removed")


@tasks_app.command("list")
def list_command(registry: RegistryArgument, *, as_json: JsonOption = False) -> None:
    """List tasks and their versions."""
    _show_state(_open(registry).state, as_json=as_json)


@tasks_app.command("history")
def history_command(
    registry: RegistryArgument,
    *,
    task: Annotated[str | None, typer.Option(help="Entries about this task only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, when and why, oldest first."""
    _show_history(_open(registry).history(task), as_json=as_json)


@tasks_app.command("activate")
def activate_command(
    registry: RegistryArgument, task: TaskArgument, version: VersionArgument, *, why: WhyOption, who: WhoOption = ""
) -> None:
    """Let a version answer; a canary of the task ends."""
    target = _open(registry)
    target.activate(task, version, who=who or _user(), why=why)
    _tell(target, f"task {task!r}: {_service(target.state, task)}")


@tasks_app.command("rollback")
def rollback_command(registry: RegistryArgument, task: TaskArgument, *, why: WhyOption, who: WhoOption = "") -> None:
    """Let the version answer that was active before the present one; a canary of the task ends."""
    target = _open(registry)
    target.rollback(task, who=who or _user(), why=why)
    _tell(target, f"task {task!r}: {_service(target.state, task)}")


@tasks_app.command("canary")
def canary_command(
    registry: RegistryArgument,
    task: TaskArgument,
    version: VersionArgument,
    percent: Annotated[float, typer.Argument(help="Share of the requests, up to 100; 0 ends the canary.")],
    *,
    why: WhyOption,
    who: WhoOption = "",
) -> None:
    """Let a version beside the active one answer some of the requests."""
    target = _open(registry)
    target.canary(task, version, percent, who=who or _user(), why=why)
    _tell(target, f"task {task!r}: {_service(target.state, task)}")


@tasks_app.command("remove")
def remove_command(
    registry: RegistryArgument,
    task: TaskArgument,
    version: Annotated[str | None, typer.Argument(help="A version to drop; without it the task stops.")] = None,
    *,
    why: WhyOption,
    who: WhoOption = "",
) -> None:
    """Take a task out of service, or drop a version of it."""
    target = _open(registry)
    target.remove(task, version, who=who or _user(), why=why)
    _tell(target, f"task {task!r}: {_service(target.state, task)}")


def _open(registry: Path) -> Any:
    """What the commands work on: anything with the methods of `trunkline.bundle.registry.Registry`."""
    from trunkline.bundle.registry import Registry

    return Registry.open(registry)


def _user() -> str:
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # As in a container, whose user has no name.
        return f"user {os.getuid()}"


def _tell(target: Any, said: str) -> None:
    typer.echo(f"{said}; last entry {target.state.seq}")


def _service(state: "RegistryState", task: str) -> str:
    """What answers a task, in a few words."""
    from trunkline.bundle.versions import short

    present = state.tasks.get(task)
    if present is None:
        return "no version is left"
    active = "out of service" if present.active is None else f"version {short(present.active)} is active"
    canary = present.canary
    return active if canary is None else f"{active}, {short(canary.version)} answers {canary.percent:g}% as canary"


def _show_state(state: "RegistryState", *, as_json: bool) -> None:
    if as_json:
        show_json(state)
        return
    from trunkline.bundle.versions import short

    table = _table(("task", "version", "use", "exit + own layers", "dev", "registered", "by"))
    for task, present in state.tasks.items():
        for digest, version in present.versions.items():
            points = version.entry.dev_metric
            _add_row(
                table,
                (
                    task,
                    short(digest),
                    _use(present, digest),
                    f"{version.entry.exit_layer} + {version.entry.own_layers}",
                    "-" if points is None else f"{points:.1f}",
                    version.at,
                    version.who,
                ),
            )
    show(table)


def _use(present: Any, digest: str) -> str:
    if digest == present.active:
        return "active"
    if present.canary is not None and digest == present.canary.version:
        return f"canary {present.canary.percent:g}%"
    return "rollback goes here" if present.former[-1:] == (digest,) else ""


def _show_history(entries: "tuple[Entry, ...]", *, as_json: bool) -> None:
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
