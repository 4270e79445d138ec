"""What trunk and branches of a bundle are served in once its precision gate was passed, and the ranges of int8.

An int8 product multiplies whole numbers: weights are scaled by output channel, which follows from the weights, and the
layer's input by one range for the whole tensor, which was found on texts of the tasks and is stored (decision 0017).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trunkline.bundle.files import check_digest, read_inside, sha256_hex, swap_file
from trunkline.bundle.manifest import Manifest, ServedPrecision, TaskEntry, TrunkEntry
from trunkline.core.errors import BundleError, CheckpointError
from trunkline.model.tensors import read_tensors, write_tensors

_DIVISORS = ".divisors"
_DENSE = re.compile(r"layers\.[0-9]+\.(attention\.(qkv|output)|ffn\.(up|down))")


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """How the input of a dense layer becomes whole numbers.

    Attributes:
        low: The least number that is told apart from others, after division; what lies below becomes it.
        high: The greatest.
        divisors: (n_in,) float32: each channel is divided by its own, and the weights are multiplied by it, so that
            no channel takes the range for itself (SmoothQuant, Xiao et al. 2023). None divides nothing.
    """

    low: float
    high: float
    divisors: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a part of a bundle was accepted in.

    Attributes:
        precision: None where no gate was passed.
        ranges: For int8: canonical name of a dense layer (queries, keys and values are one: ``attention.qkv``) to the
            range of its input. A dense layer that is not named is not int8.
    """

    precision: ServedPrecision | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)


UNGATED = Served()


def encode_ranges(ranges: Mapping[str, Range]) -> bytes:
    """A safetensors file: for each dense layer low and high, and its divisors; equal ranges give equal bytes."""
    bounds = {name: np.array([each.low, each.high], np.float32) for name, each in ranges.items()}
    divisors = {name + _DIVISORS: each.divisors for name, each in ranges.items() if each.divisors is not None}
    return write_tensors(bounds | divisors)


def decode_ranges(content: bytes, subject: str) -> dict[str, Range]:
    """Decode what `encode_ranges` wrote.

    Raises:
        BundleError: It is something else: a name of no dense layer, or numbers that are no range.
    """
    try:
        tensors = read_tensors(content, subject)
    except CheckpointError as error:
        raise BundleError(str(error)) from error
    ranges: dict[str, Range] = {}
    for name in sorted(name for name in tensors if not name.endswith(_DIVISORS)):
        bounds, divisors = np.asarray(tensors[name], np.float64), tensors.pop(name + _DIVISORS, None)
        is_range = bounds.shape == (2,) and np.isfinite(bounds).all() and bounds[0] < bounds[1]
        fits = divisors is None or (divisors.ndim == 1 and np.isfinite(divisors).all() and (divisors > 0).all())
        if not (_DENSE.fullmatch(name) and is_range and fits):
            raise _no_range(subject, name)
        ranges[name] = Range(float(bounds[0]), float(bounds[1]), divisors)
    for name in tensors.keys() - ranges.keys():
        raise _no_range(subject, name)
    return ranges


def read_served(root: Path, folder: str, entry: TrunkEntry | TaskEntry) -> Served:
    """What the manifest says a trunk or branch was accepted in, its ranges read and verified.

    Args:
        root: The bundle.
        folder: ``trunk`` or ``branches/<task>``.
        entry: What the manifest says.

    Raises:
        DigestMismatchError: The file's bytes changed.
        BundleError: It is missing or cannot be decoded.
    """
    if entry.gate is None:
        return UNGATED
    if entry.ranges is None:
        return Served(entry.precision)
    name = ranges_name(folder, entry.ranges)
    content = read_inside(root, name)
    check_digest(content, entry.ranges, f"{root / name}")
    return Served(entry.precision, decode_ranges(content, f"{root / name}"))


def write_ranges(root: Path, folder: str, ranges: Mapping[str, Range]) -> str:
    """Write ranges into a bundle, whole or not at all; call it inside `trunkline.bundle.merge.locked`.

    Args:
        root: The bundle.
        folder: ``trunk`` or ``branches/<task>``.
        ranges: What `decode_ranges` is to give back.

    Returns:
        SHA-256 of the file.
    """
    content = encode_ranges(ranges)
    digest = sha256_hex(content)
    swap_file(root / ranges_name(folder, digest), content)
    return digest


def ranges_name(folder: str, digest: str) -> str:
    """Where ranges lie in a bundle: ``folder`` is ``trunk`` or ``branches/<task>``, ``digest`` the file's SHA-256."""
    return f"{folder}/ranges-{digest[:12]}.safetensors"


def form_of(manifest: Manifest, task: str) -> str:
    """What a task is accepted in, trunk and branch, with digests of ranges; nothing where the trunk has no gate."""
    return f"{form_of_trunk(manifest)}/{_form(manifest.tasks[task])}" if manifest.trunk.gate is not None else ""


def form_of_trunk(manifest: Manifest) -> str:
    """As `form_of`, of the trunk alone."""
    return _form(manifest.trunk)


def _form(entry: TrunkEntry | TaskEntry) -> str:
    if entry.gate is None:
        return ""
    return entry.precision if entry.ranges is None else f"{entry.precision} {entry.ranges[:16]}"


def _no_range(subject: str, name: str) -> BundleError:
    return BundleError(
        f"{subject}: {name!r} is no range; each is named as a dense layer and has two finite bounds, the lower first, "
        "and divisors above 0 or none; quantize the bundle again"
    )
