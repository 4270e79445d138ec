"""Branches put together on one trunk, and changes to a bundle: immutable files first, then one manifest is swapped.

Every change reads the manifest again under the bundle's lock, so two writers never lose each other's task. Files
that no manifest names any longer stay where they are: whoever opened the bundle before may still be reading them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import msgspec
import numpy as np

import trunkline
from trunkline.bundle.files import (
    require_inside,
    sha256_hex,
    staged_folder,
    swap_file,
    sweep,
    write_file,
)
from trunkline.bundle.manifest import (
    MANIFEST_NAME,
    Manifest,
    TrunkEntry,
    check_manifest,
    encode_manifest,
)
from trunkline.bundle.place import copy_branch, place_branch
from trunkline.bundle.store import (
    Bundle,
    StoredBranch,
    branch_folder,
    check_trunk,
    open_bundle,
    read_branch,
    task_entry,
)
from trunkline.core.errors import (
    BundleError,
    DigestMismatchError,
    MissingBranchError,
    TrunkMismatchError,
    nearest_hint,
)
from trunkline.core.specs import BranchSpec, encode_spec
from trunkline.model.backbone import Backbone
from trunkline.model.config import EncoderConfig, layers_tensor_shapes
from trunkline.model.tensors import write_tensors

LOCK_NAME = ".lock"
LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class _Extension:
    """A trunk entry, and the file that must be written before a manifest may name it."""

    entry: TrunkEntry
    name: str | None = None
    content: bytes = b""


def merge(
    branch_folders: Sequence[Path], backbone: Backbone, out: Path, *, digests: Sequence[str] | None = None
) -> Bundle:
    """Put branches of several tasks on one trunk (paper section 3.3).

    Args:
        branch_folders: Folders as written by `write_branch`, one for each task.
        backbone: The backbone that all of them were trained on; its layers up to the deepest exit are stored.
        out: Folder of the new bundle; must not exist or be empty. It appears whole or not at all.
        digests: The branches' digests where they are known, in the same order.

    Returns:
        The bundle.

    Raises:
        TrunkMismatchError: A branch was trained on another trunk.
        DigestMismatchError: A branch has another digest than ``digests`` names.
        BundleError: There are no branches, two of one task, a branch does not fit the backbone, or ``out`` cannot be
            written. Errors of `read_branch` besides.
    """
    branches = [read_branch(folder) for folder in branch_folders]
    _check_branches(branches, branch_folders, digests)
    subject = f"backbone {backbone.name!r}"
    for branch in branches:
        check_trunk(branch.spec, backbone.chain, subject)
        _check_fit(branch, backbone.config, subject)
    depth = max(branch.spec.exit_layer for branch in branches)
    with staged_folder(out) as staging:
        contents = _trunk_contents(backbone, depth)
        for name, content in contents.items():
            write_file(staging / "trunk" / name, content)
        files = {name: sha256_hex(content) for name, content in contents.items()}
        manifest = Manifest(
            trunkline_version=trunkline.__version__,
            backbone=backbone.name,
            n_layers=backbone.config.n_layers,
            trunk=TrunkEntry(depth=depth, chain=backbone.chain[: depth + 1], files=files),
            tasks={branch.spec.task: task_entry(branch) for branch in branches},
        )
        check_manifest(manifest, f"{out}")
        for branch in branches:
            copy_branch(branch, staging / branch_folder(branch.spec.task, branch.digest))
        write_file(staging / LOCK_NAME, b"")
        write_file(staging / MANIFEST_NAME, encode_manifest(manifest))
    return open_bundle(out)


def attach(bundle: Bundle, folder: Path, *, backbone: Backbone | None = None) -> Manifest:
    """Add a task to a bundle; nothing of the other tasks is touched.

    Args:
        bundle: The bundle; its manifest is read again under the lock.
        folder: The branch, as written by `write_branch`.
        backbone: Needed where the branch reads deeper than the stored trunk: the missing layers are added as a file.

    Returns:
        The manifest that is now on disk.

    Raises:
        TrunkMismatchError: The branch or the backbone belongs to another trunk, or the trunk is not deep enough.
        BundleError: The task is there already, or the branch does not fit; errors of `read_branch` besides.
    """
    branch = read_branch(folder)
    task = branch.spec.task
    with locked(bundle.path) as current:
        if task in current.manifest.tasks:
            raise BundleError(
                f"bundle {str(bundle.path)!r}: task {task!r} is there already; attach takes new tasks; use replace"
            )
        return _put(current, branch, backbone)


def replace(bundle: Bundle, folder: Path, *, backbone: Backbone | None = None, expected: str | None = None) -> Manifest:
    """Put another branch in the place of a task's present one; errors as of `attach` besides.

    Args:
        bundle: The bundle; its manifest is read again under the lock.
        folder: The branch, as written by `write_branch`.
        backbone: As for `attach`.
        expected: Digest of the branch that must still be the present one; None takes whichever is there.

    Raises:
        MissingBranchError: The bundle has no such task.
        BundleError: Another writer replaced the ``expected`` branch in the meantime; or kind, input or labels are
            others than those in place and the label schema version is not a higher one.
    """
    branch = read_branch(folder)
    with locked(bundle.path) as current:
        _require_task(current, branch.spec.task, " (attach adds a new one)")
        _require_expected(current, branch.spec.task, expected)
        return _put(current, branch, backbone)


def detach(bundle: Bundle, task: str) -> Manifest:
    """Remove a task from the manifest; its files stay, for readers of the manifest before.

    Returns:
        The manifest that is now on disk.

    Raises:
        MissingBranchError: The bundle has no such task; the message names the nearest.
    """
    with locked(bundle.path) as current:
        _require_task(current, task)
        tasks = {name: entry for name, entry in current.manifest.tasks.items() if name != task}
        return swap_manifest(current.path, msgspec.structs.replace(current.manifest, tasks=tasks))


def check_change(bundle: Bundle, branch: StoredBranch, *, chain: tuple[str, ...] | None = None) -> None:
    """Refuse a branch that `attach` or `replace` would refuse, before anything is written.

    Args:
        bundle: What it would be put into.
        branch: The branch; where the bundle has its task, it is to take that one's place.
        chain: Of the trunk with all layers that the branch needs. None for the stored trunk; of a branch that reads
            deeper, the trunk cannot be judged then.

    Raises:
        TrunkMismatchError: The branch was trained on another trunk.
        BundleError: The branch does not fit the trunk; or kind, input or labels are others than those in place and
            the label schema version is not a higher one.
    """
    subject = f"bundle {str(bundle.path)!r}"
    if branch.spec.task in bundle.manifest.tasks:
        _require_version(bundle, branch.spec)
    stored = bundle.manifest.trunk.chain
    if chain is not None or branch.spec.exit_layer < len(stored):
        check_trunk(branch.spec, chain or stored, subject)
    _check_fit(branch, bundle.config(), subject)


@contextmanager
def locked(path: Path) -> Iterator[Bundle]:
    """The bundle as it is on disk, while nobody else changes it; what killed writers left is removed first.

    Raises:
        BundleError: There is no bundle, another writer holds the lock too long, or the folder cannot be changed.
    """
    open_bundle(path)  # No lock file is left in a folder that is no bundle.
    with sole_writer(path, f"bundle {str(path)!r}"):
        yield open_bundle(path)


@contextmanager
def sole_writer(path: Path, subject: str) -> Iterator[None]:
    """Hold the lock of a bundle or registry; errors as of `locked`, and no folder is looked for."""
    try:
        with filelock.FileLock(path / LOCK_NAME, timeout=LOCK_TIMEOUT_S):
            _sweep(path)
            yield
    except filelock.Timeout as error:
        raise BundleError(
            f"{subject}: another writer has held {LOCK_NAME} for {LOCK_TIMEOUT_S:.0f} s; "
            "one writer at a time is allowed; wait for it, or end it"
        ) from error
    except OSError as error:
        raise BundleError(f"{subject}: cannot be changed ({error}); check free space and permissions") from error


def _sweep(path: Path) -> None:
    sweep(path, MANIFEST_NAME)
    for folder in (path / "trunk", *path.glob("branches/*")):
        if folder.resolve().is_relative_to(path.resolve()):
            sweep(folder)


def _require_task(bundle: Bundle, task: str, hint: str = "") -> None:
    if task not in bundle.manifest.tasks:
        raise MissingBranchError(
            f"bundle {str(bundle.path)!r}: has no task {task!r}; {nearest_hint(task, bundle.manifest.tasks)}{hint}"
        )


def _require_expected(bundle: Bundle, task: str, expected: str | None) -> None:
    present = bundle.manifest.tasks[task].branch
    if expected not in (None, present):
        raise BundleError(
            f"bundle {str(bundle.path)!r}: task {task!r} now has branch {present}; {expected} was to be replaced, and "
            "another writer came first; nothing was changed: start again from the present branch"
        )


def _require_version(bundle: Bundle, spec: BranchSpec) -> None:
    """Clients tell by the version alone that answers mean something else."""
    present = bundle.manifest.tasks[spec.task]
    for name in ("kind", "input", "labels"):
        old, new = getattr(present, name), getattr(spec, name)
        if old != new and spec.label_schema_version <= present.label_schema_version:
            raise BundleError(
                f"bundle {str(bundle.path)!r}: task {spec.task!r} has {name} {old!r} under label_schema_version "
                f"{present.label_schema_version}; the branch has {new!r} under {spec.label_schema_version}; other "
                f"{name} need a version above {present.label_schema_version}; raise it in the task file and train again"
            )


def _put(bundle: Bundle, branch: StoredBranch, backbone: Backbone | None) -> Manifest:
    task = branch.spec.task
    extension = _extended(bundle, branch.spec.exit_layer, backbone)
    check_change(bundle, branch, chain=extension.entry.chain)
    manifest = msgspec.structs.replace(
        bundle.manifest, trunk=extension.entry, tasks={**bundle.manifest.tasks, task: task_entry(branch)}
    )
    check_manifest(manifest, f"{bundle.path / MANIFEST_NAME}")
    require_inside(bundle.path, "trunk")
    place_branch(bundle.path, branch)
    if extension.name is not None:
        swap_file(bundle.path / "trunk" / extension.name, extension.content)
    return swap_manifest(bundle.path, manifest)


def swap_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Make a manifest, whose files are all written, the one that readers see; call it inside `locked`."""
    swap_file(path / MANIFEST_NAME, encode_manifest(manifest))
    return manifest


