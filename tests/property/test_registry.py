"""Whatever is done to a registry, and wherever that fails: one file decides everything, and is never half changed."""

import errno
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_registries import NEWER, SAID, make_registry, read_whole
from trunkline.bundle.history import HISTORY_NAME, decode_history
from trunkline.bundle.registry import Registry, is_registry
from trunkline.bundle.store import open_bundle, read_branch
from trunkline.bundle.versions import RegistryState, replay
from trunkline.core.errors import BundleError, DigestMismatchError, TrunklineError

# The children of the kill test touch files alone: no thread of the parent's is needed in them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
KILLED = 9
CALLS = ("open", "write", "fsync", "ftruncate", "replace", "rename", "link", "mkdir")
"""What is made to fail, and what a process is killed before: every call of `os` that touches files, and `io.open`."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task ``intent``: three versions, the second is active, the first was before; the third is a canary."""
    folder = make_registry(tmp_path_factory.mktemp("registries"))
    registry = Registry.open(folder / "registry")
    versions = [registry.register(folder / name, **SAID) for name in NEWER[:2]]
    registry.activate("intent", versions[0], **SAID)
    registry.canary("intent", versions[1], 5, **SAID)
    return folder


@cache
def digest_of(folder: Path) -> str:
    return read_branch(folder).digest


def copied(pristine: Path, folder: Path) -> Path:
    """A registry that may be changed; files that are never written again are shared."""
    path = shutil.copytree(pristine / "registry", folder / "registry", copy_function=os.link)
    (path / HISTORY_NAME).unlink()
    shutil.copy(pristine / "registry" / HISTORY_NAME, path)
    return path


# ------------------------------------------------------------------------------------------ any changes in any order


BRANCHES = ("run-intent", "run-slots", "mood", "deep", *NEWER)
changes = st.lists(
    st.tuples(
        st.sampled_from(["register", "activate", "canary", "rollback", "remove", "retire", "prune", "reopen"]),
        st.sampled_from(BRANCHES),
        st.sampled_from([0, 0.5, 5, 100]),
    ),
    max_size=20,
)


