"""The activation cache: what is computed, what is kept, and that nothing wrong is ever read back."""

import errno
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_bundles import TEXTS, backbone_of
from trunkline.core.errors import TrainingError
from trunkline.core.types import Encoded, Example
from trunkline.data.collate import collate
from trunkline.model.trunk import Trunk
from trunkline.train import cache as cache_module
from trunkline.train.cache import ActivationCache, ActivationStore, CachedRows, row_key
from trunkline.train.cache_room import RECORD, default_cache_root

BACKBONE = backbone_of()
TRUNK = Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=3)


def encoded(*texts: str) -> list[Encoded]:
    return BACKBONE.tokenizer.encode([Example(text=text) for text in texts], max_length=32)


def cached(root: Path, rows: list[Encoded], *, exit_layer: int = 2, dtype: Any = "float32") -> CachedRows:
    return ActivationCache(root).rows(TRUNK, BACKBONE, rows, exit_layer=exit_layer, dtype=dtype)


def uncached(row: Encoded, *, exit_layer: int = 2) -> torch.Tensor:
    batch = collate([row], BACKBONE.config.pad_id)
    ids, types, mask = (torch.from_numpy(array) for array in (batch.token_ids, batch.type_ids, batch.mask))
    with torch.inference_mode():
        hidden: torch.Tensor = TRUNK(ids, types, mask, exits=(exit_layer,))[exit_layer][0]
    return hidden


def states(rows: CachedRows, position: int) -> torch.Tensor:
    hidden, mask = rows.gather(np.array([position]))
    return hidden[0][mask[0]]


@contextmanager
def trunk_calls() -> Iterator[list[int]]:
    """Rows of every pass through the trunk."""
    calls: list[int] = []
    hook = TRUNK.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    yield calls
    hook.remove()