def _extended(bundle: Bundle, exit_layer: int, backbone: Backbone | None) -> _Extension:
    entry = bundle.manifest.trunk
    if backbone is None:
        return _Extension(entry)
    known = min(len(entry.chain), len(backbone.chain)) - 1
    if backbone.chain[: known + 1] != entry.chain[: known + 1]:
        raise TrunkMismatchError(
            f"bundle {str(bundle.path)!r}: its trunk has chain value {entry.chain[known]} at layer {known}; backbone "
            f"{backbone.name!r} has {backbone.chain[known]} there; give the backbone that the bundle was made from"
        )
    if exit_layer <= entry.depth or exit_layer >= len(backbone.chain):
        return _Extension(entry)
    content = write_tensors(trunk_tensors(backbone.tensors, range(entry.depth, exit_layer), stem=False))
    digest = sha256_hex(content)
    name = f"layers-{entry.depth}-{exit_layer - 1}-{digest[:12]}.safetensors"
    extended = msgspec.structs.replace(
        entry, depth=exit_layer, chain=backbone.chain[: exit_layer + 1], files={**entry.files, name: digest}
    )
    return _Extension(extended, name, content)


def _check_branches(branches: Sequence[StoredBranch], folders: Sequence[Path], digests: Sequence[str] | None) -> None:
    if not branches:
        raise BundleError("merge: no branch was given; a bundle needs at least one; name branch folders")
    repeated = [task for task, count in Counter(branch.spec.task for branch in branches).items() if count > 1]
    if repeated:
        raise BundleError(f"merge: task {repeated[0]!r} is there twice; one branch a task is allowed; leave one out")
    if digests is None:
        return
    if len(digests) != len(branches):
        raise BundleError(f"merge: {len(digests)} digests for {len(branches)} branches; give one for each, or none")
    for branch, folder, digest in zip(branches, folders, digests, strict=True):
        if branch.digest != digest:
            raise DigestMismatchError(
                f"branch {str(folder)!r}: has digest {branch.digest}; {digest} was recorded; "
                "it was damaged or changed: train it again, or restore it from a copy"
            )


