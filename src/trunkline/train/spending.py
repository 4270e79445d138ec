"""What a search is counted: a full fine-tuning to compare with, and the frozen trunk as if nothing had been cached."""

from collections.abc import Sequence

from trunkline.model.cost import layer_flops, sizes_of
from trunkline.train.bench import Workbench
from trunkline.train.cache import row_key
from trunkline.train.jobs import run_fields
from trunkline.train.prepare import PreparedTask, Split
from trunkline.train.run import planned_flops
from trunkline.train.spec import CacheDtype, Preset, RunSpec


def full_flops(bench: Workbench, task: PreparedTask, preset: Preset) -> float:
    """What one full fine-tuning of a task costs, its measurements included."""
    spec = RunSpec(
        **run_fields(bench, task, seed=0, pooling=task.spec.pooling),
        arm="full",
        exit_layer=0,
        own_layers=bench.backbone.config.n_layers,
        hyperparameters=preset.full,
    )
    return planned_flops(task, spec, sizes_of(bench.backbone.config))


class TrunkAccount:
    """Fills the cache for a search and counts what that costs from nothing, whoever filled it before.

    Args:
        bench: Whose cache and trunk.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.flops = 0.0
        self.seconds = 0.0
        self._kept: dict[tuple[int, CacheDtype], set[bytes]] = {}

    def fill(self, rows: Split, exits: Sequence[int], *, dtype: CacheDtype) -> None:
        """Have the states of rows at several exits, in one pass up the trunk; what does not fit is left to the runs.

        Args:
            rows: Whose states.
            exits: Where.
            dtype: Of the states.
        """
        bench = self.bench
        wanted = {row_key(row): row for row in rows.rows}
        kept = [self._kept.setdefault((exit_layer, dtype), set()) for exit_layer in exits]
        new = [row for key, row in wanted.items() if any(key not in there for there in kept)]
        n_bytes = sum(bench.cache.missing_bytes(bench.backbone, new, exit_layer=e, dtype=dtype) for e in exits)
        if n_bytes > bench.cache.room_bytes():
            return
        before = bench.cache.seconds
        bench.cache.fill(bench.trunk, bench.backbone, new, exits=exits, dtype=dtype)
        self.seconds += bench.cache.seconds - before
        lengths = [len(row.token_ids) for row in new]
        self.flops += max(exits) * layer_flops(sizes_of(bench.backbone.config), lengths)
        for there in kept:
            there.update(wanted)
