"""A trunk cut to the deepest exit in use: the values of its chain that are left are the same (design.md, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from trunkline.bundle.files import require_inside, sha256_hex, swap_file
from trunkline.bundle.manifest import MANIFEST_NAME, TrunkEntry, check_manifest, deepest_exit, extension_layers
from trunkline.bundle.merge import locked, swap_manifest, trunk_tensors
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.model.tensors import write_tensors


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """The entry of a shorter trunk, and the files that must be written before a manifest may name it."""

    entry: TrunkEntry
    written: Mapping[str, bytes]


def cut(path: Path) -> Bundle:
    """Cut a bundle's trunk to the deepest exit in use; branches, and the answers of all tasks, stay as they are.

    New files are written first, then the manifest is swapped; where no task reads less deep than the trunk goes
    nothing is written. The old files stay, for readers of the manifest before, and are no longer read or digested.

    Args:
        path: The bundle's folder. A task that reads deeper can be attached later, with the backbone.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: The trunk is damaged, or the bundle cannot be changed (see `trunkline.bundle.store`).
    """
    with locked(path) as current:
        depth = deepest_exit(current.manifest)
        if depth == current.manifest.trunk.depth:
            return current
        shorter = _shortened(current.manifest.trunk, current.trunk().tensors, depth)
        manifest = msgspec.structs.replace(current.manifest, trunk=shorter.entry)
        check_manifest(manifest, f"{path / MANIFEST_NAME}")
        require_inside(path, "trunk")
        for name, content in shorter.written.items():
            swap_file(path / "trunk" / name, content)
        swap_manifest(path, manifest)
    return open_bundle(path)


def _shortened(entry: TrunkEntry, tensors: Mapping[str, np.ndarray], depth: int) -> _Cut:
    starts = [layers.start for name in entry.files if (layers := extension_layers(name)) is not None]
    stem = range(min(starts, default=entry.depth))
    files: dict[str, str] = {}
    written: dict[str, bytes] = {}
    for name, digest in entry.files.items():
        added = extension_layers(name)
        layers = stem if added is None else added
        if not name.endswith(".safetensors") or layers.stop <= depth:
            files[name] = digest
        elif added is None or layers.start < depth:
            content = write_tensors(trunk_tensors(tensors, range(layers.start, depth), stem=added is None))
            label = "model" if added is None else f"layers-{layers.start}-{depth - 1}"
            renamed = f"{label}-{sha256_hex(content)[:12]}.safetensors"
            files[renamed], written[renamed] = sha256_hex(content), content
    shorter = msgspec.structs.replace(entry, depth=depth, chain=entry.chain[: depth + 1], files=files)
    return _Cut(shorter, written)
