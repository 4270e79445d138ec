"""Bundles for servers: one of the shape of `assistant12` with random branches, and parts of a bundle."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from trunkline.bundle.cut import cut
from trunkline.bundle.golden import golden_inputs, make_golden
from trunkline.bundle.manifest import MANIFEST_NAME
from trunkline.bundle.merge import detach, merge
from trunkline.bundle.store import open_bundle, write_branch
from trunkline.core.specs import BranchSpec, Kind, Provenance
from trunkline.model.backbone import Backbone, load_backbone

SHAPE: tuple[tuple[str, Kind, int, int, int], ...] = (
    ("atis_intent", "classification", 3, 2, 20),
    ("atis_slots", "tagging", 3, 2, 153),
    ("btc_ner", "tagging", 3, 3, 7),
    ("clinc150_domain", "classification", 3, 2, 10),
    ("clinc150_intent", "classification", 4, 1, 150),
    ("clinc150_oos", "classification", 3, 3, 2),
    ("emotion", "classification", 3, 3, 6),
    ("hwu64_domain", "classification", 3, 1, 18),
    ("hwu64_intent", "classification", 3, 1, 64),
    ("sms_spam", "classification", 4, 1, 2),
    ("snips_intent", "classification", 4, 2, 7),
    ("snips_slots", "tagging", 3, 2, 79),
)
"""Task, kind, exit layer, own layers, labels: as `assistant12` was planned."""
_NOISE = 0.02


def random_bundle(folder: Path) -> Path:
    """A bundle of `SHAPE` on the embedded backbone: the backbone's layers with noise, heads at random.

    Args:
        folder: It is made there as ``bundle`` when missing.
    """
    path = folder / "bundle"
    if (path / MANIFEST_NAME).is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone("minilm")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        branches = [Path(temporary) / task for task, *_ in SHAPE]
        for seed, branch in enumerate(branches):
            _write_random(branch, backbone, seed)
        merge(branches, backbone, path)
    return path


def part_of(path: Path, tasks: tuple[str, ...], folder: Path) -> Path:
    """A copy of a bundle that has only some of its tasks, its trunk no deeper than they need."""
    copy = folder / "-".join(("bundle", *tasks))
    shutil.copytree(path, copy)
    for task in open_bundle(copy).manifest.tasks:
        if task not in tasks:
            detach(open_bundle(copy), task)
    cut(copy)
    return copy


def sentence_tasks(path: Path) -> tuple[str, ...]:
    """Tasks of a bundle that answer a whole text."""
    return tuple(task for task, entry in open_bundle(path).manifest.tasks.items() if entry.kind != "tagging")


def _write_random(folder: Path, backbone: Backbone, seed: int) -> None:
    from trunkline.model.branch import Branch
    from trunkline.model.golden_run import golden_logits
    from trunkline.model.trunk import Trunk

    spec = _spec(backbone, seed)
    module = Branch.build(
        backbone.config, exit_layer=spec.exit_layer, own_layers=spec.own_layers, kind=spec.kind,
        pooling=spec.pooling, n_outputs=spec.n_outputs, seed=seed,
    )  # fmt: skip
    module.load(backbone.tensors, head=False)
    rng = np.random.default_rng(seed)
    tensors = {
        name: (tensor + rng.normal(0.0, _NOISE, tensor.shape)).astype(np.float32)
        for name, tensor in module.tensors().items()
    }
    module.load(tensors, head=True)
    inputs = golden_inputs("text")
    trunk = Trunk.build(backbone.config, backbone.tensors, depth=spec.exit_layer)
    golden = make_golden(inputs, golden_logits(trunk, module, backbone.tokenizer, spec, inputs))
    write_branch(folder, spec, tensors, golden)


def _spec(backbone: Backbone, seed: int) -> BranchSpec:
    task, kind, exit_layer, own_layers, n_labels = SHAPE[seed]
    tags = ("O", *(f"B-{n}" for n in range(n_labels - 1)))
    return BranchSpec(
        task=task,
        kind=kind,
        input="text",
        labels=tags if kind == "tagging" else tuple(map(str, range(n_labels))),
        metric="span_f1" if kind == "tagging" else "accuracy",
        max_length=128,
        pooling="cls",
        exit_layer=exit_layer,
        own_layers=own_layers,
        trunk_digest=backbone.chain[exit_layer],
        provenance=Provenance(
            trunkline_version="random weights", created_at="", backbone=backbone.name, run_id="", seed=seed,
            train_rows=0, train_digest="", selection_metric=0.0,
        ),
    )  # fmt: skip
