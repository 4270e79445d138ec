"""Branches and bundles on disk (design.md, section 4): the bytes that are verified are the bytes that are decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from trunkline.bundle.card import model_card
from trunkline.bundle.files import check_digest, files_digest, read_inside, sha256_hex, staged_folder, write_file
from trunkline.bundle.golden import LARGEST_TOLERANCE, Golden
from trunkline.bundle.manifest import (
    BRANCH_FILES,
    MANIFEST_NAME,
    Manifest,
    TaskEntry,
    decode_manifest,
    decode_versioned,
)
from trunkline.bundle.served import UNGATED, Served, ranges_name, read_served
from trunkline.core.errors import (
    BundleError,
    CheckpointError,
    DigestMismatchError,
    MissingBranchError,
    NonFiniteError,
    SpecError,
    TrunkMismatchError,
    nearest_hint,
)
from trunkline.core.specs import BranchSpec, SpecT, convert_spec, decode_spec, encode_spec
from trunkline.data.tokenize import Tokenizer
from trunkline.model.chain import trunk_chain
from trunkline.model.config import EncoderConfig
from trunkline.model.tensors import read_tensors, refuse_non_finite, write_tensors

BRANCH_SCHEMA_VERSION = 1
_GOLDEN = "golden.json"


@dataclass(frozen=True, slots=True, eq=False)
class StoredBranch:
    """A branch as read: every byte of it was verified.

    Attributes:
        spec: What it is.
        tensors: Canonical name to float32 values: its own layers and its head.
        golden: What it must answer.
        digest: SHA-256 over its files, sorted by name.
        files: File name to SHA-256.
        contents: File name to its bytes, which the tensors are views of.
        served: What its bundle's gate accepted it in.
    """

    spec: BranchSpec
    tensors: Mapping[str, np.ndarray]
    golden: Golden
    digest: str
    files: dict[str, str]
    contents: dict[str, bytes]
    served: Served = UNGATED


@dataclass(frozen=True, slots=True, eq=False)
class StoredTrunk:
    """A trunk as read: its chain was computed again from these tensors.

    Attributes:
        config: Facts of the backbone.
        tensors: Canonical name to float32 values: embeddings, shared tensors, layers 0..depth-1.
        tokenizer: The tokenizer.
        chain: depth + 1 chain values.
        served: What its bundle's gate accepted it in.
    """

    config: EncoderConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    chain: tuple[str, ...]
    served: Served = UNGATED


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle at the moment its manifest was read; what it names never changes on disk.

    Attributes:
        path: Its folder.
        manifest: What it held then.
        held: Branch digest to a branch that was read and verified just before, and is not read again.
    """

    path: Path
    manifest: Manifest
    held: Mapping[str, StoredBranch] = field(default_factory=dict, compare=False, repr=False)

    def config(self) -> EncoderConfig:
        """Read and verify the facts of the backbone alone; errors as of `trunk`."""
        content = _trunk_file(self, "config.json")
        config = _decode(content, EncoderConfig, f"bundle {str(self.path)!r}: trunk/config.json")
        if config.n_layers != self.manifest.n_layers:
            raise BundleError(
                f"bundle {str(self.path)!r}: trunk/config.json says {config.n_layers} layers, the manifest "
                f"{self.manifest.n_layers}; they must agree; restore the bundle from a copy"
            )
        return config

    def trunk(self) -> StoredTrunk:
        """Read and verify the trunk.

        Raises:
            BundleError: A file is missing or cannot be decoded.
            DigestMismatchError: A file's bytes changed.
            NonFiniteError: A weight is NaN or infinite.
            TrunkMismatchError: The tensors are not those that the manifest's chain names.
        """
        return _read_trunk(self)

    def branch(self, task: str) -> StoredBranch:
        """Read and verify one task's branch.

        Raises:
            MissingBranchError: The manifest has no such task, or a file is missing.
            DigestMismatchError: A file's bytes changed.
            SchemaVersionError: A newer Trunkline wrote the branch.
            NonFiniteError: A weight is NaN or infinite.
            TrunkMismatchError: It was trained on another trunk.
            BundleError: A file cannot be decoded, or manifest and branch disagree.
        """
        entry = self._entry(task)
        name = branch_folder(task, entry.branch)
        branch = self.held.get(entry.branch) or read_branch_inside(self.path, name, expected=entry.files)
        said = msgspec.structs.replace(entry, precision="fp32", ranges=None, gate=None)
        if task_entry(branch) != said or branch.spec.task != task:
            raise BundleError(
                f"bundle {str(self.path)!r}: task {task!r}: the manifest and {name}/branch.json say different things; "
                "they must agree; restore the bundle from a copy"
            )
        check_trunk(branch.spec, self.manifest.trunk.chain, f"bundle {str(self.path)!r}")
        return replace(branch, served=read_served(self.path, f"branches/{task}", entry))

    def golden(self, task: str) -> Golden:
        """Read and verify the golden inputs of one task's branch alone; errors as of `branch`."""
        entry = self._entry(task)
        if entry.branch in self.held:
            return self.held[entry.branch].golden
        name = f"{branch_folder(task, entry.branch)}/{_GOLDEN}"
        content = read_inside(self.path, name, missing=MissingBranchError)
        check_digest(content, entry.files[_GOLDEN], f"{self.path / name}")
        return _decode(content, Golden, f"{self.path / name}")

    def _entry(self, task: str) -> TaskEntry:
        entry = self.manifest.tasks.get(task)
        if entry is None:
            raise MissingBranchError(
                f"bundle {str(self.path)!r}: has no task {task!r}; {nearest_hint(task, self.manifest.tasks)}"
            )
        return entry


