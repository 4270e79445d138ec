"""Tasks whose versions change: those of a registry's folder, or those that a server serves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from trunkline.bundle.history import Entry
from trunkline.bundle.registry import Registry
from trunkline.bundle.versions import TaskState, short
from trunkline.cli.user import user
from trunkline.client import Client
from trunkline.core.errors import KeyRefusedError, SpecError
from trunkline.wire import CanaryInfo, Change, HistoryEntry, TaskInfo, VersionInfo

Row: TypeAlias = tuple[str, str, str, str, str, str, str]
"""Task, version, use, layers, points on dev rows, when it was registered, by whom."""
_TIMEOUT_S = 300.0
"""A version that is not loaded yet is verified and warmed before it answers."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Tasks and their versions.

    Attributes:
        rows: A row for every version.
        value: Everything, for JSON.
        hidden: What is not shown and why, a line for each task where that is so.
    """

    rows: list[Row]
    value: Any
    hidden: tuple[str, ...] = ()


class Tasks(Protocol):
    """What the commands need; each change says in a line what answers now."""

    def listing(self) -> Listing:
        """Every task with every version."""

    def history(self, task: str | None) -> Sequence[Entry | HistoryEntry]:
        """Every change, oldest first, or those of one task."""

    def activate(self, task: str, version: str, *, why: str) -> str:
        """Let a version answer."""

    def rollback(self, task: str, *, why: str) -> str:
        """Let the version answer that did before."""

    def canary(self, task: str, version: str, percent: float, *, why: str) -> str:
        """Let a version answer a part of the requests."""

    def remove(self, task: str, version: str | None, *, why: str) -> str:
        """Take a task out of service, or drop a version."""


@contextmanager
def tasks_of(where: str, *, who: str) -> Iterator[Tasks]:
    """Those of a folder or of a server.

    Args:
        where: Folder of a registry, or address of a server.
        who: Who makes changes; empty is the user of the operating system. A server knows it by the key.

    Raises:
        RegistryError: The folder is no registry.
        SpecError: There is a name for a server, or an address that is none.
    """
    if not where.startswith(("http://", "https://")):
        yield _OfFolder(Registry.open(Path(where)), who or user())
        return
    if who:
        raise SpecError(f"--who {who!r}: is not taken for a server, which knows you by your key; leave it out")
    with Client(where, timeout_s=_TIMEOUT_S) as client:
        yield _OfServer(client)


class _OfFolder:
    """Tasks of a registry's folder; a server that runs on it follows by itself."""

    def __init__(self, registry: Registry, who: str) -> None:
        self._registry, self._who = registry, who

    def listing(self) -> Listing:
        rows: list[Row] = []
        for task, present in self._registry.state.tasks.items():
            for digest, version in present.versions.items():
                layers = f"{version.entry.exit_layer} + {version.entry.own_layers}"
                points, use = _points(version.entry.dev_metric), _use(present, digest)
                rows.append((task, short(digest), use, layers, points, version.at, version.who))
        return Listing(rows, self._registry.state)

    def history(self, task: str | None) -> Sequence[Entry | HistoryEntry]:
        return self._registry.history(task)

    def activate(self, task: str, version: str, *, why: str) -> str:
        self._registry.activate(task, version, who=self._who, why=why)
        return self._said(task)

    def rollback(self, task: str, *, why: str) -> str:
        self._registry.rollback(task, who=self._who, why=why)
        return self._said(task)

    def canary(self, task: str, version: str, percent: float, *, why: str) -> str:
        self._registry.canary(task, version, percent, who=self._who, why=why)
        return self._said(task)

    def remove(self, task: str, version: str | None, *, why: str) -> str:
        self._registry.remove(task, version, who=self._who, why=why)
        return self._said(task)

    def _said(self, task: str) -> str:
        present = self._registry.state.tasks.get(task)
        if present is None:
            return _line(task, "no version is left", self._registry.state.seq)
        canary = present.canary
        return _line(
            task,
            _service(present.active, None if canary is None else (canary.version, canary.percent)),
            self._registry.state.seq,
        )


