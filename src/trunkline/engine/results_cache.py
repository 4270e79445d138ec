"""Logits that were computed before, found by everything that they follow from."""

from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

from trunkline.core.errors import SpecError
from trunkline.core.types import Logits

ENTRY_OVERHEAD_BYTES = 600
"""What Python keeps about an entry besides the bytes counted: 450 to 570 (tracemalloc), by how full the tables are."""


class ResultKey(NamedTuple):
    """What logits follow from; keys are compared in full.

    Answers are decoded after the cache, so options of decoding are no part of a key. A branch that is swapped in has
    another digest, so no other branch's results are touched; those of the old one are used no more and fall out.

    Attributes:
        branch: Digest of the branch.
        trunk: The trunk's chain value at the branch's exit.
        precision: Of trunk and branch.
        row: `trunkline.core.types.Encoded.key`: token ids and types.
    """

    branch: str
    trunk: str
    precision: str
    row: bytes


class ResultsCache:
    """Logits by key, the least recently used forgotten first. Thread-safe.

    Args:
        max_bytes: Most bytes of keys, logits and what Python keeps about them; 0 keeps nothing.

    Raises:
        SpecError: ``max_bytes`` is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise SpecError(f"results cache: {max_bytes} bytes are not allowed; choose 0 (keeps nothing) or more")
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: OrderedDict[ResultKey, Logits] = OrderedDict()
        self._size_bytes = 0
        self._hits = 0
        self._misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Bytes that all entries take, an upper estimate (see `entry_bytes`)."""
        return self._size_bytes

    @property
    def hits(self) -> int:
        """How often `get` found something."""
        return self._hits

    @property
    def misses(self) -> int:
        """How often `get` found nothing."""
        return self._misses

    def get(self, key: ResultKey) -> Logits | None:
        """The logits that were put under a key, which counts as their use; None when there are none.

        Returns:
            The array that is kept, read-only.
        """
        with self._lock:
            logits = self._kept.get(key)
            if logits is None:
                self._misses += 1
                return None
            self._hits += 1
            self._kept.move_to_end(key)
            return logits

    def put(self, key: ResultKey, logits: Logits) -> None:
        """Keep a copy of logits, in place of those that the key had.

        Others are forgotten to make room. What is larger than the whole cache is not kept, and none forgotten for it.
        """
        size_bytes = entry_bytes(key, logits)
        if size_bytes > self._max_bytes:
            return
        copy = logits.copy()
        copy.flags.writeable = False
        with self._lock:
            former = self._kept.pop(key, None)
            if former is not None:
                self._size_bytes -= entry_bytes(key, former)
            while self._size_bytes + size_bytes > self._max_bytes:
                self._size_bytes -= entry_bytes(*self._kept.popitem(last=False))
            self._kept[key] = copy
            self._size_bytes += size_bytes


def entry_bytes(key: ResultKey, logits: Logits) -> int:
    """Bytes that an entry takes: its key, its logits, and `ENTRY_OVERHEAD_BYTES` for the Python objects around them."""
    n_characters = len(key.branch) + len(key.trunk) + len(key.precision)
    return n_characters + len(key.row) + logits.nbytes + ENTRY_OVERHEAD_BYTES
