"""Prepared weights in mapped files, and bfloat16 without torch."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trunkline.engine.weights import WeightStore
from trunkline.model.tensors import from_bits, to_bits

SOURCE = "a" * 64


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "word.weight": rng.normal(size=(50, 16)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
        "narrow": to_bits(rng.normal(size=(7, 5)).astype(np.float32)),
    }


def counted(calls: list[int]) -> Callable[[], dict[str, np.ndarray]]:
    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return arrays()

    return make


def assert_whole(found: object) -> None:
    assert isinstance(found, dict)
    expected = arrays()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "served")


def every_kind_of_number() -> np.ndarray:
    """All upper halves of float32, each with lower halves on, below and above the middle between two bfloat16."""
    upper = np.arange(0x10000, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return (upper[:, None] | lower).reshape(-1).view(np.float32)


def test_rounding_to_bfloat16_is_torch_s_for_every_kind_of_number() -> None:
    values = every_kind_of_number()
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    known = ~np.isnan(values)
    np.testing.assert_array_equal(to_bits(values)[known], expected[known])


def test_a_value_in_the_middle_goes_to_the_even_neighbour() -> None:
    middle_up, middle_down = np.array([0x3F808000, 0x3F818000], dtype=np.uint32).view(np.float32)
    assert to_bits(np.array([middle_up])).tolist() == [0x3F80]
    assert to_bits(np.array([middle_down])).tolist() == [0x3F82]


def test_nan_stays_nan_and_infinity_infinite() -> None:
    values = every_kind_of_number()
    back = from_bits(to_bits(values))
    assert np.isnan(back[np.isnan(values)]).all()
    np.testing.assert_array_equal(back[np.isinf(values)], values[np.isinf(values)])


def test_bits_survive_the_way_to_float32_and_back() -> None:
    bits = np.arange(0x10000, dtype=np.uint16)
    bits = bits[~np.isnan(from_bits(bits))]
    np.testing.assert_array_equal(to_bits(from_bits(bits)), bits)


def test_arrays_come_back_as_they_were_made(store: WeightStore) -> None:
    assert_whole(store.get(SOURCE, "fp32", arrays).arrays)
    assert_whole(store.get(SOURCE, "fp32", arrays).arrays)


def test_arrays_are_made_once_for_a_source_and_a_form(store: WeightStore) -> None:
    calls: list[int] = []
    for _ in range(3):
        WeightStore(store.folder).get(SOURCE, "fp32", counted(calls))
    assert len(calls) == 1
    store.get(SOURCE, "bf16", counted(calls))
    store.get("b" * 64, "fp32", counted(calls))
    assert len(calls) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_made_anew(store: WeightStore, damage: str) -> None:
    store.get(SOURCE, "fp32", arrays)
    (path,) = store.folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes({"flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-9], "empty": b""}[damage])
    calls: list[int] = []
    assert_whole(store.get(SOURCE, "fp32", counted(calls)).arrays)
    assert len(calls) == 1
    assert [each.read_bytes() for each in store.folder.iterdir()] == [whole]


def test_a_folder_that_cannot_be_made_still_serves(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_whole(WeightStore(tmp_path / "file" / "served").get(SOURCE, "fp32", arrays).arrays)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_disk_that_is_full_still_serves_and_keeps_no_piece(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert_whole(store.get(SOURCE, "fp32", arrays).arrays)
    assert list(store.folder.iterdir()) == []


def test_a_file_whose_time_cannot_be_changed_still_serves(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    store.get(SOURCE, "fp32", arrays)
    monkeypatch.setattr(os, "utime", read_only)
    calls: list[int] = []
    assert_whole(store.get(SOURCE, "fp32", counted(calls)).arrays)
    assert not calls


def test_values_can_be_read_after_their_pages_were_let_go(store: WeightStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for each in (store, WeightStore(tmp_path / "file" / "served")):
        weights = each.get(SOURCE, "fp32", arrays)
        weights.release()
        assert_whole(weights.arrays)


def test_values_cannot_be_changed(store: WeightStore) -> None:
    weights = store.get(SOURCE, "fp32", arrays)
    with pytest.raises(ValueError, match="read-only"):
        weights.arrays["bias"][0] = 1.0


def test_a_file_that_is_removed_while_it_is_used_can_still_be_read(store: WeightStore) -> None:
    weights = store.get(SOURCE, "fp32", arrays)
    (path,) = store.folder.iterdir()
    path.unlink()
    weights.release()
    assert_whole(weights.arrays)


def test_folder_and_files_are_the_users_alone(store: WeightStore) -> None:
    store.get(SOURCE, "fp32", arrays)
    (path,) = store.folder.iterdir()
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_the_size_is_that_of_all_arrays(store: WeightStore) -> None:
    weights = store.get(SOURCE, "fp32", arrays)
    assert weights.size_bytes == 50 * 16 * 4 + 3 * 4 + 7 * 5 * 2


def test_the_common_folder_lies_in_the_users_cache(private_cache: Path) -> None:
    assert WeightStore().folder == private_cache / "trunkline" / "served"


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    weights = WeightStore(folder).get("a" * 64, "fp32", lambda: {"x": np.ones(3, dtype=np.float32)})
    assert weights.arrays["x"].tolist() == [1.0, 1.0, 1.0]
    assert not list(folder.iterdir())


def test_files_that_nothing_has_used_for_long_go_when_another_is_kept(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "served")
    made = lambda: {"x": np.ones(3, dtype=np.float32)}  # noqa: E731
    store.get("a" * 64, "fp32", made)
    store.get("b" * 64, "fp32", made)
    (old,) = store.folder.glob("aaa*")
    os.utime(old, (0, 0))
    store.get("c" * 64, "fp32", made)
    assert sorted(path.name[0] for path in store.folder.iterdir()) == ["b", "c"]