def _check_fit(branch: StoredBranch, config: EncoderConfig, subject: str) -> None:
    if branch.spec.max_length > config.max_tokens:
        raise BundleError(
            f"task {branch.spec.task!r}: max_length {branch.spec.max_length} is more than the {config.max_tokens} "
            f"tokens that {subject} has positions for; lower the task's max_length"
        )
    expected = _branch_shapes(branch.spec, config, subject)
    found = {name: tuple(tensor.shape) for name, tensor in branch.tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise BundleError(
            f"task {branch.spec.task!r}: tensor {name!r} has shape {found.get(name, 'none')}; {subject} allows "
            f"{expected.get(name, 'no such tensor')}; train the branch on that backbone"
        )


def _branch_shapes(spec: BranchSpec, config: EncoderConfig, subject: str) -> dict[str, tuple[int, ...]]:
    last = spec.exit_layer + spec.own_layers
    if spec.own_layers < 0 or last > config.n_layers:
        raise BundleError(
            f"task {spec.task!r}: {spec.own_layers} own layers after layer {spec.exit_layer}; {subject} has "
            f"{config.n_layers} layers in all; choose fewer, or a lower exit_layer"
        )
    shapes = layers_tensor_shapes(config, range(spec.exit_layer, last))
    if spec.kind != "tagging" and spec.pooling == "cls":
        shapes |= {"head.pooler.weight": (config.width, config.width), "head.pooler.bias": (config.width,)}
    return shapes | {"head.output.weight": (spec.n_outputs, config.width), "head.output.bias": (spec.n_outputs,)}


def _trunk_contents(backbone: Backbone, depth: int) -> dict[str, bytes]:
    return {
        "config.json": encode_spec(backbone.config),
        "tokenizer.json": backbone.tokenizer.json.encode(),
        "model.safetensors": write_tensors(trunk_tensors(backbone.tensors, range(depth), stem=True)),
    }


def trunk_tensors(tensors: Mapping[str, np.ndarray], layers: range, *, stem: bool) -> dict[str, np.ndarray]:
    """What one file of a trunk holds.

    Args:
        tensors: By canonical name, of at least these layers.
        layers: Which layers.
        stem: Whether embeddings and shared tensors lie in the same file.
    """
    prefixes = (*(f"layers.{number}." for number in layers), *(("embeddings.", "shared.") if stem else ()))
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
