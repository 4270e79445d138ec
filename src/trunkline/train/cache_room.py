"""How much room cached activations take: what there is, what may go, and what still fits. No torch."""

import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import platformdirs
from filelock import FileLock, Timeout

from trunkline.bundle.files import swap_file
from trunkline.core.errors import BundleError, SpecError, TrainingError
from trunkline.core.specs import Spec

RECORD = np.dtype([("key", "V16"), ("start", "<i8"), ("n_tokens", "<i4"), ("checksum", "<u4")])
ABOUT_FILE = "about.json"
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)B\s*")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SHARE_OF_FREE = 0.5
"""Without a limit of its own, the cache may fill half of what its disk has left."""


class AboutStore(Spec, frozen=True, kw_only=True):
    """What a store says of itself, for people; its folder's name is what addresses it.

    Attributes:
        backbone: As the user named it.
        exit_layer: After how many trunk layers the states are.
        width: Of a state.
        dtype: What is stored.
    """

    backbone: str
    exit_layer: int
    width: int
    dtype: str


class StoreFacts(Spec, frozen=True, kw_only=True):
    """One store of the cache.

    Attributes:
        name: Of its folder.
        backbone: As the user named it; empty where the store does not say.
        exit_layer: After how many trunk layers the states are; None where the store does not say.
        dtype: What is stored.
        n_rows: Rows that are kept.
        size_bytes: Of its files.
        last_used_days: Since rows of it were last asked for.
    """

    name: str
    backbone: str
    exit_layer: int | None
    dtype: str
    n_rows: int
    size_bytes: int
    last_used_days: float


def default_cache_root() -> Path:
    """``$TRUNKLINE_CACHE/activations``, or the platform's cache folder (``~/.cache/trunkline/activations``)."""
    root = os.environ.get("TRUNKLINE_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("trunkline")) / "activations"


def parse_size(text: str) -> int:
    """Bytes of a size such as ``20GB`` or ``500 MB`` (decimal units).

    Raises:
        SpecError: It is no size.
    """
    found = SIZE.fullmatch(text)
    if found is None:
        raise SpecError(f"size {text!r}: is not a size; give a number and one of B, kB, MB, GB, TB, for example 20GB")
    return int(float(found[1]) * UNITS[found[2]])


def note_use(folder: Path, about: AboutStore) -> None:
    """Write what a store is, once, and that it is used now.

    Raises:
        TrainingError: The folder cannot be written.
    """
    path = folder / ABOUT_FILE
    try:
        if path.exists():
            os.utime(path)
            return
        folder.mkdir(parents=True, exist_ok=True)
        swap_file(path, msgspec.json.encode(about))
    except (OSError, BundleError) as error:
        raise TrainingError(
            f"activation cache {folder}: cannot be written ({error}); free space, or set TRUNKLINE_CACHE to another "
            "folder"
        ) from error


def list_stores(root: Path, *, now: float | None = None) -> list[StoreFacts]:
    """All stores below a root, the one used longest ago first.

    Args:
        root: Folder of the cache; need not exist.
        now: Seconds since the epoch; None takes the clock's.
    """
    now = time.time() if now is None else now
    stores = [_facts(folder, now) for folder in _folders(root)]
    return sorted(stores, key=lambda facts: -facts.last_used_days)


def used_bytes(root: Path) -> int:
    """Bytes of all stores below a root."""
    return sum(_size(folder) for folder in _folders(root))


def room_bytes(root: Path, *, limit_bytes: int | None) -> int:
    """How many bytes may still be written.

    Args:
        root: Folder of the cache.
        limit_bytes: Of all stores together; None allows half of what the disk has left.
    """
    if limit_bytes is not None:
        return max(0, limit_bytes - used_bytes(root))
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    return int(shutil.disk_usage(there).free * SHARE_OF_FREE)


def superfluous(
    stores: Iterable[StoreFacts], *, older_than_days: float, max_bytes: int | None = None
) -> list[StoreFacts]:
    """Which stores should go.

    Args:
        stores: From `list_stores`, the longest unused first.
        older_than_days: Those that were not used for so long.
        max_bytes: Then the longest unused, until the rest takes at most so much; None keeps them.
    """
    gone: list[StoreFacts] = []
    kept: list[StoreFacts] = []
    for facts in stores:
        (gone if facts.last_used_days >= older_than_days else kept).append(facts)
    size = sum(facts.size_bytes for facts in kept)
    for facts in kept:
        if max_bytes is None or size <= max_bytes:
            break
        gone.append(facts)
        size -= facts.size_bytes
    return gone


def prune(root: Path, stores: Iterable[StoreFacts]) -> list[StoreFacts]:
    """Remove stores; one that a run is writing stays.

    Args:
        root: Folder of the cache.
        stores: From `list_stores`.

    Returns:
        Those that were removed.

    Raises:
        TrainingError: A folder cannot be removed.
    """
    removed = []
    for facts in stores:
        folder = root / facts.name
        try:
            with FileLock(folder / "rows.idx.lock", timeout=0):
                # Records first: whatever stops this leaves a store without rows, and never records without states.
                for name in ("rows.idx", "states.bin", ABOUT_FILE):
                    (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except Timeout:
            continue
        except OSError as error:
            raise TrainingError(f"activation cache {folder}: cannot be removed ({error}); check permissions") from error
        removed.append(facts)
    return removed


def _folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/rows.idx"))


def _facts(folder: Path, now: float) -> StoreFacts:
    about, used_at = None, (folder / "rows.idx").stat().st_mtime
    try:
        used_at = max(used_at, (folder / ABOUT_FILE).stat().st_mtime)
        about = msgspec.json.decode((folder / ABOUT_FILE).read_bytes(), type=AboutStore)
    except (OSError, msgspec.MsgspecError):
        pass  # Written by an older Trunkline, or damaged: it is for people alone.
    return StoreFacts(
        name=folder.name,
        backbone=about.backbone if about else "",
        exit_layer=about.exit_layer if about else None,
        dtype=folder.name.rpartition("-")[2],
        n_rows=(folder / "rows.idx").stat().st_size // RECORD.itemsize,
        size_bytes=_size(folder),
        last_used_days=max(0.0, (now - used_at) / 86400),
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