def store_folder(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


@pytest.mark.parametrize("exit_layer", [0, 1, 3])
def test_cached_states_are_the_trunks(tmp_path: Path, exit_layer: int) -> None:
    rows = encoded(*TEXTS)
    found = cached(tmp_path, rows, exit_layer=exit_layer)
    for position, row in enumerate(rows):
        torch.testing.assert_close(states(found, position), uncached(row, exit_layer=exit_layer), atol=1e-5, rtol=0)


def test_a_second_call_computes_nothing(tmp_path: Path) -> None:
    rows = encoded(*TEXTS)
    first = cached(tmp_path, rows)
    with trunk_calls() as calls:
        second = cached(tmp_path, rows[::-1])
    assert calls == []
    assert torch.equal(states(first, 0), states(second, len(rows) - 1))


def test_one_changed_row_recomputes_one_row(tmp_path: Path) -> None:
    cached(tmp_path, encoded(*TEXTS))
    with trunk_calls() as calls:
        cached(tmp_path, encoded(*TEXTS[:-1], "a changed row"))
    assert calls == [1]


def test_repeated_rows_are_computed_and_kept_once(tmp_path: Path) -> None:
    rows = encoded("no", "yes", "no", "no")
    with trunk_calls() as calls:
        found = cached(tmp_path, rows)
    assert sum(calls) == 2
    assert found.starts[0] == found.starts[2] == found.starts[3]
    assert (store_folder(tmp_path) / "rows.idx").stat().st_size == 2 * RECORD.itemsize


def test_a_pair_and_its_joined_text_are_different_rows() -> None:
    pair = BACKBONE.tokenizer.encode([Example(text="no", text_pair="yes")], max_length=32)[0]
    assert row_key(pair) != row_key(encoded("no yes")[0])


def test_exits_dtypes_and_trunks_have_stores_of_their_own(tmp_path: Path) -> None:
    rows = encoded("no")
    for exit_layer, dtype in ((0, "float32"), (2, "float32"), (2, "bfloat16")):
        cached(tmp_path, rows, exit_layer=exit_layer, dtype=dtype)
    other = backbone_of("bert", seed=1)
    trunk = Trunk.build(other.config, other.tensors, depth=2)
    found = ActivationCache(tmp_path).rows(trunk, other, rows, exit_layer=2, dtype="float32")
    assert len(list(tmp_path.iterdir())) == 4
    assert not torch.allclose(states(found, 0), uncached(rows[0]), atol=1e-2)


def test_bfloat16_states_differ_by_its_rounding_alone(tmp_path: Path) -> None:
    rows = encoded(*TEXTS)
    found = cached(tmp_path, rows, dtype="bfloat16")
    for position, row in enumerate(rows):
        # bfloat16 keeps 8 significant bits.
        torch.testing.assert_close(states(found, position), uncached(row), rtol=2**-8, atol=1e-5)


def test_gather_pads_with_zeros_and_masks_them(tmp_path: Path) -> None:
    rows = encoded("no", TEXTS[2])
    hidden, mask = cached(tmp_path, rows).gather(np.array([1, 0]))
    assert mask.sum(dim=1).tolist() == [len(rows[1].token_ids), len(rows[0].token_ids)]
    assert hidden.dtype == torch.float32
    assert not hidden[~mask].any()


def test_computed_rows_are_reported(tmp_path: Path) -> None:
    seen: list[int] = []
    found = ActivationCache(tmp_path, on_rows=seen.append)
    for _ in range(2):
        found.rows(TRUNK, BACKBONE, encoded(*TEXTS), exit_layer=1, dtype="float32")
    assert sum(seen) == len(TEXTS)
    assert found.seconds > 0


class FullDisk(io.BufferedWriter):
    """A file on a disk that has no room after so many bytes."""

    room = 0

    def write(self, content: Any) -> int:
        if FullDisk.room < len(content):
            super().write(content[: FullDisk.room])
            raise OSError(errno.ENOSPC, "No space left on device")
        FullDisk.room -= len(content)
        return super().write(content)


@pytest.mark.parametrize("name", ["states.bin", "rows.idx"])
def test_a_full_disk_is_a_training_error_and_the_store_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    known, new = encoded("no", "yes"), encoded(*TEXTS)
    cached(tmp_path, known)
    whole = ActivationStore(store_folder(tmp_path), width=16, dtype="float32").index()
    open_file = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", **options: Any) -> Any:
        file = open_file(path, mode, **options)
        return FullDisk(file.detach()) if path.name == name and mode == "ab" else file  # type: ignore[union-attr, arg-type]

    FullDisk.room = RECORD.itemsize // 2 if name == "rows.idx" else 100
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(TrainingError, match=r"cannot be written \(No space left on device\).*TRUNKLINE_CACHE"):
            cached(tmp_path, new)
    store = ActivationStore(store_folder(tmp_path), width=16, dtype="float32")
    assert store.index() == whole
    found = cached(tmp_path, [*known, *new])
    for position, row in enumerate([*known, *new]):
        torch.testing.assert_close(states(found, position), uncached(row), atol=1e-5, rtol=0)


def test_a_root_that_cannot_be_made_is_a_training_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        cached(tmp_path / "file", encoded("no"))


def test_a_damaged_record_and_what_follows_it_are_not_read(tmp_path: Path) -> None:
    rows = encoded(*TEXTS)
    cached(tmp_path, rows)
    path = store_folder(tmp_path) / "rows.idx"
    content = bytearray(path.read_bytes())
    content[2 * RECORD.itemsize + 20] ^= 0xFF
    path.write_bytes(content)
    assert len(ActivationStore(path.parent, width=16, dtype="float32").index()) == 2
    found = cached(tmp_path, rows)
    for position, row in enumerate(rows):
        torch.testing.assert_close(states(found, position), uncached(row), atol=1e-5, rtol=0)


def test_long_appends_are_flushed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "FLUSH_BYTES", 100)
    rows = encoded(*TEXTS)
    found = cached(tmp_path, rows)
    for position, row in enumerate(rows):
        torch.testing.assert_close(states(found, position), uncached(row), atol=1e-5, rtol=0)


def test_writers_at_once_share_one_whole_store(tmp_path: Path) -> None:
    texts = [f"{a} {b}" for a in ("no", "yes", "rain") for b in ("play", "a", "song")]
    failures: list[BaseException] = []

    def write(shift: int) -> None:
        try:
            cached(tmp_path, encoded(*texts[shift : shift + 5]))
        except BaseException as error:  # noqa: BLE001 - told to the test below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(shift,)) for shift in (0, 2, 4, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (store_folder(tmp_path) / "rows.idx").stat().st_size == len(texts) * RECORD.itemsize
    with trunk_calls() as calls:
        found = cached(tmp_path, encoded(*texts))
    assert calls == []
    torch.testing.assert_close(states(found, 8), uncached(encoded(texts[8])[0]), atol=1e-5, rtol=0)


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path))
    assert default_cache_root() == tmp_path / "activations"
    monkeypatch.delenv("TRUNKLINE_CACHE")
    assert default_cache_root().parts[-2:] == ("trunkline", "activations")
