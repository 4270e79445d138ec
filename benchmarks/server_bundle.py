"""Bundles for servers: of a given plan with random branches, on a random backbone too; and parts of a bundle."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.engine_shapes import XIAOAI21
from benchmarks.peers.infinity_peer import TOKENIZER_FILES, embedded_checkpoint
from benchmarks.peers.shapes import Shape, sample_tasks
from trunkline.bundle.cut import cut
from trunkline.bundle.golden import golden_inputs, make_golden
from trunkline.bundle.manifest import MANIFEST_NAME
from trunkline.bundle.merge import detach, merge
from trunkline.bundle.store import open_bundle, write_branch
from trunkline.core.specs import BranchSpec, Kind, Provenance
from trunkline.model.backbone import Backbone, load_backbone


@dataclass(frozen=True, slots=True)
class Planned:
    """A task of a bundle that is to be made.

    Attributes:
        task: Its name.
        kind: What it answers.
        exit_layer: Trunk layers under it.
        own_layers: Layers of its branch.
        n_labels: That it chooses from.
    """

    task: str
    kind: Kind
    exit_layer: int
    own_layers: int
    n_labels: int


ASSISTANT12 = (
    Planned("atis_intent", "classification", 3, 2, 20),
    Planned("atis_slots", "tagging", 3, 2, 153),
    Planned("btc_ner", "tagging", 3, 3, 7),
    Planned("clinc150_domain", "classification", 3, 2, 10),
    Planned("clinc150_intent", "classification", 4, 1, 150),
    Planned("clinc150_oos", "classification", 3, 3, 2),
    Planned("emotion", "classification", 3, 3, 6),
    Planned("hwu64_domain", "classification", 3, 1, 18),
    Planned("hwu64_intent", "classification", 3, 1, 64),
    Planned("sms_spam", "classification", 4, 1, 2),
    Planned("snips_intent", "classification", 4, 2, 7),
    Planned("snips_slots", "tagging", 3, 2, 79),
)
"""As `assistant12` was planned."""
XIAOAI9 = tuple(
    Planned(each.name, each.kind, each.exit_layer, each.own_layers, each.n_outputs)
    for each in (*XIAOAI21[:5], *XIAOAI21[10:14])
)
"""Of the paper's sentence tasks, ten with one own layer and seven with two, nine in this proportion."""
_NOISE = 0.02
_SEED = 20251125


def random_checkpoint(folder: Path, shape: Shape) -> Path:
    """A BERT of random weights with the tokenizer of the embedded backbone, as transformers keeps it.

    Args:
        folder: It is made there when missing.
        shape: Its word table is as long as that of the embedded backbone.
    """
    from benchmarks.peers.models import reference

    if folder.is_dir():
        return folder
    print(f"making {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        partial = Path(temporary) / folder.name
        # one task, so that there is a pooler
        reference(shape, sample_tasks(1), _SEED).bert.save_pretrained(partial)
        for name in TOKENIZER_FILES:
            shutil.copy(embedded_checkpoint() / name, partial / name)
        partial.rename(folder)
    return folder


def random_bundle(folder: Path, backbone_name: str, plan: Sequence[Planned]) -> Path:
    """A bundle of some plan: layers of the backbone with noise, heads at random.

    Args:
        folder: It is made there as ``bundle`` when missing.
        backbone_name: As `load_backbone` takes it.
        plan: One branch each.
    """
    path = folder / "bundle"
    if (path / MANIFEST_NAME).is_file():
        return path
    print(f"making {path}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(backbone_name)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        branches = [Path(temporary) / each.task for each in plan]
        for seed, (branch, planned) in enumerate(zip(branches, plan, strict=True)):
            _write_random(branch, backbone, planned, seed)
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


def _write_random(folder: Path, backbone: Backbone, planned: Planned, seed: int) -> None:
    from trunkline.model.branch import Branch
    from trunkline.model.golden_run import golden_logits
    from trunkline.model.trunk import Trunk

    spec = _spec(backbone, planned, seed)
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


def _spec(backbone: Backbone, planned: Planned, seed: int) -> BranchSpec:
    tagger = planned.kind == "tagging"
    tags = ("O", *(f"B-{n}" for n in range(planned.n_labels - 1)))
    return BranchSpec(
        task=planned.task,
        kind=planned.kind,
        input="text",
        labels=tags if tagger else tuple(map(str, range(planned.n_labels))),
        metric="span_f1" if tagger else "accuracy",
        max_length=128,
        pooling="cls",
        exit_layer=planned.exit_layer,
        own_layers=planned.own_layers,
        trunk_digest=backbone.chain[planned.exit_layer],
        provenance=Provenance(
            trunkline_version="random weights", created_at="", backbone=backbone.name, run_id="", seed=seed,
            train_rows=0, train_digest="", selection_metric=0.0,
        ),
    )  # fmt: skip