class _OfServer:
    """Tasks that a server serves."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def listing(self) -> Listing:
        served = {info.task: info for info in self._client.tasks()}
        resting = dict.fromkeys(task for task in self._client.resting_tasks() if task not in served)
        listed = [self._listed(task, info) for task, info in {**served, **resting}.items()]
        rows = [row for each in listed for row in each.rows]
        return Listing(rows, [each.value for each in listed], tuple(line for each in listed for line in each.hidden))

    def _listed(self, task: str, info: TaskInfo | None) -> Listing:
        """One task; where the key may not see its versions, what it may see."""
        value = {"name": task, "task": info}
        try:
            versions = self._client.versions(task)
        except KeyRefusedError as error:
            hidden = f"task {task!r}: versions that do not answer, and who registered which, are not shown: {error}"
            return Listing(_answering(task, info), {**value, "versions": None, "hidden": str(error)}, (hidden,))
        canary = None if info is None else info.canary
        rows = [_row_of(task, version, canary) for version in versions]
        return Listing(rows, {**value, "versions": versions, "hidden": None})

    def history(self, task: str | None) -> Sequence[Entry | HistoryEntry]:
        return self._client.history(task)

    def activate(self, task: str, version: str, *, why: str) -> str:
        return self._said(self._client.activate(task, version, why=why))

    def rollback(self, task: str, *, why: str) -> str:
        return self._said(self._client.rollback(task, why=why))

    def canary(self, task: str, version: str, percent: float, *, why: str) -> str:
        return self._said(self._client.canary(task, version, percent=percent, why=why))

    def remove(self, task: str, version: str | None, *, why: str) -> str:
        return self._said(self._client.remove(task, version, why=why))

    def _said(self, change: Change) -> str:
        if change.version is None:
            return _line(change.task, _service(None, None), change.seq)
        canary = self._client.task(change.task).canary
        parts = None if canary is None else (canary.version, canary.percent)
        return _line(change.task, _service(change.version, parts), change.seq)


def _line(task: str, service: str, seq: int) -> str:
    return f"task {task!r}: {service}; last entry {seq}"


def _service(active: str | None, canary: tuple[str, float] | None) -> str:
    """What answers a task, in a few words."""
    said = "out of service" if active is None else f"version {short(active)} is active"
    return said if canary is None else f"{said}, {short(canary[0])} answers {canary[1]:g}% as canary"


def _points(dev_metric: float | None) -> str:
    return "-" if dev_metric is None else f"{dev_metric:.1f}"


def _use(present: TaskState, digest: str) -> str:
    if digest == present.active:
        return "active"
    if present.canary is not None and digest == present.canary.version:
        return f"canary {present.canary.percent:g}%"
    return "rollback goes here" if digest == present.rollback_target else ""


def _row_of(task: str, version: VersionInfo, canary: CanaryInfo | None) -> Row:
    use: str = version.state
    if canary is not None and version.version == canary.version:
        use = f"canary {canary.percent:g}%"
    elif version.rollback:
        use = f"{use}, rollback goes here"
    layers, points = f"{version.exit_layer} + {version.own_layers}", _points(version.dev_metric)
    return (task, short(version.version), use, layers, points, version.registered_at, version.registered_by)


def _answering(task: str, info: TaskInfo | None) -> list[Row]:
    """What everybody may see of a task: what answers it."""
    if info is None:
        return [(task, "", "out of service", "", "", "", "")]
    layers, points = f"{info.exit_layer} + {info.own_layers}", _points(info.dev_metric)
    active = (task, short(info.version), "active", layers, points, "", "")
    if info.canary is None:
        return [active]
    return [active, (task, short(info.canary.version), f"canary {info.canary.percent:g}%", "", "", "", "")]
