"""Whatever a kill leaves of the activation cache's files, what is read afterwards is right."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trunkline.train.cache import ActivationStore
from trunkline.train.cache_room import RECORD

WIDTH = 2
LENGTHS = (3, 1, 4, 2)
KEYS = tuple(bytes([number]) * 16 for number in range(len(LENGTHS)))
TOKEN_BYTES = WIDTH * 4
TOTAL_BYTES = sum(LENGTHS) * TOKEN_BYTES


def values_of(number: int) -> np.ndarray:
    return np.full((LENGTHS[number], WIDTH), number + 1, dtype=np.float32)


@cache
def whole_files() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(Path(folder), width=WIDTH, dtype="float32")
        store.append({KEYS[number]: values_of(number) for number in range(len(KEYS))})
        return store.states_path.read_bytes(), store.index_path.read_bytes()


def check_after(damage: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> int:
    """Put down damaged files, fill what is missing, read everything; returns how many rows had survived."""
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(Path(folder), width=WIDTH, dtype="float32")
        states, index = damage(*whole_files())
        store.states_path.write_bytes(states)
        store.index_path.write_bytes(index)
        survivors = dict(store.index())
        if survivors:
            check(store, list(survivors))
        store = ActivationStore(Path(folder), width=WIDTH, dtype="float32")
        store.append({key: values_of(n) for n, key in enumerate(KEYS) if key not in survivors})
        check(store, list(KEYS))
        assert store.index_path.stat().st_size == len(KEYS) * RECORD.itemsize
        assert store.states_path.stat().st_size == TOTAL_BYTES
        return len(survivors)


def check(store: ActivationStore, keys: list[bytes]) -> None:
    rows = store.view(keys)
    for position, key in enumerate(keys):
        hidden, mask = rows.gather(np.array([position]))
        np.testing.assert_array_equal(hidden[0][mask[0]].numpy(), values_of(KEYS.index(key)))


@given(
    states_left=st.integers(0, TOTAL_BYTES),
    index_left=st.integers(0, len(KEYS) * RECORD.itemsize),
)
def test_files_cut_at_any_byte_are_filled_again_and_never_wrong(states_left: int, index_left: int) -> None:
    survivors = check_after(lambda states, index: (states[:states_left], index[:index_left]))
    ends = np.cumsum(LENGTHS) * TOKEN_BYTES
    assert survivors == min(int((ends <= states_left).sum()), index_left // RECORD.itemsize)


@given(states_tail=st.binary(max_size=40), index_tail=st.binary(max_size=40))
def test_bytes_that_a_torn_write_left_behind_are_cut_off(states_tail: bytes, index_tail: bytes) -> None:
    assert check_after(lambda states, index: (states + states_tail, index + index_tail)) == len(KEYS)


@given(tail=st.integers(1, 100))
def test_zeros_that_a_crash_left_at_the_end_are_no_rows(tail: int) -> None:
    assert check_after(lambda states, index: (states + bytes(tail), index + bytes(tail))) == len(KEYS)


@given(place=st.integers(0, len(KEYS) * RECORD.itemsize - 1), flip=st.integers(1, 255))
def test_a_flipped_byte_in_the_index_hides_rows_and_never_changes_them(place: int, flip: int) -> None:
    def damage(states: bytes, index: bytes) -> tuple[bytes, bytes]:
        return states, index[:place] + bytes([index[place] ^ flip]) + index[place + 1 :]

    assert check_after(damage) == place // RECORD.itemsize
