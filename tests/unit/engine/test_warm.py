"""Which shapes a new version is run on before it answers."""

import numpy as np
import pytest

from tests.tiny_engines import backend_of, random_rows, snapshot_of
from trunkline.engine.runner import Runner, Shapes
from trunkline.engine.scheduler import Limits
from trunkline.engine.snapshot import Snapshot
from trunkline.engine.warm import warm

LIMITS = Limits(batch_tokens=128, batch_rows=4, queued_rows=64, queued_tokens=4096)
BACKEND = backend_of("torch")


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return snapshot_of(BACKEND, "intent", "slots")


def met_by(snapshot: Snapshot, *batches: tuple[int, ...]) -> Shapes:
    """Shapes of batches of rows that have so many tokens each."""
    runner = Runner(BACKEND)
    for lengths in batches:
        rows = random_rows(lengths)
        list(runner.run(snapshot.trunk, rows, dict.fromkeys(snapshot.branches.values(), np.arange(len(rows)))))
    return runner.met


def n_warmed(snapshot: Snapshot, met: Shapes | None) -> int:
    calls: list[None] = []
    warm(BACKEND, snapshot.trunk, snapshot.branches.values(), LIMITS, met=met, before_each=lambda: calls.append(None))
    return len(calls)


def test_a_runner_knows_the_shapes_that_its_batches_had(snapshot: Snapshot) -> None:
    met = met_by(snapshot, (5,), (5, 20, 7), (30, 30, 30))
    assert met.n_batches == 3
    assert set(met.lines) == {(1, 16), (1, 32), (1, 96)}
    assert met.rows == {(1, 16): 1, (3, 32): 2}


def test_rare_shapes_are_not_warmed(snapshot: Snapshot) -> None:
    met = met_by(snapshot, *[(5,)] * 18, (5, 20, 7), (60,))
    usual = met.most(0.9)
    assert (set(usual.lines), set(usual.rows)) == ({(1, 16)}, {(1, 16)})
    assert n_warmed(snapshot, usual) == 2
    assert met.most(1.0) == met


def test_what_was_met_is_warmed_and_nothing_else(snapshot: Snapshot) -> None:
    met = met_by(snapshot, (5,), (5, 20, 7))
    assert n_warmed(snapshot, met) == len(met.lines) + len(met.rows)
    assert n_warmed(snapshot, None) > 2 * n_warmed(snapshot, met)


def test_an_engine_that_met_nothing_warms_nothing(snapshot: Snapshot) -> None:
    assert n_warmed(snapshot, Shapes()) == 0
