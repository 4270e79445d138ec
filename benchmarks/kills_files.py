"""File operations that fail: each call to the system in turn, once or from then on, or the process ends there."""

import errno
import io
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, Self

from benchmarks.kills_writer import unreadable
from trunkline.bundle.registry import Registry
from trunkline.core.errors import TrunklineError

CALLS = ("open", "write", "fsync", "ftruncate", "rename", "replace", "mkdir", "unlink", "rmdir")
KINDS = ("no space", "broken", "broken from then on", "killed")
_KILLED = 100
"""Exit code of a child that ended at the first of `CALLS`."""
Change = Callable[[Registry], object]
Fault = Callable[[str, tuple[Any, ...]], None]
"""Is told the name of a call and its arguments, and raises or ends the process, or does nothing."""


@dataclass(slots=True)
class Failures:
    """What failing operations did.

    Attributes:
        n: Operations that failed.
        by_call: How often which call failed.
        n_taken_back: Changes that failed and left the state before.
        n_made: Changes that were made in spite of it.
        lost: What was wrong, in words.
    """

    n: int = 0
    by_call: Counter[str] = field(default_factory=Counter)
    n_taken_back: int = 0
    n_made: int = 0
    lost: list[str] = field(default_factory=list)


class _Countdown:
    """Lets ``n`` calls pass; then each, or one alone, is a fault."""

    def __init__(self, n: int, fault: Fault, *, forever: bool) -> None:
        self._left, self._fault, self._forever = n, fault, forever
        self.failed: list[str] = []

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._left -= 1
        if self._left == -1 or (self._forever and self._left < 0):
            self.failed.append(name)
            self._fault(name, arguments)


