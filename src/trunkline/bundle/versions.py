"""What a registry holds at one moment: a pure fold over its history, and the rules that every change keeps.

`fold` is the one place of the rules: a change is an entry that was folded before it is written, and a history is read
by folding its entries again.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from trunkline.bundle.history import Action, Entry, check_percent
from trunkline.bundle.manifest import Manifest, TaskEntry, TrunkEntry, check_manifest
from trunkline.core.errors import (
    BundleError,
    MissingBranchError,
    RegistryError,
    SpecError,
    UnknownNameError,
    nearest_hint,
)

SHORTEST_PREFIX = 8
SHOWN_DIGITS = 12
"""So many hex digits of a version are shown to people; at least eight are needed to name it."""
_PREFIX = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}")


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that some of the requests are answered by.

    Attributes:
        version: Digest of the branch.
        percent: Share of the requests: above 0, up to 100.
    """

    version: str
    percent: float

    def __post_init__(self) -> None:
        """Refuse what is no share of the requests."""
        check_percent(self.percent)
        if self.percent == 0:
            raise SpecError("canary: 0 percent is no canary; above 0 and up to 100 is allowed; leave it out")


@dataclass(frozen=True, slots=True)
class Version:
    """A registered branch.

    Attributes:
        entry: What a manifest says about it.
        seq: Number of the entry that registered it.
        at: When that was: UTC, ISO 8601.
        who: Who registered it.
    """

    entry: TaskEntry
    seq: int
    at: str
    who: str


@dataclass(frozen=True, slots=True)
class TaskState:
    """The versions of one task.

    Attributes:
        versions: Digest to version, in the order of registration.
        active: The version that answers; None where the task is out of service, or new.
        canary: The version that answers some of the requests.
        former: Versions that were active before, newest last: those that `rollback` goes back to.
    """

    versions: Mapping[str, Version] = field(default_factory=dict)
    active: str | None = None
    canary: Canary | None = None
    former: tuple[str, ...] = ()

    @property
    def rollback_target(self) -> str | None:
        """The version that `rollback` goes back to; None where no version was active before."""
        return self.former[-1] if self.former else None


@dataclass(frozen=True, slots=True)
class RegistryState:
    """What a registry holds at one moment.

    Attributes:
        seq: Number of the last entry.
        trunkline_version: The version that made the bundle.
        backbone: Name of the backbone, for people.
        n_layers: Layers of the whole backbone; the trunk may hold fewer.
        trunk: The shared trunk.
        tasks: Task name to its versions; a task without a version is not there.
    """

    seq: int
    trunkline_version: str
    backbone: str
    n_layers: int
    trunk: TrunkEntry
    tasks: Mapping[str, TaskState] = field(default_factory=dict)

    def task(self, task: str) -> TaskState:
        """The versions of a task.

        Raises:
            UnknownNameError: There is no such task; the message names the nearest.
        """
        if task not in self.tasks:
            raise UnknownNameError(f"task {task!r}: is not in the registry; {nearest_hint(task, self.tasks)}")
        return self.tasks[task]

    def find(self, task: str, version: str) -> str:
        """The digest of a version.

        Args:
            task: Name of the task.
            version: Its digest, or the first eight digits or more.

        Raises:
            UnknownNameError: There is no such task.
            SpecError: The text is no part of a digest.
            MissingBranchError: The task has no such version; the message names those it has.
            RegistryError: Several begin so.
        """
        return _find(self.task(task), version, f"task {task!r}")

    def previous(self, task: str) -> str:
        """The version that `rollback` goes back to.

        Raises:
            UnknownNameError: There is no such task.
            RegistryError: No version was active before the present one.
        """
        target = self.task(task).rollback_target
        if target is None:
            raise RegistryError(
                f"task {task!r}: no version was active before the present one; rollback goes back to such a one; "
                "activate the version that you want"
            )
        return target

    def manifest(self, versions: Mapping[str, str] | None = None) -> Manifest:
        """What a bundle of some versions would hold; its files lie in the registry.

        Args:
            versions: Task to version, as for `find`; None takes every task with its active one.

        Raises:
            TrunklineError: A task or version is not there; see `find`.
        """
        if versions is None:
            versions = {task: each.active for task, each in self.tasks.items() if each.active is not None}
        chosen = {task: self.task(task).versions[self.find(task, text)].entry for task, text in versions.items()}
        return Manifest(
            trunkline_version=self.trunkline_version,
            backbone=self.backbone,
            n_layers=self.n_layers,
            trunk=self.trunk,
            tasks=chosen,
        )


def fold(state: RegistryState | None, entry: Entry) -> RegistryState:
    """What a registry holds after one more change.

    Args:
        state: What it held before; None before the first entry.
        entry: The change.

    Raises:
        RegistryError: The change is not allowed in that state.
        UnknownNameError: It is about a task that is not there.
        MissingBranchError: It is about a version that is not there.
        BundleError: It is out of order, or what it describes cannot be.
    """
    n_before = 0 if state is None else state.seq + 1
    if entry.seq != n_before or (state is None) != (entry.action == "create"):
        raise BundleError(
            f"entry {entry.seq} ({entry.action}) comes after {n_before} others; entries are numbered from 0 in order, "
            "and the first alone creates the registry; restore the history from a copy"
        )
    if state is None:
        return _created(entry)
    task = entry.task or ""
    changed = _RULES[entry.action](_present(state, entry), entry)
    if entry.entry is not None:
        _check_entry(state, task, entry.entry)
    tasks = {**state.tasks, task: changed}
    if not changed.versions:
        del tasks[task]
    return replace(state, seq=entry.seq, tasks=tasks)


