"""The manifest: which trunk and which branches a bundle holds, and the digest of every file.

``manifest.json`` is the only file of a bundle that is ever replaced. It carries a digest of itself, so that a changed
label or metric is noticed as surely as a changed weight.
"""

import re
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from trunkline.bundle.files import files_digest, sha256_hex
from trunkline.core.errors import BundleError, DigestMismatchError, SchemaVersionError, SpecError
from trunkline.core.specs import (
    LONGEST,
    SHORTEST,
    TASK_NAME,
    InputForm,
    Kind,
    Metric,
    Pooling,
    Provenance,
    Spec,
    convert_spec,
)

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
BRANCH_FILES = ("README.md", "branch.json", "branch.safetensors", "golden.json")
TRUNK_FILES = ("config.json", "model.safetensors", "tokenizer.json")

LAYERS_ALLOWED = (1, 1000)

# Names are shown in terminals: no escapes, no line breaks, nothing that reverses the direction of reading.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EXTENSION = re.compile(r"layers-([0-9]+)-([0-9]+)-[0-9a-f]{12}\.safetensors")
_CUT_STEM = re.compile(r"model-[0-9a-f]{12}\.safetensors")

FileDigests: TypeAlias = dict[str, str]
"""File name (no folders) to the SHA-256 (hex) of its content."""
ServedPrecision: TypeAlias = Literal["fp32", "bf16", "int8"]


class TrunkGate(Spec, frozen=True, kw_only=True):
    """When and how the trunk was accepted in its precision (`trunkline quantize`).

    Attributes:
        made_at: UTC, ISO 8601.
        chain: The chain value at the trunk's depth then.
        max_loss: Most points that a task was allowed to lose.
        n_texts: Texts that int8 ranges were found on; 0 for other precisions.
    """

    made_at: str
    chain: str
    max_loss: float
    n_texts: int


class TaskGate(Spec, frozen=True, kw_only=True):
    """With which figures a branch was accepted on the trunk as it is served.

    Attributes:
        made_at: UTC, ISO 8601.
        max_loss: Most points that the task was allowed to lose.
        n_rows: Dev rows that were judged.
        points_fp32: With trunk and branch in fp32.
        points_trunk: With the trunk as it is served, and the branch in fp32.
        points: With both as they are served.
    """

    made_at: str
    max_loss: float
    n_rows: int
    points_fp32: float
    points_trunk: float
    points: float


class TrunkEntry(Spec, frozen=True, kw_only=True):
    """The trunk of a bundle.

    Attributes:
        depth: How many layers are stored.
        precision: What it is served in; weights are always stored in fp32.
        ranges: For int8: SHA-256 of the file with the ranges of its layers, ``trunk/ranges-<digest>.safetensors``.
        gate: How it was accepted in this precision; None where that was never tried or refused, and machines choose.
        chain: depth + 1 chain values; ``chain[k]`` names the trunk cut after k layers (design.md, section 4).
        files: Files in ``trunk/``; layers that were added later lie in ``layers-A-B-<digest>.safetensors``, and a cut
            trunk has ``model-<digest>.safetensors`` in the place of ``model.safetensors``.
    """

    depth: int
    precision: ServedPrecision = "fp32"
    ranges: str | None = None
    gate: TrunkGate | None = None
    chain: tuple[str, ...]
    files: FileDigests


class TaskEntry(Spec, frozen=True, kw_only=True):
    """One task of a bundle; the fields repeat ``branch.json`` so that a manifest can be read alone.

    Attributes:
        branch: Digest of the branch, which is also its folder's name.
        exit_layer: How many trunk layers run before the branch.
        own_layers: How many layers the branch has itself.
        max_length: Longest row in tokens.
        provenance: Where the branch comes from, and what it reached.
        files: Files in ``branches/<task>/<branch>/``.
        precision: What the branch is served in, where its gate was passed.
        ranges: For int8: SHA-256 of the file with the ranges of its layers, ``branches/<task>/ranges-<digest>.…``.
        gate: How it was accepted; None until `trunkline quantize` judged this branch on this trunk.
    """

    branch: str
    exit_layer: int
    own_layers: int
    kind: Kind
    input: InputForm
    labels: tuple[str, ...]
    label_schema_version: int
    metric: Metric
    max_length: int
    pooling: Pooling
    provenance: Provenance
    files: FileDigests
    precision: ServedPrecision = "fp32"
    ranges: str | None = None
    gate: TaskGate | None = None

    @property
    def dev_metric(self) -> float | None:
        """Points on the dev rows, or None where they were not measured."""
        return self.provenance.dev_metric


class Manifest(Spec, frozen=True, kw_only=True):
    """What a bundle holds (``manifest.json``).

    Attributes:
        backbone: Name of the backbone, a folder as its absolute path; for people.
        n_layers: Layers of the whole backbone; the trunk may hold fewer.
        trunk: The shared trunk.
        tasks: Task name to its branch.
    """

    schema_version: int = SCHEMA_VERSION
    trunkline_version: str
    backbone: str
    n_layers: int
    trunk: TrunkEntry
    tasks: dict[str, TaskEntry]


def extension_layers(name: str) -> range | None:
    """Which layers a file of a trunk holds by its name, where they were added later; else None."""
    found = _EXTENSION.fullmatch(name)
    return range(int(found[1]), int(found[2]) + 1) if found else None


def deepest_exit(manifest: Manifest) -> int:
    """How many trunk layers run when every task is asked."""
    return max((entry.exit_layer for entry in manifest.tasks.values()), default=0)


