"""The history of a registry on disk: ``history.jsonl``, append-only, one entry a line, each chained to the one before.

An entry is written without the end of its line and fsynced; the line end that follows makes it count. So a write that
failed or was killed leaves nothing, or a last line that readers pass over and the next writer cuts off.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from trunkline.bundle.files import sha256_hex
from trunkline.bundle.manifest import CONTROL, Manifest, TaskEntry, TrunkEntry, decode_versioned
from trunkline.core.errors import BundleError, DigestMismatchError, SpecError
from trunkline.core.specs import Spec, convert_spec

HISTORY_NAME = "history.jsonl"
SCHEMA_VERSION = 1
LONGEST_WHO, LONGEST_WHY = 100, 500  # In characters.

Action: TypeAlias = Literal["create", "register", "activate", "canary", "rollback", "remove"]

_DETAILS: dict[Action, tuple[frozenset[str], ...]] = {
    "create": (frozenset({"base"}),),
    "register": (frozenset({"task", "version", "entry"}),),
    "activate": (frozenset({"task", "version"}),),
    "canary": (frozenset({"task", "version", "percent"}),),
    "rollback": (frozenset({"task", "version"}),),
    "remove": (frozenset({"task"}), frozenset({"task", "version"})),
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # No UTF-8 can be written of them.
_VALUE_LENGTH = len('"') + 64 + len('"}')


class Base(Spec, frozen=True, kw_only=True):
    """What never changes about a registry: the facts of its trunk, as in a manifest.

    Attributes:
        trunkline_version: The version that made the bundle.
        backbone: Name of the backbone, for people.
        n_layers: Layers of the whole backbone; the trunk may hold fewer.
        trunk: The shared trunk.
    """

    trunkline_version: str
    backbone: str
    n_layers: int
    trunk: TrunkEntry


class Entry(Spec, frozen=True, kw_only=True, omit_defaults=True):
    """One change of a registry; a line of ``history.jsonl``.

    Attributes:
        schema_version: A newer one is refused before anything else of the entry is looked at.
        seq: 0 for the first entry, then one more each.
        at: UTC, ISO 8601.
        who: Who made the change, up to 100 characters.
        action: What was done.
        why: For what reason: one line of up to 500 characters.
        task: Whose versions were changed; None for ``create``.
        version: Digest of the branch that this is about; for ``rollback`` the one that is active afterwards; for
            ``remove`` None where the task was taken out of service.
        base: ``create``: the facts of the trunk.
        entry: ``register``: what a manifest says about the branch.
        percent: ``canary``: share of the requests in percent, 0 to end it.
        check: SHA-256 (hex) over the entry before's ``check`` and the bytes of this line before the value of this key.
    """

    schema_version: int
    seq: int
    at: str
    who: str
    action: Action
    why: str
    task: str | None = None
    version: str | None = None
    base: Base | None = None
    entry: TaskEntry | None = None
    percent: float | None = None
    check: str = ""

    def __post_init__(self) -> None:
        """Refuse texts that cannot be shown as one line, and details that are not those of the action."""
        _check_text("who", self.who, LONGEST_WHO)
        _check_text("why", self.why, LONGEST_WHY)
        optional = ("task", "version", "base", "entry", "percent")
        given = frozenset(name for name in optional if getattr(self, name) is not None)
        if given not in _DETAILS[self.action]:
            raise SpecError(
                f"{self.action}: {sorted(given)} given; needed: "
                f"{' or '.join(str(sorted(each)) for each in _DETAILS[self.action])}; give these alone"
            )
        if self.percent is not None:
            check_percent(self.percent)


@dataclass(frozen=True, slots=True)
class History:
    """What was read of the file.

    Attributes:
        entries: The whole ones, oldest first.
        size_bytes: Of their lines; what lies behind is a write that never finished.
    """

    entries: tuple[Entry, ...]
    size_bytes: int


def check_percent(percent: float) -> None:
    """Refuse what is no share of the requests.

    Raises:
        SpecError: It is outside 0..100, or no number.
    """
    if not 0 <= percent <= 100:
        raise SpecError(f"canary: {percent:g} percent; 0 to 100 is allowed (0 ends the canary); choose one of them")


def sealed(entry: Entry, previous: Entry | None) -> Entry:
    """The entry with its ``check``, for the place after ``previous``."""
    line = msgspec.json.encode(msgspec.structs.replace(entry, check="0" * 64))
    return msgspec.structs.replace(entry, check=_check(line, previous))


def first_entries(manifest: Manifest, *, at: str, who: str, why: str) -> tuple[Entry, ...]:
    """The history of a new registry that holds what a bundle does: every task is registered and active.

    Args:
        manifest: Of the bundle.
        at: UTC, ISO 8601.
        who: As of `Entry`.
        why: As of `Entry`.

    Raises:
        SpecError: ``who`` or ``why`` is not allowed.
    """
    base = Base(
        trunkline_version=manifest.trunkline_version,
        backbone=manifest.backbone,
        n_layers=manifest.n_layers,
        trunk=manifest.trunk,
    )
    details: list[dict[str, Any]] = [{"action": "create", "base": base}]
    for task, entry in manifest.tasks.items():
        details.append({"action": "register", "task": task, "version": entry.branch, "entry": entry})
    for task, entry in manifest.tasks.items():
        details.append({"action": "activate", "task": task, "version": entry.branch})
    entries: list[Entry] = []
    for seq, detail in enumerate(details):
        made = Entry(schema_version=SCHEMA_VERSION, seq=seq, at=at, who=who, why=why, **detail)
        entries.append(sealed(made, entries[-1] if entries else None))
    return tuple(entries)


def encode_entry(entry: Entry) -> bytes:
    """The line of a sealed entry, with its end."""
    return msgspec.json.encode(entry) + b"\n"


def decode_history(content: bytes, subject: str) -> History:
    """Decode the whole entries of a history; a write at its end that never finished is passed over.

    Args:
        content: The bytes of the file.
        subject: What messages are about, for example the path.

    Raises:
        DigestMismatchError: A line other than the last is not the one that was written after the line before.
        SchemaVersionError: A newer Trunkline wrote a line.
        BundleError: A line says what cannot be.
    """
    *lines, rest = content.split(b"\n")
    entries: list[Entry] = []
    size_bytes = 0
    for number, line in enumerate(lines, start=1):
        previous = entries[-1] if entries else None
        if line[-_VALUE_LENGTH:] != b'"' + _check(line, previous).encode() + b'"}':
            if number == len(lines) and not rest:
                break
            raise DigestMismatchError(
                f"{subject}: line {number}: its check is not that of its bytes after the line before; lines may only "
                "be added; it was damaged or edited, or a line before it was dropped: restore the file from a copy"
            )
        entries.append(_decode_line(line, f"{subject}: line {number}"))
        size_bytes += len(line) + 1
    return History(tuple(entries), size_bytes)


def append_entry(path: Path, entry: Entry, *, size_bytes: int) -> None:
    """Write a sealed entry to the end of a history, durably or not at all; only for whoever holds the lock.

    Args:
        path: The file.
        entry: The entry.
        size_bytes: Of the whole lines before it; what lies behind them is cut off.

    Raises:
        OSError: It cannot be written; the file was cut back to ``size_bytes`` where that was possible.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
    try:
        os.ftruncate(handle, size_bytes)
        _write(handle, encode_entry(entry).removesuffix(b"\n"))
        _write(handle, b"\n")
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, size_bytes)
            os.fsync(handle)
        raise
    finally:
        os.close(handle)


def _write(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]
    os.fsync(handle)


def _check(line: bytes, previous: Entry | None) -> str:
    return sha256_hex(("" if previous is None else previous.check).encode() + line[:-_VALUE_LENGTH])


def _decode_line(line: bytes, subject: str) -> Entry:
    value: dict[str, Any] = decode_versioned(line, SCHEMA_VERSION, subject)
    try:
        return convert_spec(value, Entry, subject)
    except SpecError as error:
        raise BundleError(str(error)) from error


def _check_text(name: str, text: str, longest: int) -> None:
    shown = repr(text if len(text) <= 80 else f"{text[:80]}…")
    if not text.strip():
        raise SpecError(f"{name} is {shown}; the history tells {name} of each change; say it in one line")
    if len(text) > longest:
        raise SpecError(f"{name} is {shown}, {len(text)} characters; up to {longest} are allowed; shorten it")
    if CONTROL.search(text) or _SURROGATE.search(text):
        raise SpecError(f"{name} is {shown}; one line without control characters is allowed; take the others out")
