"""What layers and branches cost on this machine, measured: the planner's table of milliseconds."""

import math
import platform
import time
from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from trunkline.bundle.golden import Golden
from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.costs import CostTable
from trunkline.core.errors import SpecError
from trunkline.core.specs import BranchSpec, Pooling, Provenance
from trunkline.core.types import Encoded
from trunkline.engine.backends.base import Backend
from trunkline.engine.runner import Runner
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk, load_branch, load_trunk
from trunkline.engine.warm import made_up_row
from trunkline.model.backbone import Backbone
from trunkline.model.config import layers_tensor_shapes

_N_OUTPUTS = 2
_TRIES = 5
_DECIMALS = 6


def measure_costs(
    backbone: Backbone, backend: Backend, *, n_rows: int = 32, n_tokens: int = 16, repeats: int = 9
) -> CostTable:
    """Run the backbone's own layers as trunk and as branches, and see what each part adds to a batch.

    The contestants take turns, and medians are compared, so that what disturbs the machine disturbs all of them.

    Args:
        backbone: Its layers are run; a branch's layers cost the same whatever their weights.
        backend: Runs them.
        n_rows: Rows of a batch; what one row costs is a batch's time divided by it.
        n_tokens: Tokens of each row.
        repeats: How often each is run; at least 3.

    Raises:
        SpecError: A count is too small, or the rows are longer than the backbone takes.
    """
    _check(backbone, n_rows=n_rows, n_tokens=n_tokens, repeats=repeats)
    n_layers = max(backbone.config.n_layers // 2, 1)
    stored = StoredTrunk(backbone.config, backbone.tensors, backbone.tokenizer, backbone.chain)
    trunk = load_trunk(stored, backend, exits=(0, n_layers))

    def branch(name: str, pooling: Pooling, exit_layer: int = 0, own_layers: int = 0) -> LoadedBranch:
        made = _branch(backbone, name, pooling, exit_layer=exit_layer, own_layers=own_layers)
        return load_branch(made, backbone.config, backend)

    head = branch("head", "mean")
    passes = {
        "head": (head,),
        "two heads": (head, branch("other", "mean")),
        "trunk": (branch("high", "mean", exit_layer=n_layers),),
        "own": (branch("own", "mean", own_layers=n_layers),),
        "first": (branch("first", "cls"),),
        "folded": (branch("folded", "cls", own_layers=1),),
    }
    runner = Runner(backend)
    rows = [made_up_row(n_tokens, token=number) for number in range(n_rows)]
    found = _alternate({name: _pass(runner, trunk, rows, branches) for name, branches in passes.items()}, repeats)
    ms = {name: seconds * 1000 / n_rows for name, seconds in found.items()}
    head_ms = ms["two heads"] - ms["head"]

    def cost(value: float) -> float:
        return round(max(value, 0.0), _DECIMALS)

    return CostTable(
        trunk_layer_ms=cost((ms["trunk"] - ms["head"]) / n_layers),
        own_layer_ms=cost((ms["own"] - ms["head"]) / n_layers),
        folded_layer_ms=cost(ms["folded"] - ms["first"]),
        branch_ms=cost(head_ms),
        request_ms=cost(ms["head"] - head_ms),
        measured_on=(
            f"{platform.processor() or platform.machine()}, {backend.name} {backend.precision}, "
            f"{n_rows} rows of {n_tokens} tokens"
        ),
    )


def branch_seconds(
    branch: LoadedBranch,
    trunk: LoadedTrunk,
    backend: Backend,
    *,
    enough_s: float,
    before_each: Callable[[], None] = lambda: None,
) -> float:
    """How long a text of the branch's greatest length takes from the embeddings to its answer, trunk included.

    Args:
        branch: Ready to run.
        trunk: Under it; used by this thread alone (see `LoadedTrunk.twin`).
        backend: Compiled them.
        enough_s: Whoever asks wants to know whether it takes more: a run within it ends the measure.
        before_each: Is called before each run, and may let others go first; it is not timed.

    Returns:
        Seconds of the fastest of up to `_TRIES` runs: what disturbs the machine makes a run slower, never faster.
    """
    n_tokens = min(branch.spec.max_length, trunk.config.max_tokens)
    run = _pass(Runner(backend), trunk, [made_up_row(n_tokens, token=trunk.tokenizer.pad_id)], (branch,))
    fastest = math.inf
    for _ in range(_TRIES):
        before_each()
        fastest = min(fastest, _timed(run))
        if fastest <= enough_s:
            break
    return fastest


def _check(backbone: Backbone, *, n_rows: int, n_tokens: int, repeats: int) -> None:
    for name, value, least in (("n_rows", n_rows, 1), ("n_tokens", n_tokens, 1), ("repeats", repeats, 3)):
        if value < least:
            raise SpecError(f"{name}: {value} is too few to measure; give {least} or more")
    if n_tokens > backbone.config.max_tokens:
        raise SpecError(
            f"n_tokens: {n_tokens} is outside 1..{backbone.config.max_tokens}, what backbone {backbone.name!r} takes; "
            "give fewer"
        )


def _alternate(passes: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(repeats + 2):
        for name, run in passes.items():
            took = _timed(run)
            if number >= 2:  # The first runs prepare what the others find ready.
                seconds[name].append(took)
    return {name: median(values) for name, values in seconds.items()}


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _pass(
    runner: Runner, trunk: LoadedTrunk, rows: list[Encoded], branches: tuple[LoadedBranch, ...]
) -> Callable[[], None]:
    asked = {branch: np.arange(len(rows)) for branch in branches}

    def run() -> None:
        for _ in runner.run(trunk, rows, asked):
            pass

    return run


def _branch(backbone: Backbone, name: str, pooling: Pooling, *, exit_layer: int, own_layers: int) -> StoredBranch:
    config = backbone.config
    spec = BranchSpec(
        task=name,
        kind="classification",
        input="text",
        labels=("no", "yes"),
        metric="accuracy",
        max_length=config.max_tokens,
        pooling=pooling,
        exit_layer=exit_layer,
        own_layers=own_layers,
        trunk_digest=backbone.chain[exit_layer],
        provenance=Provenance(
            trunkline_version="",
            created_at="",
            backbone=backbone.name,
            run_id="",
            seed=0,
            train_rows=0,
            train_digest="",
            selection_metric=0.0,
            dev_metric=None,
        ),
    )
    shapes = {"head.output.weight": (_N_OUTPUTS, config.width), "head.output.bias": (_N_OUTPUTS,)}
    if pooling == "cls":
        shapes |= {"head.pooler.weight": (config.width, config.width), "head.pooler.bias": (config.width,)}
    tensors = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    own = range(exit_layer, exit_layer + own_layers)
    tensors |= {name: backbone.tensors[name] for name in layers_tensor_shapes(config, own)}
    # What is prepared for it is kept by this name.
    digest = f"measured-{own_layers}-{pooling}-{backbone.chain[exit_layer + own_layers]}"
    return StoredBranch(
        spec=spec, tensors=tensors, golden=Golden(inputs=(), logits=()), digest=digest, files={}, contents={}
    )