def replay(entries: Iterable[Entry], subject: str) -> RegistryState:
    """Fold a history from its start.

    Args:
        entries: All entries, oldest first.
        subject: What messages are about, for example the path.

    Raises:
        BundleError: There is no entry, or one does not follow from those before it.
    """
    state: RegistryState | None = None
    for number, entry in enumerate(entries, start=1):
        try:
            state = fold(state, entry)
        except (BundleError, SpecError) as error:
            raise BundleError(
                f"{subject}: line {number}: does not follow from the lines before ({error}); restore the file from a "
                "copy"
            ) from error
    if state is None:
        raise BundleError(f"{subject}: holds no whole entry; the first one is needed; restore the file from a copy")
    return state


def short(version: str) -> str:
    """A version as people are shown it."""
    return version[:SHOWN_DIGITS]


def _created(entry: Entry) -> RegistryState:
    base = entry.base
    if base is None:
        raise BundleError("entry 0: has no base; the facts of the trunk are needed; restore the history from a copy")
    state = RegistryState(
        seq=entry.seq,
        trunkline_version=base.trunkline_version,
        backbone=base.backbone,
        n_layers=base.n_layers,
        trunk=base.trunk,
    )
    check_manifest(state.manifest({}), "registry")
    return state


def _present(state: RegistryState, entry: Entry) -> TaskState:
    task = entry.task or ""
    return state.tasks.get(task, TaskState()) if entry.action == "register" else state.task(task)


def _check_entry(state: RegistryState, task: str, entry: TaskEntry) -> None:
    check_manifest(msgspec.structs.replace(state.manifest({}), tasks={task: entry}), "registry")


def _registered(present: TaskState, entry: Entry) -> TaskState:
    version, described = entry.version or "", entry.entry
    if described is None or described.branch != version:
        raise BundleError(f"task {entry.task!r}: version {version} is described as another branch; they must agree")
    if version in present.versions:
        raise RegistryError(f"task {entry.task!r}: version {short(version)} is registered already; activate it")
    added = Version(described, entry.seq, entry.at, entry.who)
    return replace(present, versions={**present.versions, version: added})


def _activated(present: TaskState, entry: Entry) -> TaskState:
    version = _known(present, entry)
    if version == present.active:
        raise RegistryError(
            f"task {entry.task!r}: version {short(version)} is active already; another version is allowed; "
            "nothing needs to be done"
        )
    former = present.former if present.active is None else (*present.former, present.active)
    return replace(present, active=version, canary=None, former=_tidy(former, version))


def _canaried(present: TaskState, entry: Entry) -> TaskState:
    version, percent = _known(present, entry), entry.percent or 0.0
    if percent == 0:
        if present.canary is None or present.canary.version != version:
            found = "no canary" if present.canary is None else f"canary {short(present.canary.version)}"
            raise RegistryError(
                f"task {entry.task!r}: has {found}, and that of {short(version)} is to end; end the one there is"
            )
        return replace(present, canary=None)
    if present.active is None:
        raise RegistryError(
            f"task {entry.task!r}: is out of service; a canary needs an active version beside it; activate one first"
        )
    if version == present.active:
        raise RegistryError(
            f"task {entry.task!r}: version {short(version)} is the active one; a canary is another version beside it; "
            "choose another"
        )
    return replace(present, canary=Canary(version, percent))


def _rolled_back(present: TaskState, entry: Entry) -> TaskState:
    version = _known(present, entry)
    if present.rollback_target != version:
        raise RegistryError(
            f"task {entry.task!r}: version {short(version)} is not the one that was active before the present one; "
            "rollback goes back to that one alone; activate the version that you want"
        )
    return replace(present, active=version, canary=None, former=_tidy(present.former[:-1], version))


def _removed(present: TaskState, entry: Entry) -> TaskState:
    if entry.version is None:
        if present.active is None:
            raise RegistryError(
                f"task {entry.task!r}: is out of service already; name a version to remove it, or activate one"
            )
        return replace(present, active=None, canary=None, former=(*present.former, present.active))
    version = _known(present, entry)
    if version == present.active or (present.canary is not None and version == present.canary.version):
        role = "active" if version == present.active else "the canary"
        raise RegistryError(
            f"task {entry.task!r}: version {short(version)} is {role}; only others may be removed; activate another "
            "version or end the canary first"
        )
    versions = {digest: each for digest, each in present.versions.items() if digest != version}
    former = tuple(each for each in present.former if each != version)
    return replace(present, versions=versions, former=_tidy(former, present.active))


_RULES: Mapping[Action, Callable[[TaskState, Entry], TaskState]] = {
    "register": _registered,
    "activate": _activated,
    "canary": _canaried,
    "rollback": _rolled_back,
    "remove": _removed,
}


def _tidy(former: tuple[str, ...], active: str | None) -> tuple[str, ...]:
    """Without steps back that would change nothing."""
    after = (*former, active)[1:]
    return tuple(version for version, following in zip(former, after, strict=True) if version != following)


def _known(present: TaskState, entry: Entry) -> str:
    version = entry.version or ""
    if version not in present.versions:
        raise _missing(present, version, f"task {entry.task!r}")
    return version


def _find(present: TaskState, text: str, subject: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise SpecError(
            f"{subject}: {text!r} is no version; a digest, or its first {SHORTEST_PREFIX} hex digits or more, is "
            "allowed; `trunkline tasks list` shows those there are"
        )
    found = [version for version in present.versions if version.startswith(text)]
    if len(found) > 1:
        raise RegistryError(f"{subject}: {len(found)} versions begin with {text}: {', '.join(found)}; give more digits")
    if not found:
        raise _missing(present, text, subject)
    return found[0]


def _missing(present: TaskState, version: str, subject: str) -> MissingBranchError:
    hint = nearest_hint(short(version), map(short, present.versions))
    return MissingBranchError(f"{subject}: has no version {version}; {hint}; register it first")
