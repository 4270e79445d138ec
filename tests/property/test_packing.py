"""Packed rows answer as each row alone, whatever their lengths, on both backends."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_engines import BACKENDS, backend_of, random_rows, run_all, snapshot_of
from trunkline.engine.backends.base import Backend
from trunkline.engine.layout import Layout
from trunkline.engine.snapshot import Snapshot

TASKS = ("intent", "mood", "slots", "urgency", "topics")
lengths = st.lists(st.one_of(st.integers(1, 12), st.integers(1, 64)), min_size=1, max_size=12)


@cache
def served(name: str, architecture: str) -> tuple[Backend, Snapshot]:
    backend = backend_of(name)
    return backend, snapshot_of(backend, *TASKS, architecture=architecture)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
@settings(max_examples=12)
@given(sizes=lengths, seed=st.integers(0, 1000))
def test_packed_rows_answer_as_each_row_alone(architecture: str, name: str, sizes: list[int], seed: int) -> None:
    backend, snapshot = served(name, architecture)
    rows = random_rows(sizes, seed=seed)
    together = run_all(backend, snapshot, rows)
    for number, row in enumerate(rows):
        for task, alone in run_all(backend, snapshot, [row]).items():
            scale = max(1.0, float(np.abs(alone[0]).max()))
            np.testing.assert_allclose(together[task][number], alone[0], rtol=0, atol=1e-5 * scale, err_msg=task)


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_every_token_has_one_place_and_every_row_one_line(sizes: list[int]) -> None:
    layout = Layout.pack(sizes)
    assert len(np.unique(layout.places)) == sum(sizes)
    assert layout.places.max() < layout.n_tokens
    lines = layout.starts // layout.line_tokens
    np.testing.assert_array_equal(lines, (layout.starts + layout.lengths - 1) // layout.line_tokens)
    # First fit leaves at most one line half empty.
    used = (layout.owners > 0).sum(axis=1)
    assert (2 * used <= layout.line_tokens).sum() <= 1


@given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=30), data=st.data())
def test_a_subset_of_a_subset_points_at_the_tokens_of_the_first(sizes: list[int], data: st.DataObject) -> None:
    layout = Layout.pack(sizes)
    numbers = st.lists(st.integers(0, len(sizes) - 1), min_size=1, unique=True).map(sorted)
    rows = np.array(data.draw(numbers))
    some, index = layout.subset(rows)
    fewer, again = some.subset(np.arange(0, len(rows), 2))
    owners = layout.owners.reshape(-1)[index].reshape(-1)[again].reshape(-1)
    positions = layout.positions.reshape(-1)[index].reshape(-1)[again].reshape(-1)
    for place, row in enumerate(rows[::2].tolist()):
        here = slice(fewer.starts[place], fewer.starts[place] + sizes[row])
        assert set(owners[here].tolist()) == {row + 1}
        assert positions[here].tolist() == list(range(sizes[row]))