def branch_folder(task: str, digest: str) -> str:
    """Where a branch lies in a bundle."""
    return f"branches/{task}/{digest}"


def task_entry(branch: StoredBranch) -> TaskEntry:
    """What a manifest says about a branch."""
    spec = branch.spec
    return TaskEntry(
        branch=branch.digest,
        exit_layer=spec.exit_layer,
        own_layers=spec.own_layers,
        kind=spec.kind,
        input=spec.input,
        labels=spec.labels,
        label_schema_version=spec.label_schema_version,
        metric=spec.metric,
        max_length=spec.max_length,
        pooling=spec.pooling,
        provenance=spec.provenance,
        files=dict(branch.files),
    )


def bundle_files(manifest: Manifest) -> dict[str, str]:
    """Every immutable file that a manifest names, relative to the bundle, to its SHA-256."""
    files = {f"trunk/{name}": digest for name, digest in manifest.trunk.files.items()}
    if manifest.trunk.ranges is not None:
        files[ranges_name("trunk", manifest.trunk.ranges)] = manifest.trunk.ranges
    for task, entry in manifest.tasks.items():
        files |= branch_files(task, entry)
    return files


def branch_files(task: str, entry: TaskEntry) -> dict[str, str]:
    """As `bundle_files`, of one task's branch."""
    files = {f"{branch_folder(task, entry.branch)}/{name}": digest for name, digest in entry.files.items()}
    if entry.ranges is not None:
        files[ranges_name(f"branches/{task}", entry.ranges)] = entry.ranges
    return files


def check_trunk(spec: BranchSpec, chain: tuple[str, ...], subject: str) -> None:
    """Refuse a branch that was trained on another trunk.

    Raises:
        TrunkMismatchError: The chain has another value at the branch's exit, or ends above it.
    """
    if not 0 <= spec.exit_layer < len(chain):
        raise TrunkMismatchError(
            f"task {spec.task!r}: reads after layer {spec.exit_layer} of trunk {spec.trunk_digest}; {subject} ends "
            f"after layer {len(chain) - 1} with {chain[-1]}; give the backbone that the branch was trained on"
        )
    if spec.trunk_digest != chain[spec.exit_layer]:
        raise TrunkMismatchError(
            f"task {spec.task!r}: was trained on trunk {spec.trunk_digest} (layer {spec.exit_layer}); {subject} has "
            f"{chain[spec.exit_layer]} there; train the branch on that backbone"
        )


def write_branch(folder: Path, spec: BranchSpec, tensors: Mapping[str, np.ndarray], golden: Golden) -> str:
    """Write a branch folder, whole or not at all.

    Args:
        folder: Must not exist or be empty; branches are never overwritten.
        spec: What the branch is.
        tensors: Canonical name to values: its own layers and its head.
        golden: Golden inputs and this branch's logits for them.

    Returns:
        The branch's digest.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
        BundleError: The folder is not empty, cannot be written, or ``golden`` does not fit ``spec``.
    """
    subject = f"branch of task {spec.task!r}"
    refuse_non_finite(tensors, subject)
    _check_golden(golden, spec, subject)
    contents = {
        "README.md": model_card(spec, n_parameters=sum(tensor.size for tensor in tensors.values())).encode(),
        "branch.json": encode_spec(spec),
        "branch.safetensors": write_tensors(tensors),
        _GOLDEN: encode_spec(golden),
    }
    with staged_folder(folder) as staging:
        for name, content in contents.items():
            write_file(staging / name, content)
    return files_digest({name: sha256_hex(content) for name, content in contents.items()})


def read_branch(folder: Path) -> StoredBranch:
    """Read and verify a branch folder.

    Args:
        folder: Holds the four files of a branch, which are taken as they are; compare the digest where it is known.

    Raises:
        MissingBranchError: The folder or one of its files is missing.
        DigestMismatchError: A file cannot be decoded.
        SchemaVersionError: A newer Trunkline wrote it.
        NonFiniteError: A weight is NaN or infinite.
        BundleError: A file cannot be decoded, or a link leads out of the folder.
    """
    return read_branch_inside(folder, ".", expected={})


