"""Backends, snapshots and engines on pico branches, without a bundle on disk where none is needed."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tiny_bundles import backbone_of, make_branch
from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.types import Encoded, Example
from trunkline.engine.backends.base import Backend, Precision
from trunkline.engine.backends.openvino import OpenVinoBackend
from trunkline.engine.backends.torch import TorchBackend
from trunkline.engine.engine import Engine
from trunkline.engine.runner import Runner
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk, Snapshot, load_branch, load_trunk
from trunkline.model.backbone import Backbone
from trunkline.model.encoder import Embeddings, EncoderLayer

BACKENDS = ("openvino", "torch")


def backend_of(name: str = "openvino", precision: Precision = "fp32") -> Backend:
    """A backend on one thread; torch's are set by tests/conftest.py."""
    if name == "torch":
        return TorchBackend(precision=precision)
    return OpenVinoBackend(precision=precision, n_threads=1)


def open_fp32(path: Path, *, name: str = "openvino", **options: Any) -> Engine:
    """Open a bundle in fp32; to be closed."""
    return Engine.open(path, backend=options.pop("backend", None) or backend_of(name), **options)


def stored_trunk(backbone: Backbone) -> StoredTrunk:
    """All of a backbone, as a bundle gives it."""
    return StoredTrunk(backbone.config, backbone.tensors, backbone.tokenizer, backbone.chain)


def stored_branch(task: str, backbone: Backbone, *, seed: int = 0, **changes: Any) -> StoredBranch:
    """A branch as a bundle gives it; its digest is made up, and another for every other content."""
    made = make_branch(task, backbone, seed=seed, **changes)
    digest = hashlib.sha256(repr((made.spec, seed, backbone.chain)).encode()).hexdigest()
    return StoredBranch(made.spec, made.tensors, made.golden, digest, {}, {})


@cache
def _stored(task: str, architecture: str) -> StoredBranch:
    return stored_branch(task, backbone_of(architecture))


def snapshot_of(backend: Backend, *tasks: str, architecture: str = "bert") -> Snapshot:
    """Some of the pico tasks, ready to run."""
    backbone = backbone_of(architecture)
    return snapshot_with(backend, backbone, [_stored(task, architecture) for task in tasks])


def snapshot_with(backend: Backend, backbone: Backbone, branches: Sequence[StoredBranch]) -> Snapshot:
    """Given branches, ready to run."""
    exits = {branch.spec.exit_layer for branch in branches}
    loaded = {branch.spec.task: load_branch(branch, backbone.config, backend) for branch in branches}
    return Snapshot(load_trunk(stored_trunk(backbone), backend, exits=exits), loaded)


def encoded(*texts: str, architecture: str = "bert", max_length: int = 32) -> list[Encoded]:
    """Texts as rows."""
    tokenizer = backbone_of(architecture).tokenizer
    return tokenizer.encode([Example(text=text) for text in texts], max_length=max_length)


def random_rows(lengths: Sequence[int], *, seed: int = 0, n_types: int = 1) -> list[Encoded]:
    """Rows of given lengths, of any tokens that a pico vocabulary has."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = rng.integers(4, 60, length).astype(np.int32)
        types = rng.integers(0, max(n_types, 1), length).astype(np.int32)
        nothing = np.zeros(length, dtype=np.int8)
        rows.append(Encoded(ids, types, np.zeros((length, 2), dtype=np.int32), nothing, truncated=False))
    return rows


def run_all(backend: Backend, snapshot: Snapshot, rows: Sequence[Encoded]) -> dict[str, list[np.ndarray]]:
    """Every branch on every row."""
    return run_some(backend, snapshot.trunk, rows, dict.fromkeys(snapshot.branches.values(), range(len(rows))))


def run_some(
    backend: Backend, trunk: LoadedTrunk, rows: Sequence[Encoded], asked: dict[LoadedBranch, Any]
) -> dict[str, list[np.ndarray]]:
    """Logits by task, in the order in which they came."""
    wanted = {branch: np.array(numbers, dtype=np.int64) for branch, numbers in asked.items()}
    return {ran.branch.spec.task: ran.logits for ran in Runner(backend).run(trunk, rows, wanted)}


@dataclass
class Executed:
    """What torch modules did.

    Attributes:
        layers: For each call of an encoder layer: lines, tokens of a line, and whether it gave the first token alone.
        n_rows: Rows that were embedded.
    """

    layers: list[tuple[int, int, bool]] = field(default_factory=list)
    n_rows: int = 0

    @property
    def n_whole(self) -> int:
        """Calls of whole layers."""
        return sum(not first_only for _, _, first_only in self.layers)


@contextmanager
def executed(first_token: int = 2) -> Iterator[Executed]:
    """Count what encoder layers of the torch backend do, by forward hooks.

    Args:
        first_token: The id that every row begins with, and has nowhere else.
    """
    seen = Executed()

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, EncoderLayer):
            lines, tokens, _ = inputs[0].shape
            seen.layers.append((lines, tokens, output.shape[1] < tokens))
        if isinstance(module, Embeddings):
            seen.n_rows += int((inputs[0] == first_token).sum())

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