def change(registry: Registry, folder: Path, action: str, version: str, percent: float) -> Registry:
    """One change; one that the rules refuse raises."""
    if action == "reopen":
        return Registry.open(registry.path)
    digest, task = digest_of(folder / version), version.split("-")[1] if version.startswith("run-") else version
    task = "intent" if version in NEWER else task
    calls: dict[str, Callable[[], Any]] = {
        "register": lambda: registry.register(folder / version, **SAID),
        "activate": lambda: registry.activate(task, digest[: 8 + int(percent) // 2], **SAID),
        "canary": lambda: registry.canary(task, digest, percent, **SAID),
        "rollback": lambda: registry.rollback(task, **SAID),
        "remove": lambda: registry.remove(task, digest, **SAID),
        "retire": lambda: registry.remove(task, **SAID),
        "prune": registry.prune,
    }
    calls[action]()
    return registry


def check_state(state: RegistryState) -> None:
    """What is true of every state."""
    for task, present in state.tasks.items():
        named = [present.active, *present.former, present.canary.version if present.canary else None]
        assert {each for each in named if each is not None} <= set(present.versions), task
        assert present.canary is None or present.active not in (None, present.canary.version)
        steps = [*present.former, present.active]
        assert all(one != other for one, other in pairwise(steps))
        seqs = [version.seq for version in present.versions.values()]
        assert seqs == sorted(seqs)


@given(changes=changes, cuts=st.lists(st.floats(0, 1), max_size=10))
def test_any_changes_are_read_again_as_they_were_made(
    pristine: Path, changes: list[tuple[str, str, float]], cuts: list[float]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = copied(pristine, Path(name))
        registry = Registry.open(path)
        content = (path / HISTORY_NAME).read_bytes()
        for action, version, percent in changes:
            before = registry.state
            with suppress(TrunklineError):
                registry = change(registry, pristine, action, version, percent)
            grown = (path / HISTORY_NAME).read_bytes()
            assert grown.startswith(content)
            assert grown.count(b"\n") - content.count(b"\n") == registry.state.seq - before.seq <= 1
            content = grown
            assert Registry.open(path).state == registry.state
            check_state(registry.state)
        assert read_whole(path) == registry.state
        check_prefixes(path, content, [int(cut * len(content)) for cut in cuts])


def check_prefixes(path: Path, content: bytes, cuts: list[int]) -> None:
    entries = Registry.open(path).history()
    for cut in (*cuts, len(content) - 1):
        n_whole = content[:cut].count(b"\n")
        (path / HISTORY_NAME).write_bytes(content[:cut])
        if n_whole == 0:
            with pytest.raises(BundleError, match="no whole entry"):
                Registry.open(path)
        else:
            assert Registry.open(path).state == replay(entries[:n_whole], "history")


def test_every_prefix_of_the_bytes_is_the_history_up_to_the_last_whole_entry(pristine: Path) -> None:
    content = (pristine / "registry" / HISTORY_NAME).read_bytes()
    entries = decode_history(content, "history").entries
    for cut in range(len(content) + 1):
        assert decode_history(content[:cut], "history").entries == entries[: content[:cut].count(b"\n")]


@settings(max_examples=100)
@given(where=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_makes_the_last_line_unfinished(pristine: Path, where: float, bits: int) -> None:
    content = (pristine / "registry" / HISTORY_NAME).read_bytes()
    entries = decode_history(content, "history").entries
    position = int(where * len(content))
    damaged = content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :]
    try:
        found = decode_history(damaged, "history").entries
    except DigestMismatchError:
        return
    assert position >= content.rindex(b"\n", 0, -1)
    assert found in (entries[:-1], entries[:-2])


# ------------------------------------------------------------------------------ a failure, or a kill, at any moment


def create(folder: Path, path: Path) -> None:
    Registry.create(path.with_name("made"), open_bundle(folder / "bundle"), **SAID)


def register(folder: Path, path: Path) -> None:
    Registry.open(path).register(folder / NEWER[2], **SAID)


def register_new_task(folder: Path, path: Path) -> None:
    Registry.open(path).register(folder / "mood", **SAID)


def activate(folder: Path, path: Path) -> None:
    Registry.open(path).activate("intent", digest_of(folder / NEWER[1]), **SAID)


def canary(folder: Path, path: Path) -> None:
    Registry.open(path).canary("intent", digest_of(folder / NEWER[1]), 50, **SAID)


def rollback(_: Path, path: Path) -> None:
    Registry.open(path).rollback("intent", **SAID)


def remove_task(_: Path, path: Path) -> None:
    Registry.open(path).remove("intent", **SAID)


def remove_version(folder: Path, path: Path) -> None:
    Registry.open(path).remove("intent", digest_of(folder / "run-intent"), **SAID)


STEPS = {create: 7, register: 2, register_new_task: 3}
"""Changes with many calls of the same kind: each how many of them is made to fail."""
CHANGES = (create, register, register_new_task, activate, canary, rollback, remove_task, remove_version)
on_each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def state_of(change: Callable[..., None], path: Path) -> RegistryState | None:
    """The state that the change is about, all bytes of it read and verified."""
    path = path.with_name("made") if change is create else path
    return read_whole(path) if is_registry(path) else None


def same(one: RegistryState | None, other: RegistryState | None) -> bool:
    """Whether states are equal but for the times of their entries."""
    return timeless(one) == timeless(other)


def timeless(state: RegistryState | None) -> Any:
    if state is None:
        return None
    tasks = {task: (tuple(each.versions), each.active, each.canary, each.former) for task, each in state.tasks.items()}
    return state.seq, state.trunk, tasks


def states(change: Callable[..., None], pristine: Path, folder: Path) -> tuple[RegistryState | None, ...]:
    """Before the change, and after it."""
    path = copied(pristine, folder)
    before = state_of(change, path)
    change(pristine, path)
    after = state_of(change, path)
    assert not same(before, after)
    return before, after


def patched(patch: pytest.MonkeyPatch, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    for name in CALLS:
        patch.setattr(os, name, wrap(getattr(os, name)))
    patch.setattr(io, "open", wrap(io.open))


def fail_at(change: Callable[..., None], pristine: Path, path: Path, n: int, *, lasting: bool) -> tuple[bool, bool]:
    """Run the change with a disk that fails at the n-th call, and at every later one where it is ``lasting``.

    Returns:
        Whether it failed at all, and whether the change said so.
    """
    calls = count()
    failed = []

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def failed_or_called(*arguments: Any, **options: Any) -> Any:
            number = next(calls)
            if number == n or (lasting and number > n):
                failed.append(number)
                code = errno.ENOSPC if n % 2 else errno.EIO
                raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return failed_or_called

    with pytest.MonkeyPatch.context() as patch:
        patched(patch, failing)
        try:
            change(pristine, path)
        except TrunklineError:
            return True, True
    return bool(failed), False


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@on_each_change
def test_a_disk_that_fails_at_any_call_leaves_the_state_before(
    pristine: Path, tmp_path: Path, change: Callable[..., None], lasting: bool
) -> None:
    before, after = states(change, pristine, tmp_path / "whole")
    for n in count(0, STEPS.get(change, 1)):
        path = copied(pristine, tmp_path / f"{n}")
        failed, told = fail_at(change, pristine, path, n, lasting=lasting)
        found = state_of(change, path)
        # A lock file is opened in another way where the first one fails, so not everything that fails is told; a new
        # registry is in its place, whole, when the folder around it cannot be synced.
        doubtful = lasting or change is create
        assert same(found, before if told else after) or (doubtful and same(found, after)), n
        if not failed:
            break
        if same(found, before) and n % 3 == 0:  # What was left does not stand in the way of the next try.
            change(pristine, path)
            assert same(state_of(change, path), after)
            assert not list(path.rglob(".*.tmp-*"))
    assert n > 5
    assert same(state_of(change, path), after)


def run_and_kill(change: Callable[..., None], pristine: Path, path: Path, n: int) -> int:
    """Exit code of a child that is killed before its n-th call."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            countdown = iter(range(n, -sys.maxsize, -1))
            patched(pytest.MonkeyPatch(), lambda call: killing(call, countdown))
            change(pristine, path)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing(call: Callable[..., Any], countdown: Iterator[int]) -> Callable[..., Any]:
    """The call, before which the process may end; one that writes has written half then."""

    def killed_or_called(*arguments: Any, **options: Any) -> Any:
        if next(countdown) == 0:
            if call is REAL_WRITE:
                call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os._exit(KILLED)
        return call(*arguments, **options)

    return killed_or_called


REAL_WRITE = os.write


@on_each_change
def test_a_kill_before_any_call_leaves_the_state_before_or_after(
    pristine: Path, tmp_path: Path, change: Callable[..., None]
) -> None:
    before, after = states(change, pristine, tmp_path / "whole")
    found: list[bool] = []
    for n in count(0, STEPS.get(change, 1)):
        path = copied(pristine, tmp_path / f"{n}")
        code = run_and_kill(change, pristine, path, n)
        state = state_of(change, path)
        found.append(same(state, after))
        assert found[-1] or same(state, before)
        if code != KILLED:
            break
        if not found[-1] and n % 4 == 0 and change is not create:  # Of a new folder nothing can be gone on with.
            change(pristine, path)
            assert same(state_of(change, path), after)
            assert not list(path.rglob(".*.tmp-*"))
    assert code == 0
    assert found == sorted(found)


def test_a_prune_that_fails_or_is_killed_at_any_call_loses_no_version(pristine: Path, tmp_path: Path) -> None:
    def prune(_: Path, path: Path) -> None:
        Registry.open(path).prune()

    def unpruned(folder: Path) -> Path:
        path = copied(pristine, folder)
        remove_version(pristine, path)
        return path

    for n in count():
        path = unpruned(tmp_path / f"{n}")
        before = read_whole(path)
        failed, _ = fail_at(prune, pristine, path, n, lasting=n % 2 == 0)
        assert read_whole(path) == before
        run_and_kill(prune, pristine, killed := unpruned(tmp_path / f"killed-{n}"), n)
        for each in (path, killed):
            read_whole(each)
            Registry.open(each).register(pristine / "run-intent", **SAID)
            read_whole(each)
        if not failed:
            break
    assert n > 5
