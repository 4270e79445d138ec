"""Weights in the form that is served, in files that are mapped into memory.

A runtime packs dense weights into its own order when they are first used, and keeps what it was given beside them.
Given a mapped file, that second copy can be let go: pages that nobody reads any more leave memory, and would come back
from the file. So there is one copy of the weights, in the served precision (decision 0015).
"""

import json
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import platformdirs

from trunkline.model.tensors import stored_arrays

KEPT_DAYS = 30

_FORM = "1"
"""Raised when `prepare` functions change what they write, so that older files are not read."""
_CACHE_LINE = 64
_NAMES = {"float32": "F32", "uint16": "BF16", "int8": "I8"}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class MappedWeights:
    """Arrays that lie in a mapped file.

    Attributes:
        arrays: Name to a read-only array: float32, int8, or the bits of bfloat16 as uint16.
    """

    arrays: Mapping[str, np.ndarray]
    _memory: mmap.mmap

    @property
    def size_bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def release(self) -> None:
        """Let the pages go; an array that is read again brings its own back from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


class WeightStore:
    """Prepared weights by what they are prepared from, in a private folder.

    A file is read again only if its content has the digest that its name carries, and only out of a folder that nobody
    else may write. Where there is no such folder, each process makes files of its own, which vanish with it. Files that
    nothing has used for `KEPT_DAYS` days go.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Name the folder; it is made when it is needed.

        Args:
            folder: ``served`` in the user's cache folder by default.
        """
        self.folder = folder or platformdirs.user_cache_path("trunkline") / "served"

    def get(self, source: str, form: str, make: Callable[[], Mapping[str, np.ndarray]]) -> MappedWeights:
        """Weights out of the store, made and kept where they are not there yet.

        Args:
            source: Digest of what they are prepared from.
            form: How, for example ``"bf16"``.
            make: Prepares them: name to float32, uint16 or int8 array; wider numbers first, so that all are aligned.
        """
        stem = f"{source[:40]}-{form}-{_FORM}"
        for path in sorted(self.folder.glob(f"{stem}-*.safetensors")) if self._is_private() else ():
            found = _open(path, digest=path.stem.rpartition("-")[2])
            if found is not None:
                with suppress(OSError):  # Somebody else's file, or a disk that is only read: it serves all the same.
                    os.utime(path)
                return found
        return self._keep(stem, make())

    def _keep(self, stem: str, arrays: Mapping[str, np.ndarray]) -> MappedWeights:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._is_private():
                raise PermissionError(self.folder)
            self._forget_old()
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                try:
                    digest = _write(arrays, file)
                    path = self.folder / f"{stem}-{digest[:32]}.safetensors"
                    Path(file.name).replace(path)
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError:
            # A full or read-only disk is no reason not to serve.
            with tempfile.TemporaryFile() as nameless:
                _write(arrays, nameless)
                return _mapped(mmap.mmap(nameless.fileno(), 0, access=mmap.ACCESS_READ))
        with path.open("rb") as written:
            return _mapped(mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ))

    def _is_private(self) -> bool:
        try:
            status = self.folder.stat()
        except OSError:
            return False
        return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

    def _forget_old(self) -> None:
        oldest = time.time() - KEPT_DAYS * 86_400
        for path in self.folder.iterdir():
            with suppress(OSError):  # Another process may have removed it.
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _write(arrays: Mapping[str, np.ndarray], file: IO[bytes]) -> str:
    """Write a safetensors file whose data begin on a cache line; returns its SHA-256."""
    header: dict[str, object] = {}
    end = 0
    for name, array in arrays.items():
        offsets = (end, end + array.nbytes)
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _CACHE_LINE)
    digest = sha256()
    contents = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays.values())
    for piece in (np.frombuffer(len(text).to_bytes(8, "little") + text, dtype=np.uint8), *contents):
        digest.update(piece.data)
        file.write(piece.data)
    file.flush()
    return digest.hexdigest()


def _open(path: Path, digest: str) -> MappedWeights | None:
    """Map a file of the store, or None where its content is not what its name says."""
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    # What is digested is what is used: the mapping, not another reading of the file.
    return _mapped(memory) if sha256(memory).hexdigest()[: len(digest)] == digest else None


def _mapped(memory: mmap.mmap) -> MappedWeights:
    return MappedWeights({name: array for name, (_, array) in stored_arrays(memory).items()}, memory)
