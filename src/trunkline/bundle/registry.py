"""The registry: every version of every task on one trunk, and who changed what, when and why.

A folder with the content of a bundle, but without a manifest: what holds follows from ``history.jsonl`` alone.
Immutable files are on disk before the entry that names them is written, so a kill at any moment leaves the last good
state (design.md, sections 4 and 7).
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trunkline.bundle.files import check_digest, read_inside, remove_whole, require_inside, staged_folder, write_file
from trunkline.bundle.history import (
    HISTORY_NAME,
    SCHEMA_VERSION,
    Action,
    Entry,
    History,
    append_entry,
    decode_history,
    encode_entry,
    first_entries,
    sealed,
)
from trunkline.bundle.merge import LOCK_NAME, check_change, sole_writer
from trunkline.bundle.place import place_branch
from trunkline.bundle.store import Bundle, StoredBranch, branch_files, bundle_files, read_branch, task_entry
from trunkline.bundle.versions import RegistryState, fold, replay
from trunkline.core.errors import (
    BundleError,
    DigestMismatchError,
    RegistryError,
    TrunkMismatchError,
    UnknownNameError,
    nearest_hint,
)


def utc_now() -> datetime:
    """The time, as entries tell it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read of a registry, and by which facts of the file a change of it is noticed."""

    history: History
    state: RegistryState
    stamp: tuple[int, ...]

    def next(self, at: str, action: Action, *, who: str, why: str, **details: Any) -> Entry:
        """The entry that may come after."""
        seq = self.state.seq + 1
        return Entry(schema_version=SCHEMA_VERSION, seq=seq, at=at, who=who, action=action, why=why, **details)


class Registry:
    """A registry that was opened; make one with `create` or `open`.

    Every change is made under the registry's lock, on the state that is on disk then, and is one entry of its history.
    An object may be shared by threads. Each change takes ``who`` makes it (up to 100 characters), ``why`` (one line of
    up to 500 characters) and ``expected_seq``: the `RegistryState.seq` that it was decided on; None takes any.
    Every change may raise:

    - `UnknownNameError` or `MissingBranchError`: there is no such task or version; the nearest is named;
    - `RegistryError`: it does not fit the state, or another change came after ``expected_seq``;
    - `SpecError`: ``who``, ``why``, ``percent`` or ``version`` is no such value;
    - `BundleError`: another writer holds the lock too long, or the folder cannot be read or written.

    What raises has changed nothing; where a disk refuses even to take a write back, look at the state that is read.

    Args:
        path: Its folder.
        reading: What was read of it.
        clock: Tells the time of entries.
    """

    def __init__(self, path: Path, reading: _Reading, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self._reading = reading
        self._clock = clock
        self._guard = threading.Lock()

    @classmethod
    def create(
        cls, path: Path, bundle: Bundle, *, who: str, why: str, clock: Callable[[], datetime] = utc_now
    ) -> "Registry":
        """Make a registry of a bundle's trunk and tasks; each task's branch is registered and active.

        Args:
            path: Must not exist or be empty. It appears whole or not at all.
            bundle: Is copied; the registry does not need it afterwards.
            who: Who makes it.
            why: For what reason.
            clock: Tells the time of entries.

        Raises:
            SpecError: ``who`` or ``why`` is not allowed.
            BundleError: ``path`` cannot be written; or errors of `Bundle.trunk` and `Bundle.branch`, which are read
                and verified.
        """
        entries = first_entries(bundle.manifest, who=who, why=why, at=_text_of(clock()))
        replay(entries, f"{path}")
        bundle.trunk()
        for task in bundle.manifest.tasks:
            bundle.branch(task)
        with staged_folder(path) as staging:
            for name, digest in bundle_files(bundle.manifest).items():
                content = read_inside(bundle.path, name)
                check_digest(content, digest, f"{bundle.path / name}")
                write_file(staging / name, content)
            write_file(staging / LOCK_NAME, b"")
            write_file(staging / HISTORY_NAME, b"".join(map(encode_entry, entries)))
        return cls.open(path, clock=clock)

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime] = utc_now) -> "Registry":
        """Read a registry's history; files of trunk and branches are read and verified when they are asked for.

        Args:
            path: Its folder.
            clock: Tells the time of entries.

        Raises:
            BundleError: There is no registry, or its history says what cannot be.
            DigestMismatchError: A line of the history was damaged, edited or dropped.
            SchemaVersionError: A newer Trunkline wrote it.
        """
        return cls(path, _read(path), clock=clock)

    @property
    def state(self) -> RegistryState:
        """What it held when it was opened, refreshed or changed through this object."""
        return self._reading.state

    def refresh(self) -> bool:
        """Read the history again where the file changed.

        Returns:
            Whether the state is another one now.

        Raises:
            DigestMismatchError: The history is no longer the one that was read before, or as for `open`.
            BundleError: As for `open`.
        """
        known = self._reading
        found = self._look(known)
        with self._guard:
            if self._reading is known:  # Else another thread's change came in between, and is the newer one.
                self._reading = found
        return found.state != known.state

    def history(self, task: str | None = None) -> tuple[Entry, ...]:
        """All entries, oldest first, or those about one task.

        Raises:
            UnknownNameError: No entry is about that task.
        """
        entries = self._reading.history.entries
        if task is None:
            return entries
        known = {entry.task for entry in entries if entry.task is not None}
        if task not in known:
            raise UnknownNameError(f"task {task!r}: is not in the history; {nearest_hint(task, known)}")
        return tuple(entry for entry in entries if entry.task == task)

    def bundle(self, versions: Mapping[str, str] | None = None) -> Bundle:
        """A bundle whose files lie in the registry, and that needs no manifest on disk.

        Args:
            versions: Task to version (a digest, or its first eight digits or more), all that the bundle is to hold;
                None takes every task with its active version.

        Raises:
            TrunklineError: There is no such task or version; see `RegistryState.find`.
        """
        return Bundle(path=self.path, manifest=self.state.manifest(versions))

    def register(
        self,
        folder: Path,
        *,
        who: str,
        why: str,
        expected_seq: int | None = None,
        check: Callable[[Bundle], None] = lambda _: None,
        before_each: Callable[[], None] = lambda: None,
    ) -> str:
        """Add a branch as a version of its task; it answers nothing before `activate` or `canary`.

        Registering the bytes of a registered version again adds no entry.

        Args:
            folder: The branch, as written by `write_branch`; it is copied.
            who: As for every change.
            why: As for every change.
            expected_seq: As for every change.
            check: Is given a bundle with this version alone once its files are in place; what it raises is raised, and
                the version is not registered.
            before_each: Is called before each piece of the work, and may let others go first.

        Returns:
            The version: the branch's digest.

        Raises:
            TrunkMismatchError: The branch was trained on another trunk, or reads deeper than the stored one.
            BundleError: It does not fit the trunk; or kind, input or labels are others than those of the active
                version and the label schema version is not a higher one. Errors of `read_branch` besides.
        """
        before_each()
        branch = read_branch(folder)
        task, version = branch.spec.task, branch.digest
        with self._changing(expected_seq) as current:
            entry = current.next(
                self._now(), "register", who=who, why=why, task=task, version=version, entry=task_entry(branch)
            )
            registered = task in current.state.tasks and version in current.state.tasks[task].versions
            if not registered:
                _check_depth(current.state, branch, f"registry {str(self.path)!r}")
                check_change(Bundle(path=self.path, manifest=current.state.manifest()), branch)
                after = fold(current.state, entry)
            place_branch(self.path, branch, before_each=before_each)
            if not registered:
                check(Bundle(self.path, after.manifest({task: version}), held={version: branch}))
                self._append(current, entry)
        return version

    def activate(self, task: str, version: str, *, who: str, why: str, expected_seq: int | None = None) -> None:
        """Let a version answer; a canary of the task ends. Errors as for every change."""
        with self._changing(expected_seq) as current:
            digest = current.state.find(task, version)
            self._append(current, current.next(self._now(), "activate", who=who, why=why, task=task, version=digest))

    def canary(
        self, task: str, version: str, percent: float, *, who: str, why: str, expected_seq: int | None = None
    ) -> None:
        """Let a version beside the active one answer some of the requests, in the place of a canary before.

        Args:
            task: Name of the task.
            version: Its digest, or the first eight digits or more.
            percent: Share of the requests: above 0, up to 100; 0 ends this version's canary.
            who: As for every change.
            why: As for every change.
            expected_seq: As for every change.

        Raises:
            TrunklineError: As for every change.
        """
        with self._changing(expected_seq) as current:
            digest = current.state.find(task, version)
            self._append(
                current,
                current.next(
                    self._now(), "canary", who=who, why=why, task=task, version=digest, percent=float(percent)
                ),
            )

    def rollback(self, task: str, *, who: str, why: str, expected_seq: int | None = None) -> str:
        """Let the version answer that was active before the present one; a canary of the task ends.

        A task that was taken out of service answers again.

        Returns:
            The version that is active now.

        Raises:
            TrunklineError: As for every change; a `RegistryError` where no version was active before.
        """
        with self._changing(expected_seq) as current:
            digest = current.state.previous(task)
            self._append(current, current.next(self._now(), "rollback", who=who, why=why, task=task, version=digest))
        return digest

    def remove(
        self, task: str, version: str | None = None, *, who: str, why: str, expected_seq: int | None = None
    ) -> None:
        """Take a task out of service, or drop one of its versions that is neither active nor canary.

        The files of the version stay until `prune`, for readers of the state before. Errors as for every change.
        """
        with self._changing(expected_seq) as current:
            digest = None if version is None else current.state.find(task, version)
            self._append(current, current.next(self._now(), "remove", who=who, why=why, task=task, version=digest))

    def prune(self) -> tuple[str, ...]:
        """Remove files of branches that are no version any longer; nothing that is referenced is touched.

        Returns:
            What was removed, relative to the folder.

        Raises:
            BundleError: The folder cannot be changed.
        """
        with self._changing(None) as current:
            with (self.path / HISTORY_NAME).open("rb") as file:
                os.fsync(file.fileno())  # Its writer may have been killed before: no crash may bring a version back.
            files = {
                Path(name)
                for task, each in current.state.tasks.items()
                for version in each.versions.values()
                for name in branch_files(task, version.entry)
            }
            used = files.union(*(name.parents for name in files))
            found = [path for pattern in ("*/*", "*") for path in sorted((self.path / "branches").glob(pattern))]
            names = [path.relative_to(self.path) for path in found]
            superfluous = [name for name in names if name not in used]
            for name in superfluous:
                require_inside(self.path, name.parent.as_posix())
                remove_whole(self.path / name)
        return tuple(name.as_posix() for name in superfluous)

    @contextmanager
    def _changing(self, expected_seq: int | None) -> Iterator[_Reading]:
        self.refresh()  # No lock file is left in a folder that is no registry.
        with sole_writer(self.path, f"registry {str(self.path)!r}"):
            current = self._put(self._look(self._reading))
            if expected_seq not in (None, current.state.seq):
                raise RegistryError(
                    f"registry {str(self.path)!r}: its last entry is {current.state.seq}; {expected_seq} was expected, "
                    "and another change came first; nothing was changed: look at the history and start again"
                )
            yield current

    def _append(self, current: _Reading, entry: Entry) -> None:
        history = current.history
        state = fold(current.state, entry)
        entry = sealed(entry, history.entries[-1])
        append_entry(self.path / HISTORY_NAME, entry, size_bytes=history.size_bytes)
        size_bytes = history.size_bytes + len(encode_entry(entry))
        self._put(_Reading(History((*history.entries, entry), size_bytes), state, _stamp(self.path)))

    def _look(self, known: _Reading) -> _Reading:
        """What is on disk now; ``known`` where the file is the same."""
        if _stamp(self.path) == known.stamp:
            return known
        found = _read(self.path)
        # The last entry may have been read while it was written, and taken back: a write that failed.
        settled = known.history.entries[:-1]
        if settled and found.history.entries[len(settled) - 1 : len(settled)] != settled[-1:]:
            raise DigestMismatchError(
                f"{self.path / HISTORY_NAME}: no longer begins with the {len(settled)} entries that were read before; "
                "lines may only be added; restore the file from a copy"
            )
        return found

    def _put(self, reading: _Reading) -> _Reading:
        """Keep what was read or written under the lock of the registry: nothing newer is known."""
        with self._guard:
            self._reading = reading
        return reading

    def _now(self) -> str:
        return _text_of(self._clock())


def is_registry(path: Path) -> bool:
    """Whether a folder is a registry; it is not opened."""
    return os.path.isfile(path / HISTORY_NAME)  # noqa: PTH113 - unlike Path.is_file it never raises.


def _read(path: Path) -> _Reading:
    stamp = _stamp(path)  # Before the content: what is added in between is noticed by the next look.
    subject = f"{path / HISTORY_NAME}"
    history = decode_history(read_inside(path, HISTORY_NAME), subject)
    return _Reading(history, replay(history.entries, subject), stamp)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = (path / HISTORY_NAME).stat()
    except (OSError, ValueError) as error:
        raise BundleError(
            f"registry {str(path)!r}: {HISTORY_NAME} cannot be read ({error}); a folder that `trunkline registry "
            "create` made is needed; check the path"
        ) from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _text_of(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _check_depth(state: RegistryState, branch: StoredBranch, subject: str) -> None:
    spec, trunk = branch.spec, state.trunk
    if spec.exit_layer > trunk.depth:
        raise TrunkMismatchError(
            f"task {spec.task!r}: reads after layer {spec.exit_layer} of trunk {spec.trunk_digest}; {subject} stores "
            f"the trunk up to layer {trunk.depth} with {trunk.chain[-1]}, and it is never made deeper; train a branch "
            "with a lower exit_layer, or attach this one to a bundle with --backbone and create a registry from that"
        )
