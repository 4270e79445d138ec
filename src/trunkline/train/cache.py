"""Activations of the frozen trunk, computed once for each distinct row and kept on disk (design.md, section 3).

One store holds one exit of one trunk in one dtype. Its rows are packed one after another without padding::

    <root>/<trunk digest, 24 hex>-<dtype>/states.bin   states of all rows, (tokens, width) each
    <root>/<trunk digest, 24 hex>-<dtype>/rows.idx     one record a row: key, first token, token count, checksum

Both files only grow. States are fsynced before the record that points at them, so whatever a kill leaves behind
is a shorter store and never a wrong one: a record that is torn or points past the states is not read, and
the next writer cuts it off.
"""

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock

from trunkline.core.errors import TrainingError
from trunkline.core.types import Encoded
from trunkline.data.collate import collate, length_batches
from trunkline.model.backbone import Backbone
from trunkline.model.cost import layer_flops, sizes_of
from trunkline.model.trunk import Trunk
from trunkline.train.cache_room import RECORD, AboutStore, note_use, room_bytes
from trunkline.train.spec import CacheDtype

STORED: dict[CacheDtype, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}
TORCH_DTYPE: dict[CacheDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FLUSH_BYTES = 64 << 20


def row_key(row: Encoded) -> bytes:
    """16 bytes that name a row by its token ids and types."""
    return hashlib.blake2b(row.key(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, eq=False)
class CachedRows:
    """Some rows of a store, in the order asked for; a view of the file, not a copy.

    Attributes:
        states: (tokens up to the last of these rows, width), memory-mapped; bfloat16 is held as its 16 bits.
        starts: (rows,) int64, first token of each row.
        lengths: (rows,) int64, tokens of each row.
        dtype: What ``states`` holds.
    """

    states: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    dtype: CacheDtype

    def gather(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad the asked rows to the longest of them.

        Args:
            indices: (rows,) into this view.

        Returns:
            Hidden states (rows, tokens, width) float32, zero where padded, and the mask (rows, tokens) bool.
        """
        lengths = self.lengths[indices]
        longest = int(lengths.max())
        hidden = torch.zeros(len(indices), longest, self.states.shape[1])
        for position, (start, length) in enumerate(zip(self.starts[indices], lengths, strict=True)):
            packed = torch.from_numpy(self.states[start : start + length])
            hidden[position, :length] = packed.view(TORCH_DTYPE[self.dtype])
        mask = torch.arange(longest)[None, :] < torch.from_numpy(lengths)[:, None]
        return hidden, mask


class ActivationStore:
    """States after one exit of one trunk, in one dtype.

    Args:
        folder: The store's folder; made by the first `append`.
        width: Of the hidden states.
        dtype: What is stored.
    """

    def __init__(self, folder: Path, *, width: int, dtype: CacheDtype) -> None:
        self.states_path = folder / "states.bin"
        self.index_path = folder / "rows.idx"
        self.width = width
        self.dtype = dtype
        self._token_bytes = width * STORED[dtype].itemsize
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._n_tokens = 0

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by the one process that appends; the folder is made when missing.

        Raises:
            TrainingError: The folder cannot be written, or the disk is full; what was there stays whole.
        """
        try:
            self.index_path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.index_path}.lock"):
                yield
        except OSError as error:
            raise TrainingError(
                f"activation cache {self.states_path.parent}: cannot be written ({error.strerror or error}); "
                "free space, or set TRUNKLINE_CACHE to another folder"
            ) from error

    def index(self) -> Mapping[bytes, tuple[int, int]]:
        """Key -> (first token, token count) of every whole row; only what was added since the last call is read."""
        if not self.index_path.exists() or not self.states_path.exists():
            self._rows, self._n_tokens = {}, 0
            return self._rows
        n_stored = self.states_path.stat().st_size // self._token_bytes
        with self.index_path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < len(self._rows) * RECORD.itemsize or n_stored < self._n_tokens:
                # Another store took the place of the one that was read: somebody emptied the cache.
                self._rows, self._n_tokens = {}, 0
            file.seek(len(self._rows) * RECORD.itemsize)
            content = file.read()
        for record in np.frombuffer(content, dtype=RECORD, count=len(content) // RECORD.itemsize):
            end = int(record["start"]) + int(record["n_tokens"])
            if end > n_stored or int(record["checksum"]) != _checksum(record):
                break
            self._rows[record["key"].tobytes()] = (int(record["start"]), int(record["n_tokens"]))
            self._n_tokens = end
        return self._rows

    def append(self, rows: Mapping[bytes, np.ndarray]) -> None:
        """Add rows, under the lock.

        Args:
            rows: Key -> states (tokens, width) as they are stored; what another writer added meanwhile is passed over.

        Raises:
            TrainingError: The store cannot be written; what was there stays whole.
        """
        with self._lock():
            known = self.index()
            n_tokens = self._n_tokens
            records = []
            with self.states_path.open("ab") as states, self.index_path.open("ab") as index:
                # Whatever a kill left behind the last whole row.
                states.truncate(n_tokens * self._token_bytes)
                index.truncate(len(known) * RECORD.itemsize)
                for key, values in rows.items():
                    if key not in known:
                        states.write(values.tobytes())
                        records.append(_record(key, n_tokens, len(values)))
                        n_tokens += len(values)
                _flush(states, index, records)

    def view(self, keys: Sequence[bytes]) -> CachedRows:
        """The rows of these keys, all of which must be there."""
        index = self.index()
        places = np.array([index[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        # Copy-on-write, because torch wants writable memory; nothing writes to it.
        # Only whole rows are mapped: a kill may have left part of a number behind them.
        shape = (int(places.sum(axis=1).max(initial=0)), self.width)
        states: np.ndarray = np.memmap(self.states_path, dtype=STORED[self.dtype], mode="c", shape=shape)
        return CachedRows(states=states, starts=places[:, 0], lengths=places[:, 1], dtype=self.dtype)


class StorePiece:
    """Rows on their way to a store: collected, then appended, so that no writer waits for another's trunk.

    Args:
        store: Where they go.
    """

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._rows: dict[bytes, np.ndarray] = {}
        self._n_bytes = 0

    def add(self, rows: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Collect rows: (key, states (tokens, width) float32); a full piece is written."""
        for key, values in rows:
            self._rows[key] = _to_stored(values, self._store.dtype)
            self._n_bytes += self._rows[key].nbytes
        if self._n_bytes > FLUSH_BYTES:
            self.write()

    def write(self) -> None:
        """Append what was collected.

        Raises:
            TrainingError: The store cannot be written.
        """
        self._store.append(self._rows)
        self._rows, self._n_bytes = {}, 0


class ActivationCache:
    """All stores below one root.

    Args:
        root: Folder of the stores.
        limit_bytes: Of all stores together; None allows half of what the disk has left.
        on_rows: Called with the number of rows computed, as they are; for a progress bar.
    """

    def __init__(
        self, root: Path, *, limit_bytes: int | None = None, on_rows: Callable[[int], None] | None = None
    ) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.seconds = 0.0
        self.flops = 0.0
        self._stores: dict[tuple[Path, int], ActivationStore] = {}
        self._on_rows = on_rows or (lambda _count: None)

    def rows(
        self, trunk: Trunk, backbone: Backbone, rows: Sequence[Encoded], *, exit_layer: int, dtype: CacheDtype
    ) -> CachedRows:
        """States of `rows` after `exit_layer` trunk layers; what is missing is computed and kept.

        Args:
            trunk: At least `exit_layer` deep, in evaluation mode: the frozen part knows no dropout.
            backbone: Whose trunk it is; ``backbone.chain[exit_layer]`` addresses the store.
            rows: Any order, repeats allowed.
            exit_layer: How many trunk layers run; 0 gives the embeddings.
            dtype: What is stored.

        Raises:
            TrainingError: The store cannot be written.
        """
        store = self._store(backbone, exit_layer, dtype)
        self.fill(trunk, backbone, rows, exits=(exit_layer,), dtype=dtype)
        return store.view([row_key(row) for row in rows])

    def fill(
        self, trunk: Trunk, backbone: Backbone, rows: Sequence[Encoded], *, exits: Sequence[int], dtype: CacheDtype
    ) -> None:
        """Keep states of `rows` at several exits, in one pass up the trunk; arguments as of `rows`.

        Raises:
            TrainingError: A store cannot be written.
        """
        stores = {exit_layer: self._store(backbone, exit_layer, dtype) for exit_layer in exits}
        keys = [row_key(row) for row in rows]
        missing: dict[bytes, Encoded] = {}
        for exit_layer, store in stores.items():
            about = AboutStore(backbone=backbone.name, exit_layer=exit_layer, width=store.width, dtype=dtype)
            note_use(store.index_path.parent, about)
            missing.update(_missing(store, keys, rows))
        if not missing:
            return
        started = time.perf_counter()
        pieces = {exit_layer: StorePiece(store) for exit_layer, store in stores.items()}
        for found in self._compute(trunk, missing, exits=exits, pad_id=backbone.tokenizer.pad_id):
            for exit_layer, states in found.items():
                pieces[exit_layer].add(states)
        for piece in pieces.values():
            piece.write()
        self.seconds += time.perf_counter() - started
        self.flops += max(exits) * layer_flops(
            sizes_of(backbone.config), [len(row.token_ids) for row in missing.values()]
        )

    def missing_bytes(self, backbone: Backbone, rows: Sequence[Encoded], *, exit_layer: int, dtype: CacheDtype) -> int:
        """How many bytes `rows` would add to the cache; arguments as of `rows`."""
        store = self._store(backbone, exit_layer, dtype)
        missing = _missing(store, [row_key(row) for row in rows], rows)
        n_tokens = sum(len(row.token_ids) for row in missing.values())
        return n_tokens * store.width * STORED[dtype].itemsize

    def room_bytes(self) -> int:
        """How many bytes may still be added."""
        return room_bytes(self.root, limit_bytes=self.limit_bytes)

    def deepest_whole(
        self, backbone: Backbone, rows: Sequence[Encoded], *, below: int, dtype: CacheDtype
    ) -> int | None:
        """The deepest exit under `below` whose states of all these rows are kept; None if there is none."""
        for exit_layer in range(below - 1, -1, -1):
            if not self.missing_bytes(backbone, rows, exit_layer=exit_layer, dtype=dtype):
                return exit_layer
        return None

    def _store(self, backbone: Backbone, exit_layer: int, dtype: CacheDtype) -> ActivationStore:
        folder, width = self.root / f"{backbone.chain[exit_layer][:24]}-{dtype}", backbone.config.width
        return self._stores.setdefault((folder, width), ActivationStore(folder, width=width, dtype=dtype))

    def _compute(
        self, trunk: Trunk, missing: dict[bytes, Encoded], *, exits: Sequence[int], pad_id: int
    ) -> Iterator[dict[int, list[tuple[bytes, np.ndarray]]]]:
        keys, rows = list(missing), list(missing.values())
        device = next(trunk.parameters()).device
        for chosen in length_batches([len(row.token_ids) for row in rows], rows_per_batch=32):
            batch = collate([rows[i] for i in chosen], pad_id)
            arrays = (batch.token_ids, batch.type_ids, batch.mask)
            with torch.inference_mode():
                states = trunk(*(torch.from_numpy(a).to(device) for a in arrays), exits=exits)
            found = {exit_layer: hidden.float().cpu().numpy() for exit_layer, hidden in states.items()}
            yield {
                exit_layer: [(keys[i], hidden[place, : len(rows[i].token_ids)]) for place, i in enumerate(chosen)]
                for exit_layer, hidden in found.items()
            }
            self._on_rows(len(chosen))


def _missing(store: ActivationStore, keys: Sequence[bytes], rows: Sequence[Encoded]) -> dict[bytes, Encoded]:
    known = store.index()
    return {key: row for key, row in zip(keys, rows, strict=True) if key not in known}


def _to_stored(values: np.ndarray, dtype: CacheDtype) -> np.ndarray:
    if dtype == "float32":
        return np.ascontiguousarray(values, dtype=STORED[dtype])
    rounded: np.ndarray = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.uint16).numpy()
    return rounded


def _record(key: bytes, start: int, n_tokens: int) -> np.ndarray:
    record = np.zeros((), dtype=RECORD)
    record["key"], record["start"], record["n_tokens"] = np.void(key), start, n_tokens
    record["checksum"] = _checksum(record)
    return record


def _checksum(record: np.ndarray) -> int:
    return zlib.crc32(record.tobytes()[: RECORD.itemsize - 4])


def _flush(states: BinaryIO, index: BinaryIO, pending: list[np.ndarray]) -> None:
    if not pending:
        return
    states.flush()
    os.fsync(states.fileno())
    index.write(np.array(pending, dtype=RECORD).tobytes())
    index.flush()
    os.fsync(index.fileno())
