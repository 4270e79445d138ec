"""A pico registry and branches for it, made once and copied by each test."""

from pathlib import Path

from tests.tiny_bundles import backbone_of, make_bundle, put_branch
from trunkline.bundle.registry import Registry
from trunkline.bundle.store import read_branch
from trunkline.bundle.versions import RegistryState

SAID = {"who": "ada", "why": "a test"}
NEWER = ("intent-1", "intent-2", "intent-3")
"""Folders of other versions of task ``intent``."""


def make_registry(folder: Path) -> Path:
    """``registry`` with tasks ``intent`` and ``slots``; branch folders beside it: `NEWER`, ``mood``, ``deep``."""
    bundle = make_bundle(folder, "intent", "slots")
    for seed, name in enumerate(NEWER, start=1):
        put_branch(folder / name, "intent", backbone_of(), seed=seed)
    put_branch(folder / "mood", "mood", backbone_of())
    deep = {"kind": "multilabel", "labels": ("a", "b"), "exit_layer": 4, "own_layers": 0}
    put_branch(folder / "deep", "deep", backbone_of(), **deep)
    Registry.create(folder / "registry", bundle, **SAID)
    return folder


def digest_of(folder: Path) -> str:
    """The version that a branch folder becomes."""
    return read_branch(folder).digest


def read_whole(path: Path) -> RegistryState:
    """The state on disk; every byte of every version is read and verified."""
    registry = Registry.open(path)
    registry.bundle().trunk()
    for task, present in registry.state.tasks.items():
        for version in present.versions:
            registry.bundle({task: version}).branch(task)
    return registry.state