def layer_cost(manifest: Manifest) -> int:
    """Layers that one row runs through when every task is asked: deepest exit + own layers (paper section 4.1)."""
    return deepest_exit(manifest) + sum(entry.own_layers for entry in manifest.tasks.values())


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: the manifest and a digest of it."""
    value = msgspec.to_builtins(manifest)
    return _text({**value, "digest": _own_digest(value)})


def decode_manifest(content: bytes, subject: str) -> Manifest:
    """Check and decode ``manifest.json``.

    Args:
        content: Its bytes.
        subject: What messages are about, for example the path.

    Raises:
        SchemaVersionError: A newer Trunkline wrote it; nothing else of it was looked at.
        DigestMismatchError: The bytes are not those that were written.
        BundleError: It is no manifest, or says something that cannot be (a path for a name, a branch that reads
            deeper than the trunk goes).
    """
    value = decode_versioned(content, SCHEMA_VERSION, subject)
    digest = value.pop("digest", None)
    if digest != _own_digest(value) or _text({**value, "digest": digest}) != content:
        raise DigestMismatchError(
            f"{subject}: its digest is not that of its content; it was damaged or edited; restore it from a copy "
            "(attach, replace and detach are the ways to change a bundle)"
        )
    try:
        manifest = convert_spec(value, Manifest, subject)
    except SpecError as error:
        raise BundleError(str(error)) from error
    check_manifest(manifest, subject)
    return manifest


def decode_versioned(content: bytes, known: int, subject: str) -> dict[str, Any]:
    """Decode a JSON object after looking at its ``schema_version`` alone.

    Args:
        content: The bytes.
        known: The newest version that this Trunkline reads.
        subject: What messages are about.

    Raises:
        SchemaVersionError: The version is newer.
        DigestMismatchError: The bytes are not JSON: files are written whole, so these were damaged.
        BundleError: There is no object with a version.
    """
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DigestMismatchError(f"{subject}: is damaged, not JSON ({error}); restore it from a copy") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{subject}: has no schema_version; a whole number from 1 is needed; restore it from a copy")
    if version > known:
        raise SchemaVersionError(
            f"{subject}: has schema version {version}; this Trunkline reads up to {known}; upgrade trunkline"
        )
    return dict(value)


def check_manifest(manifest: Manifest, subject: str) -> None:
    """Refuse what the types alone do not.

    Raises:
        BundleError: A name or digest has a form that is not allowed, or depths do not fit together.
    """
    trunk = manifest.trunk
    lowest, highest = LAYERS_ALLOWED
    _require(lowest <= manifest.n_layers <= highest, subject, f"{manifest.n_layers} layers", f"{lowest}..{highest}")
    printable = not CONTROL.search(manifest.backbone)
    _require(printable, subject, f"backbone name {manifest.backbone!r}", "a name without control characters")
    names = [_CUT_STEM.sub("model.safetensors", name) for name in trunk.files if extension_layers(name) is None]
    _require(sorted(names) == sorted(TRUNK_FILES), subject, f"trunk files {sorted(names)}", f"{sorted(TRUNK_FILES)}")
    _require_digests((*trunk.files.values(), *trunk.chain), subject)
    _require_served(trunk, f"{subject}: trunk")
    _require(0 <= trunk.depth <= manifest.n_layers, subject, f"trunk depth {trunk.depth}", f"0..{manifest.n_layers}")
    _require(len(trunk.chain) == trunk.depth + 1, subject, f"{len(trunk.chain)} chain values", f"{trunk.depth + 1}")
    for task, entry in manifest.tasks.items():
        about = f"{subject}: task {task!r}"
        _require(TASK_NAME.fullmatch(task), subject, f"task name {task!r}", TASK_NAME.pattern)
        _require(sorted(entry.files) == sorted(BRANCH_FILES), about, f"files {sorted(entry.files)}", f"{BRANCH_FILES}")
        _require_digests((entry.branch, *entry.files.values()), about)
        _require(entry.branch == files_digest(entry.files), about, f"branch {entry.branch}", files_digest(entry.files))
        _require_served(entry, about)
        _require(entry.gate is None or trunk.gate is not None, about, "a gate", "none where the trunk has none")
        fits = SHORTEST <= entry.max_length <= LONGEST
        _require(fits, about, f"max_length {entry.max_length}", f"{SHORTEST}..{LONGEST}")
        exits, layers = (0, trunk.depth), (0, manifest.n_layers - entry.exit_layer)
        _require(exits[0] <= entry.exit_layer <= exits[1], about, f"exit layer {entry.exit_layer}", f"{exits}")
        _require(layers[0] <= entry.own_layers <= layers[1], about, f"{entry.own_layers} own layers", f"{layers}")


def _require_served(entry: TrunkEntry | TaskEntry, subject: str) -> None:
    known = entry.precision in get_args(ServedPrecision) and (entry.precision == "fp32" or entry.gate is not None)
    _require(known, subject, f"precision {entry.precision!r}", "'fp32', or one that a gate accepted")
    has_ranges = (entry.precision == "int8") == (entry.ranges is not None)
    _require(has_ranges, subject, f"ranges {entry.ranges}", "a digest with int8, none without")
    _require_digests(() if entry.ranges is None else (entry.ranges,), subject)


def _require_digests(digests: tuple[str, ...], subject: str) -> None:
    for digest in digests:
        _require(_DIGEST.fullmatch(digest), subject, f"digest {digest!r}", "64 hex digits")


def _require(condition: object, subject: str, found: str, allowed: str) -> None:
    if not condition:
        raise BundleError(f"{subject}: {found} found; allowed: {allowed}; restore the bundle from a copy")


def _own_digest(value: dict[str, Any]) -> str:
    return sha256_hex(msgspec.json.encode(value, order="deterministic"))


def _text(value: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
