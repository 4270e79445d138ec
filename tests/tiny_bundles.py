"""Pico branches and bundles on the pico backbones of tests/tiny.py: random heads, layers with noise."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.tiny import tiny_backbone
from trunkline.bundle.golden import Golden, golden_inputs, make_golden
from trunkline.bundle.merge import merge
from trunkline.bundle.store import Bundle, read_branch, write_branch
from trunkline.core.specs import BranchSpec, Provenance
from trunkline.model.backbone import Backbone
from trunkline.model.branch import Branch
from trunkline.model.golden_run import golden_logits
from trunkline.model.trunk import Trunk

TEXTS = (
    "play a song",
    "what is the weather in paris tomorrow?",
    "book two tables in new york for people you like, at 7:30 pm",
    "明天北京天气好吗 please",
    "no",
    "it is a very good day and we find the movie great, but rain is bad",
)

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "intent": {"kind": "classification", "labels": ("book", "music", "weather"), "exit_layer": 1, "own_layers": 2},
    "mood": {"kind": "classification", "labels": ("bad", "good"), "exit_layer": 2, "own_layers": 1, "pooling": "mean"},
    "slots": {"kind": "tagging", "labels": ("O", "B-city", "I-city"), "exit_layer": 2, "own_layers": 1},
    "topics": {"kind": "multilabel", "labels": ("food", "news", "travel"), "exit_layer": 0, "own_layers": 1},
    "urgency": {"kind": "regression", "labels": (), "exit_layer": 1, "own_layers": 0, "score_mean": 3.0},
    "same": {"kind": "classification", "labels": ("no", "yes"), "input": "pair", "exit_layer": 1, "own_layers": 1},
}
_METRICS = {"classification": "accuracy", "multilabel": "f1_micro", "regression": "pearson", "tagging": "span_f1"}
TASKS = tuple(_DEFAULTS)


@dataclass(frozen=True, slots=True, eq=False)
class TinyBranch:
    """What `write_branch` takes."""

    spec: BranchSpec
    tensors: dict[str, np.ndarray]
    golden: Golden


def provenance_of(task: str, backbone: str = "tiny-bert", *, dev_metric: float | None = 79.5) -> Provenance:
    """Where a pico branch says it comes from."""
    return Provenance(
        trunkline_version="0.1.0",
        created_at="2025-01-01T00:00:00Z",
        backbone=backbone,
        run_id=f"run-{task}",
        seed=0,
        train_rows=100,
        train_digest="0" * 64,
        selection_metric=80.0,
        dev_metric=dev_metric,
    )


@cache
def backbone_of(architecture: str = "bert", seed: int = 0) -> Backbone:
    """One backbone for all tests: nothing about it can be changed."""
    return tiny_backbone(architecture, seed)  # type: ignore[arg-type]


def branch_spec(task: str, backbone: Backbone, **changes: Any) -> BranchSpec:
    """The spec of one of `TASKS` (or of another name, with all fields given)."""
    fields = {"input": "text", "pooling": "cls", "max_length": 32, **_DEFAULTS.get(task, {}), **changes}
    return BranchSpec(
        task=task,
        metric=fields.pop("metric", _METRICS[fields["kind"]]),
        trunk_digest=fields.pop("trunk_digest", backbone.chain[fields["exit_layer"]]),
        provenance=provenance_of(task, backbone.name),
        **fields,
    )


def make_branch(task: str, backbone: Backbone, *, seed: int = 0, **changes: Any) -> TinyBranch:
    """A branch whose layers are the backbone's with noise and whose head is random and large enough to matter."""
    spec = branch_spec(task, backbone, **changes)
    module = Branch.build(
        backbone.config,
        exit_layer=spec.exit_layer,
        own_layers=spec.own_layers,
        kind=spec.kind,
        pooling=spec.pooling,
        n_outputs=spec.n_outputs,
        seed=seed,
    )
    module.load(backbone.tensors, head=False)
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(task.encode()).digest()[:4])])
    tensors = {
        name: (tensor + rng.normal(0.0, 0.3, tensor.shape)).astype(np.float32)
        for name, tensor in module.tensors().items()
    }
    module.load(tensors, head=True)
    trunk = Trunk.build(backbone.config, backbone.tensors, depth=spec.exit_layer)
    inputs = golden_inputs(spec.input)
    golden = make_golden(inputs, golden_logits(trunk, module, backbone.tokenizer, spec, inputs))
    return TinyBranch(spec, tensors, golden)


def put_branch(folder: Path, task: str, backbone: Backbone, *, seed: int = 0, **changes: Any) -> Path:
    """Write a branch folder, as training does."""
    branch = make_branch(task, backbone, seed=seed, **changes)
    write_branch(folder, branch.spec, branch.tensors, branch.golden)
    return folder


def branch_digest(task: str) -> str:
    """Of what `put_branch` writes for the common backbone."""
    with tempfile.TemporaryDirectory() as folder:
        return read_branch(put_branch(Path(folder, "branch"), task, backbone_of())).digest


def make_bundle(folder: Path, *tasks: str, backbone: Backbone | None = None, seed: int = 0) -> Bundle:
    """Branch folders beside the bundle ``folder / "bundle"``."""
    backbone = backbone or backbone_of()
    folders = [put_branch(folder / f"run-{task}", task, backbone, seed=seed) for task in tasks]
    return merge(folders, backbone, folder / "bundle")


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, links by what they point to."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def other_trunk(spec: BranchSpec) -> BranchSpec:
    """The same branch, said to have been trained on another trunk."""
    return msgspec.structs.replace(spec, trunk_digest="f" * 64)
