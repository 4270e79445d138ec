"""Random bundles of a given shape, ready to run, where no trained bundle has that shape."""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import platformdirs

from trunkline.bundle.golden import Golden
from trunkline.bundle.served import Served
from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.specs import BranchSpec, InputForm, Kind, Provenance
from trunkline.core.types import Example
from trunkline.engine.backends.base import Backend
from trunkline.engine.backends.observe import find_ranges
from trunkline.engine.snapshot import LoadedBranch, Snapshot, load_branch, load_trunk
from trunkline.engine.weights import WeightStore
from trunkline.model.backbone import load_backbone
from trunkline.model.config import EncoderConfig, TensorShape, layers_tensor_shapes, trunk_tensor_shapes

N_OUTPUTS: dict[Kind, int] = {"classification": 60, "tagging": 41, "regression": 1}
N_LAYERS = 12
_PROVENANCE = Provenance(
    trunkline_version="random weights", created_at="", backbone="random", run_id="", seed=0, train_rows=0,
    train_digest="", selection_metric=0.0,
)  # fmt: skip
_GOLDEN = Golden(inputs=(), logits=())
_SERIES = "1"
"""Raised when weights are drawn otherwise, so that older prepared ones are not read."""


@dataclass(frozen=True, slots=True)
class OwnLayers:
    """One task of a shape.

    Attributes:
        name: Of the task.
        exit_layer: Trunk layers under it.
        own_layers: Layers of its branch.
        kind: What it answers; all but taggers read ``[CLS]``.
        form: What it reads.
    """

    name: str
    exit_layer: int
    own_layers: int
    kind: Kind = "classification"
    form: InputForm = "text"

    @property
    def n_outputs(self) -> int:
        """Logits for each text or token."""
        return N_OUTPUTS[self.kind]

    @property
    def folds(self) -> bool:
        """Whether its last layer is computed for the first token alone."""
        return self.kind != "tagging"


XIAOAI21 = (
    *(OwnLayers(f"sentence{n}", 8, 1) for n in range(10)),
    *(OwnLayers(f"deeper{n}", 8, 2) for n in range(7)),
    *(OwnLayers(f"tagger{n}", 8, 2, "tagging") for n in range(4)),
)
"""Appendix E of the paper: 8 shared and 32 own layers."""
FURTHER = tuple(OwnLayers(f"further{n}", 8, 1) for n in range(29))
"""One-layer sentence tasks that are put on the same trunk, up to 50 in all."""
_GLUE = (("qnli", 2, 3), ("rte", 7, 5), ("qqp", 2, 1), ("mnli", 4, 3), ("sst2", 6, 2), ("mrpc", 7, 3), ("cola", 4, 8))
GLUE8 = (
    *(OwnLayers(name, exit_layer, own, form="pair") for name, exit_layer, own in _GLUE),
    OwnLayers("stsb", 4, 1, "regression", "pair"),
)
"""The paper's mixed plan for c = 1 (table 2): 7 shared and 26 own layers. All read the same rows, as its count of
layers assumes, so the two tasks on single sentences read pairs here."""


def n_whole_layers(tasks: Sequence[OwnLayers]) -> int:
    """Layers that are computed for every token: the trunk's, and those of branches that do not fold."""
    return max(task.exit_layer for task in tasks) + sum(task.own_layers - task.folds for task in tasks)


def encoder_config(n_layers: int = N_LAYERS) -> EncoderConfig:
    """12 x 768 with the tokenizer of MiniLM, which is BERT's."""
    return sized(n_layers, 768, 12)


def sized(n_layers: int, width: int, n_heads: int) -> EncoderConfig:
    """A BERT of another size; its feed-forward part is four times as wide."""
    small = load_backbone("minilm").config
    return msgspec.structs.replace(
        small, n_layers=n_layers, width=width, n_heads=n_heads, ffn_width=4 * width, embedding_width=width
    )


def random_snapshot(backend: Backend, tasks: Sequence[OwnLayers], config: EncoderConfig | None = None) -> Snapshot:
    """A trunk and branches of random weights, the same for the same tasks.

    Args:
        backend: Compiles them.
        tasks: One branch each.
        config: None takes `encoder_config`.
    """
    config = config or encoder_config()
    trunk = load_trunk(_stored_trunk(tasks, config), backend, exits={task.exit_layer for task in tasks})
    return Snapshot(trunk, {task.name: random_branch(backend, task, config) for task in tasks})