def read_branch_inside(root: Path, name: str, *, expected: Mapping[str, str]) -> StoredBranch:
    """Read and verify the branch in ``root / name``; no link may lead out of ``root``.

    Errors as of `read_branch`, and `DigestMismatchError` where a file's SHA-256 is another than the ``expected`` one.
    """
    contents = {file: read_inside(root, f"{name}/{file}", missing=MissingBranchError) for file in BRANCH_FILES}
    files = {
        file: check_digest(content, expected.get(file), f"{root / name / file}") for file, content in contents.items()
    }
    subject = f"branch {str(root / name)!r}"
    spec = _branch_spec(contents["branch.json"], subject)
    tensors = _decode_tensors(contents["branch.safetensors"], subject)
    golden = _decode(contents[_GOLDEN], Golden, f"{subject}: {_GOLDEN}")
    _check_golden(golden, spec, subject)
    return StoredBranch(
        spec=spec, tensors=tensors, golden=golden, digest=files_digest(files), files=files, contents=contents
    )


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's manifest; trunk and branches are read and verified when they are asked for.

    Raises:
        BundleError: There is no bundle, or its manifest is not allowed.
        SchemaVersionError: A newer Trunkline wrote it.
        DigestMismatchError: The manifest was damaged or edited.
    """
    subject = f"{path / MANIFEST_NAME}"
    return Bundle(path=path, manifest=decode_manifest(read_inside(path, MANIFEST_NAME), subject))


def _branch_spec(content: bytes, subject: str) -> BranchSpec:
    value = decode_versioned(content, BRANCH_SCHEMA_VERSION, f"{subject}: branch.json")
    try:
        return convert_spec(value, BranchSpec, f"{subject}: branch.json")
    except SpecError as error:
        raise BundleError(str(error)) from error


def _decode(content: bytes, spec_type: type[SpecT], subject: str) -> SpecT:
    try:
        return decode_spec(content, spec_type, subject)
    except SpecError as error:
        raise BundleError(str(error)) from error


def _decode_tensors(content: bytes, subject: str) -> dict[str, np.ndarray]:
    try:
        tensors = read_tensors(content, subject)
    except CheckpointError as error:
        raise DigestMismatchError(f"{error} (the file was damaged: restore it from a copy)") from error
    refuse_non_finite(tensors, subject)
    return tensors


def _check_golden(golden: Golden, spec: BranchSpec, subject: str) -> None:
    widths = {len(line) for lines in golden.logits for line in lines}
    if len(golden.inputs) != len(golden.logits) or not golden.inputs or widths != {spec.n_outputs}:
        raise BundleError(
            f"{subject}: golden.json has {len(golden.inputs)} inputs, {len(golden.logits)} answers of widths "
            f"{sorted(widths)}; one answer of width {spec.n_outputs} for each input is needed; write the branch anew"
        )
    for precision, tolerance in golden.tolerance.items():
        if not 0 <= tolerance <= LARGEST_TOLERANCE.get(precision, -1):
            allowed = ", ".join(f"{name} up to {most:g}" for name, most in LARGEST_TOLERANCE.items())
            raise BundleError(
                f"{subject}: golden.json has tolerance {tolerance:g} for {precision!r}; allowed are {allowed}; "
                "write the branch anew"
            )
    if not all(np.isfinite(line).all() for lines in golden.logits for line in lines):
        raise NonFiniteError(f"{subject}: golden.json has an infinite logit; only finite ones are allowed; train anew")


def _trunk_file(bundle: Bundle, name: str) -> bytes:
    content = read_inside(bundle.path, f"trunk/{name}")
    check_digest(content, bundle.manifest.trunk.files[name], f"{bundle.path / 'trunk' / name}")
    return content


def _read_trunk(bundle: Bundle) -> StoredTrunk:
    entry = bundle.manifest.trunk
    subject = f"bundle {str(bundle.path)!r}: trunk"
    config = bundle.config()
    tensors: dict[str, np.ndarray] = {}
    for name in entry.files:
        if name.endswith(".safetensors"):
            tensors.update(_decode_tensors(_trunk_file(bundle, name), f"{subject}: {name}"))
    try:
        tokenizer_json = _trunk_file(bundle, "tokenizer.json").decode()
        tokenizer = Tokenizer.from_json(tokenizer_json, n_types=config.n_types, subject=subject)
        chain = trunk_chain(config, tensors, tokenizer_json, depth=entry.depth)
    except (CheckpointError, KeyError, UnicodeDecodeError) as error:
        raise BundleError(f"{subject}: cannot be used ({error}); restore the bundle from a copy") from error
    if chain != entry.chain:
        raise TrunkMismatchError(
            f"{subject}: its tensors give chain value {chain[-1]} at layer {entry.depth}; the manifest names "
            f"{entry.chain[-1]}; these are the tensors of another trunk: restore the bundle from a copy"
        )
    served = read_served(bundle.path, "trunk", entry)
    return StoredTrunk(config=config, tensors=tensors, tokenizer=tokenizer, chain=chain, served=served)
