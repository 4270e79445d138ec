"""Measured costs: what is measured is what is said, and nonsense is refused."""

import msgspec
import pytest

from tests.tiny import tiny_backbone
from tests.tiny_engines import snapshot_of
from trunkline.core.costs import CostTable
from trunkline.core.errors import SpecError
from trunkline.core.specs import convert_spec
from trunkline.engine import measure
from trunkline.engine.backends.torch import TorchBackend
from trunkline.engine.measure import measure_costs


def test_every_cost_is_measured_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are made up: what a pass costs follows from its name, so the table can be told beforehand."""
    seconds = {"head": 0.3, "two heads": 0.4, "trunk": 2.3, "own": 3.3, "first": 0.5, "folded": 0.7}
    monkeypatch.setattr(measure, "_alternate", lambda passes, _: {name: seconds[name] for name in passes})
    table = measure_costs(tiny_backbone(), TorchBackend(), n_rows=10, n_tokens=8)
    assert (table.trunk_layer_ms, table.own_layer_ms, table.folded_layer_ms) == (100.0, 150.0, 20.0)
    assert (table.branch_ms, table.request_ms) == (10.0, 20.0)
    assert "torch fp32, 10 rows of 8 tokens" in table.measured_on


def test_costs_of_a_tiny_backbone_are_a_table_that_the_planner_takes() -> None:
    table = measure_costs(tiny_backbone("mpnet"), TorchBackend(), n_rows=3, n_tokens=5, repeats=3)
    # No number is sure to be above 0: on a busy machine the difference of two passes may be none.
    numbers = [value for value in msgspec.to_builtins(table).values() if isinstance(value, float)]
    assert len(numbers) == 5
    assert all(0 <= number < 1e6 for number in numbers)
    assert sum(numbers) > 0
    assert table.measured_on.endswith("torch fp32, 3 rows of 5 tokens")
    assert convert_spec(msgspec.to_builtins(table), CostTable, "cost table") == table


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"n_rows": 0}, "n_rows: 0 is too few"), ({"repeats": 2}, "repeats: 2 is too few"), ({"n_tokens": 65}, "1..64")],
)
def test_what_cannot_be_measured_is_refused(asked: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        measure_costs(tiny_backbone(), TorchBackend(), **asked)


@pytest.mark.parametrize(("enough_s", "n_runs", "seconds"), [(0.5, 2, 0.4), (1.0, 1, 0.9), (0.1, 5, 0.3)])
def test_a_branch_is_run_until_it_is_fast_enough(
    monkeypatch: pytest.MonkeyPatch, enough_s: float, n_runs: int, seconds: float
) -> None:
    snapshot, backend = snapshot_of(TorchBackend(), "intent"), TorchBackend()
    took, pauses = iter((0.9, 0.4, 0.3, 0.7, 0.6)), list[None]()
    monkeypatch.setattr(measure, "_timed", lambda run: (run(), next(took))[1])
    found = measure.branch_seconds(
        snapshot.branches["intent"], snapshot.trunk, backend, enough_s=enough_s,
        before_each=lambda: pauses.append(None),
    )  # fmt: skip
    assert (found, len(pauses)) == (seconds, n_runs)