def int8_snapshot(backend: Backend, tasks: Sequence[OwnLayers], texts: Sequence[str]) -> Snapshot:
    """The same trunk and branches as a gate would serve them that accepted int8 for all.

    Ranges are found on one branch of each form: random weights of one form have the same distribution.

    Args:
        backend: Compiles them; serves bundles as gated.
        tasks: One branch each.
        texts: What ranges are found on.
    """
    config = encoder_config()
    stored = _stored_trunk(tasks, config)
    rows = stored.tokenizer.encode([Example(text) for text in texts], max_length=64)
    forms: dict[tuple[int, int, Kind], Served] = {}
    branches = {}
    for task in tasks:
        branch, form = _stored_branch(task, config), (task.exit_layer, task.own_layers, task.kind)
        if form not in forms:
            forms[form] = Served("int8", find_ranges(stored, rows, branch=branch))
        branches[task.name] = load_branch(replace(branch, served=forms[form]), config, backend)
    accepted = replace(stored, served=Served("int8", find_ranges(stored, rows)))
    return Snapshot(load_trunk(accepted, backend, exits={task.exit_layer for task in tasks}), branches)


def random_branch(backend: Backend, task: OwnLayers, config: EncoderConfig) -> LoadedBranch:
    """One branch of random weights."""
    return load_branch(_stored_branch(task, config), config, backend)


def _stored_trunk(tasks: Sequence[OwnLayers], config: EncoderConfig) -> StoredTrunk:
    depth = max(task.exit_layer for task in tasks)
    return StoredTrunk(
        config=config,
        tensors=_Drawn(trunk_tensor_shapes(config, depth=depth), "trunk"),
        tokenizer=load_backbone("minilm").tokenizer,
        chain=tuple(_digest("trunk", config.width, layer) for layer in range(depth + 1)),
    )


def _stored_branch(task: OwnLayers, config: EncoderConfig) -> StoredBranch:
    tagger = task.kind == "tagging"
    labels = ("O", *(f"B-{n}" for n in range(task.n_outputs - 1))) if tagger else tuple(map(str, range(task.n_outputs)))
    spec = BranchSpec(
        task=task.name,
        kind=task.kind,
        input=task.form,
        labels=() if task.kind == "regression" else labels,
        metric={"tagging": "span_f1", "regression": "pearson"}.get(task.kind, "accuracy"),
        max_length=256,
        pooling="cls",
        exit_layer=task.exit_layer,
        own_layers=task.own_layers,
        trunk_digest=_digest("trunk", config.width, task.exit_layer),
        provenance=_PROVENANCE,
    )
    digest = _digest(task.name, config.width, task.exit_layer, task.own_layers, task.kind)
    return StoredBranch(
        spec=spec,
        tensors=_Drawn(_shapes(task, config), digest),
        golden=_GOLDEN,
        digest=digest,
        files={},
        contents={},
    )


def served_weights() -> WeightStore:
    """Where prepared random weights lie, apart from those of real bundles."""
    return WeightStore(platformdirs.user_cache_path("trunkline") / "benchmarks" / "engine-served")


def n_weights(tasks: Sequence[OwnLayers]) -> int:
    """Numbers in all tensors of a shape."""
    config = encoder_config()
    trunk = trunk_tensor_shapes(config, depth=max(task.exit_layer for task in tasks))
    shapes = [*trunk.values(), *(shape for task in tasks for shape in _shapes(task, config).values())]
    return sum(int(np.prod(shape)) for shape in shapes)


def _shapes(task: OwnLayers, config: EncoderConfig) -> dict[str, TensorShape]:
    own = range(task.exit_layer, task.exit_layer + task.own_layers)
    shapes = dict(layers_tensor_shapes(config, own))
    if task.folds:
        shapes |= {"head.pooler.weight": (config.width, config.width), "head.pooler.bias": (config.width,)}
    return shapes | {"head.output.weight": (task.n_outputs, config.width), "head.output.bias": (task.n_outputs,)}


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr((_SERIES, *facts)).encode()).hexdigest()


class _Drawn(Mapping[str, np.ndarray]):
    """Tensors that are drawn when they are asked for, so that they are never all in memory."""

    def __init__(self, shapes: Mapping[str, TensorShape], seed: str) -> None:
        self._shapes, self._seed = dict(shapes), seed

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return np.ones(shape, dtype=np.float32)
        size = 1.5 / shape[-1] ** 0.5 if name == "head.output.weight" else 0.02
        rng = np.random.default_rng(zlib.crc32(f"{self._seed} {name}".encode()))
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