class _Ending:
    """Lets ``n`` calls pass; then the process ends, and half of the bytes that were not brought to disk are lost."""

    def __init__(self, n: int, folder: Path) -> None:
        self._left = n
        self._safe = {str(path.resolve()): path.stat().st_size for path in folder.rglob("*") if path.is_file()}

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._left -= 1
        path, size = "", 0
        if name == "fsync" and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
            path, size = str(Path(f"/proc/self/fd/{arguments[0]}").readlink()), os.fstat(arguments[0]).st_size
        if self._left < 0:
            if path:
                os.truncate(path, (self._safe.get(path, 0) + size) // 2)
            os._exit(_KILLED + CALLS.index(name))
        if path:
            self._safe[path] = size


class _File:
    """A file whose writes may fail."""

    def __init__(self, file: Any, may_fail: Fault) -> None:
        self._file, self._may_fail = file, may_fail

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        """Write all of it, or half of it and fail."""
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._may_fail("write", ())
        return half + int(self._file.write(content[half:]))


@contextmanager
def faulty(may_fail: Fault) -> Iterator[None]:
    """Every call that opens, writes, syncs, renames, makes or removes something asks first whether it may fail."""
    real = {name: getattr(os, name) for name in CALLS}
    real_open = io.open

    def of_system(name: str) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if name == "write":  # Torn: half of it was written before the disk was full.
                real["write"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                may_fail(name, arguments)
                half = len(arguments[1]) // 2
                return half + real["write"](arguments[0], bytes(arguments[1])[half:])
            may_fail(name, arguments)
            return real[name](*arguments, **options)

        return called

    def opened(*arguments: Any, **options: Any) -> Any:
        may_fail("open", arguments)
        file = real_open(*arguments, **options)
        return _File(file, may_fail) if file.writable() else file

    for name in CALLS:
        setattr(os, name, of_system(name))
    io.open = opened  # type: ignore[assignment]
    try:
        yield
    finally:
        io.open = real_open
        for name in CALLS:
            setattr(os, name, real[name])


def fail_every_call(pristine: Path, changes: Mapping[str, Change], *, every: int) -> Failures:
    """Let each call of each change fail, once for lack of space, once for good and all, and end the process there.

    Args:
        pristine: A registry, which is copied for each failure.
        changes: What is tried; each is possible in that registry and adds one entry.
        every: Only each so many-th call fails; 1 takes all.
    """
    found = Failures()
    with tempfile.TemporaryDirectory() as folder:
        case = _Case(pristine, Path(folder) / "copy", Registry.open(pristine).state.seq)
        for name, change in changes.items():
            for kind in KINDS:
                n = 0
                while _fail_one(found, f"{name}, {kind}, call {n}", change, case, kind, n):
                    n += every
    return found


@dataclass(frozen=True, slots=True)
class _Case:
    pristine: Path
    path: Path
    seq: int


def _fail_one(found: Failures, subject: str, change: Change, case: _Case, kind: str, n: int) -> bool:
    """Whether there was a call to fail."""
    copytree(case.pristine, case.path)
    try:
        told, failed = (_killed if kind == "killed" else _failing)(change, case.path, n, kind)
        if failed is None:
            return False
        found.n += 1
        found.by_call[failed] += 1
        wrong = _judge(found, case, kind, told=told) + _go_on(case.path)
        found.lost += [f"{subject} ({failed}): {each}" for each in wrong]
        return True
    finally:
        rmtree(case.path)


def _failing(change: Change, path: Path, n: int, kind: str) -> tuple[str, str | None]:
    """What the change told, "made", "failed" or something foreign, and which call failed first."""
    code = errno.ENOSPC if kind == "no space" else errno.EIO

    def fail(_name: str, _arguments: tuple[Any, ...]) -> None:
        raise OSError(code, os.strerror(code))

    countdown, registry, told = _Countdown(n, fail, forever=kind == "broken from then on"), Registry.open(path), "made"
    with faulty(countdown):
        try:
            change(registry)
        except TrunklineError:
            told = "failed"
        except Exception as error:  # noqa: BLE001 - that it is none of ours is the finding
            told = f"{type(error).__name__}: {error}"
    return told, countdown.failed[0] if countdown.failed else None


def _killed(change: Change, path: Path, n: int, _kind: str) -> tuple[str, str | None]:
    """As `_failing`; the process ends there, and bytes that were not brought to disk are lost in part."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            registry = Registry.open(path)
            with faulty(_Ending(n, path)):
                change(registry)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if 0 < code < _KILLED:
        raise RuntimeError(f"a child ended with code {code}")
    return "killed", CALLS[code - _KILLED] if code else None


def _judge(found: Failures, case: _Case, kind: str, *, told: str) -> list[str]:
    """What is wrong with a registry whose change was told to be made, or to have failed."""
    try:
        registry = Registry.open(case.path)
    except TrunklineError as error:
        return [f"does not open: {error}"]
    more = registry.state.seq - case.seq
    found.n_made += more == 1
    found.n_taken_back += more == 0
    # When nothing can be written or taken back any more, only what is on disk says how it ended.
    allowed = {"made": (1,), "failed": (0, 1) if kind == "broken from then on" else (0,), "killed": (0, 1)}
    wrong = [] if more in allowed.get(told, ()) else [f"told {told!r}, and there are {more} changes"]
    return wrong + unreadable(registry)


def _go_on(path: Path) -> list[str]:
    """What is wrong when a healthy writer goes on."""
    try:
        registry = Registry.open(path)
        serving = {task: each.active for task, each in registry.state.tasks.items() if each.active is not None}
        if not serving:
            return ["no task is in service any more"]
        task, active = next(iter(serving.items()))
        registry.remove(task, who="a fault", why="the next writer")
        registry.rollback(task, who="a fault", why="the next writer")
    except TrunklineError as error:
        return [f"cannot be changed any more: {error}"]
    left = [str(each.relative_to(path)) for each in path.rglob(".*.tmp-*")]
    same = Registry.open(path).state.tasks[task].active == active
    return ([f"left behind: {left}"] if left else []) + ([] if same else ["went back to another version"])
