"""A writer killed at any moment leaves the bundle as it was, or as it was to be: wholly readable (design.md, 7)."""

import io
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from trunkline.bundle import merge as merging
from trunkline.bundle.cut import cut
from trunkline.bundle.manifest import Manifest
from trunkline.bundle.merge import attach, detach, merge, replace
from trunkline.bundle.store import open_bundle

# The child touches files alone: no thread of the parent's is needed in it.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
KILLED = 9
DEEP = {"kind": "multilabel", "labels": ("a", "b"), "exit_layer": 4, "own_layers": 0}


def attach_task(folder: Path) -> None:
    attach(open_bundle(folder / "bundle"), folder / "mood")


def attach_deeper(folder: Path) -> None:
    attach(open_bundle(folder / "bundle"), folder / "deep", backbone=backbone_of())


def replace_task(folder: Path) -> None:
    replace(open_bundle(folder / "bundle"), folder / "intent")


def detach_task(folder: Path) -> None:
    detach(open_bundle(folder / "bundle"), "slots")


def cut_trunk(folder: Path) -> None:
    cut(folder / "detached")


def merge_tasks(folder: Path) -> None:
    merge([folder / "mood"], backbone_of(), folder / "merged")


CHANGES: dict[Callable[[Path], None], str] = {
    attach_task: "bundle",
    attach_deeper: "bundle",
    replace_task: "bundle",
    detach_task: "bundle",
    cut_trunk: "detached",
    merge_tasks: "merged",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    make_bundle(folder, "intent", "slots")
    put_branch(folder / "mood", "mood", backbone_of())
    put_branch(folder / "deep", "deep", backbone_of(), **DEEP)
    put_branch(folder / "intent", "intent", backbone_of(), seed=7)
    shutil.copytree(folder / "bundle", folder / "detached")
    detach(open_bundle(folder / "detached"), "slots")
    return folder


def read_all(path: Path) -> Manifest | None:
    """What the bundle holds; every byte that its manifest names is read and verified."""
    if not path.exists():
        return None
    bundle = open_bundle(path)
    bundle.trunk()
    for task in bundle.manifest.tasks:
        bundle.branch(task)
    return bundle.manifest


def killing(call: Callable[..., Any], countdown: Iterator[int]) -> Callable[..., Any]:
    """The call, before which the process may end; bytes that were never fsynced are then lost in part."""

    def killed_or_called(*arguments: Any, **options: Any) -> Any:
        if next(countdown) == 0:
            if call is REAL_FSYNC and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
            os._exit(KILLED)
        return call(*arguments, **options)

    return killed_or_called


REAL_FSYNC = os.fsync


def run_and_kill(change: Callable[[Path], None], folder: Path, n: int) -> int:
    """Exit code of a child that is killed before its n-th call that opens, syncs, renames or makes something."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            countdown = iter(range(n, -sys.maxsize, -1))
            for name in ("open", "fsync", "rename", "replace", "mkdir"):
                setattr(os, name, killing(getattr(os, name), countdown))
            io.open = killing(io.open, countdown)  # type: ignore[assignment]
            change(folder)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_bundle(
    pristine: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    name = CHANGES[change]
    old = read_all(pristine / name)
    shutil.copytree(pristine, tmp_path / "whole")
    change(tmp_path / "whole")
    new = read_all(tmp_path / "whole" / name)
    assert new != old
    found: list[Manifest | None] = []
    code, n = KILLED, 0
    while code == KILLED:
        folder = shutil.copytree(pristine, tmp_path / f"{n}")
        code = run_and_kill(change, folder, n)
        found.append(read_all(folder / name))
        if found[-1] == old and n % 3 == 0:  # What was left does not stand in the way of the next try, and goes.
            change(folder)
            assert read_all(folder / name) == new
            assert not list((folder / name).rglob(".*.tmp-*"))
        shutil.rmtree(folder)
        n += 1
    assert code == 0
    assert n > 3
    n_old = found.index(new)
    assert found == [old] * n_old + [new] * (n - n_old)


def test_every_file_is_in_place_before_the_manifest_names_it(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(pristine, tmp_path / "copy")
    swaps: list[str] = []
    real_swap = merging.swap_file

    def swap(path: Path, content: bytes) -> None:
        swaps.append(path.name)
        if path.name == "manifest.json":
            assert len(list((folder / "bundle" / "branches" / "deep").glob("*/*"))) == 4
        real_swap(path, content)

    monkeypatch.setattr(merging, "swap_file", swap)
    attach_deeper(folder)
    assert [name[:10] for name in swaps] == ["layers-2-3", "manifest.j"]
