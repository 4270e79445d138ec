"""What all runs on one backbone share, and where their inputs come from."""

from dataclasses import dataclass
from typing import Protocol

from accelerate import Accelerator

from trunkline.model.backbone import Backbone
from trunkline.model.cost import EncoderSizes, layer_flops
from trunkline.model.trunk import Trunk
from trunkline.train.cache import ActivationCache, CachedRows
from trunkline.train.device import best_precision
from trunkline.train.ledger import Ledger
from trunkline.train.loop import CachedSource, ComputedSource, Source, TokenSource
from trunkline.train.prepare import Split
from trunkline.train.spec import CacheDtype, Precision, RunRecord, RunSpec


class Reporter(Protocol):
    """Told what happens; the command line draws progress bars from it."""

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """A run begins that takes this many optimizer steps."""

    def step(self, loss: float) -> None:
        """One step is done."""

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """A run is in the ledger; `resumed` when it was there already."""

    def note(self, message: str) -> None:
        """Something that its reader should know."""


class Silence:
    """A reporter that says nothing."""

    def run_started(self, spec: RunSpec, n_steps: int) -> None:
        """Say nothing."""

    def step(self, loss: float) -> None:
        """Say nothing."""

    def run_finished(self, record: RunRecord, *, resumed: bool) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """What all runs on one backbone share.

    Attributes:
        backbone: The pretrained encoder.
        trunk: Its frozen layers, all of them, in evaluation mode.
        ledger: Where records go.
        cache: Where activations are kept.
        accelerator: Device and trackers.
        precision: Of the multiplications in training.
        reporter: Told what happens.
    """

    backbone: Backbone
    trunk: Trunk
    ledger: Ledger
    cache: ActivationCache
    accelerator: Accelerator
    precision: Precision
    reporter: Reporter

    @staticmethod
    def build(
        backbone: Backbone,
        ledger: Ledger,
        cache: ActivationCache,
        *,
        accelerator: Accelerator,
        precision: Precision | None = None,
        reporter: Reporter | None = None,
    ) -> "Workbench":
        """Put the whole backbone on the accelerator's device as a frozen trunk.

        Args:
            backbone: The pretrained encoder.
            ledger: Where records go.
            cache: Where activations are kept.
            accelerator: Device and trackers.
            precision: None takes `best_precision`.
            reporter: Told what happens; None for silence.

        Raises:
            TrainingError: The ledger's folder cannot be written.
        """
        ledger.make_folder()
        trunk = Trunk.build(backbone.config, backbone.tensors, depth=backbone.config.n_layers)
        return Workbench(
            backbone=backbone,
            trunk=trunk.to(accelerator.device),
            ledger=ledger,
            cache=cache,
            accelerator=accelerator,
            precision=precision or best_precision(),
            reporter=reporter or Silence(),
        )


def source_of(bench: Workbench, split: Split, spec: RunSpec, *, dtype: CacheDtype) -> Source:
    """Inputs of a split for the arm of a run: token ids for ``full``, else activations at its exit.

    Where the cache has no room for them, they are computed for each batch from the deepest exit that it has.
    """
    device, exit_layer = bench.accelerator.device, spec.exit_layer
    tokens = TokenSource(split.rows, bench.backbone.tokenizer.pad_id, device)
    if spec.arm == "full":
        return tokens
    wanted = bench.cache.missing_bytes(bench.backbone, split.rows, exit_layer=exit_layer, dtype=dtype)
    room = bench.cache.room_bytes()
    if wanted <= room:
        return CachedSource(_cached(bench, split, exit_layer, dtype), bench.trunk.bias, device)
    lower = bench.cache.deepest_whole(bench.backbone, split.rows, below=exit_layer, dtype=dtype)
    kept = None if lower is None else CachedSource(_cached(bench, split, lower, dtype), bench.trunk.bias, device)
    bench.reporter.note(
        f"task {spec.task!r}: activations at exit layer {exit_layer} take {wanted / 1e6:,.0f} MB, the cache has room "
        f"for {room / 1e6:,.0f} MB (--cache-limit): they are computed in every epoch from "
        + ("the token ids" if lower is None else f"exit layer {lower}")
    )
    return ComputedSource(tokens, kept, lower or 0, bench.trunk, exit_layer)


def _cached(bench: Workbench, split: Split, exit_layer: int, dtype: CacheDtype) -> CachedRows:
    return bench.cache.rows(bench.trunk, bench.backbone, split.rows, exit_layer=exit_layer, dtype=dtype)


def trunk_flops(source: Source, spec: RunSpec, sizes: EncoderSizes) -> float:
    """Operations that one pass over a source spends on frozen layers, because the cache does not hold its states."""
    if not isinstance(source, ComputedSource):
        return 0.0
    return (spec.exit_layer - source.kept_exit) * layer_flops(sizes, source.lengths)
