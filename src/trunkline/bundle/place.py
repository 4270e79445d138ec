"""Branches are copied to where they are served from."""

from collections.abc import Callable
from pathlib import Path

from trunkline.bundle.files import check_digest, fsync_folder, read_inside, require_inside, staged_folder, write_file
from trunkline.bundle.manifest import BRANCH_FILES
from trunkline.bundle.store import StoredBranch, branch_folder, read_branch_inside


def place_branch(
    root: Path, branch: StoredBranch, folder: Path, *, before_each: Callable[[], None] = lambda: None
) -> None:
    """Copy a branch from its folder to its place in a bundle, durably; the caller holds the bundle's lock.

    Args:
        root: Of the bundle.
        branch: As it was read.
        folder: From where.
        before_each: Is called before each piece of the work.
    """
    require_inside(root, f"branches/{branch.spec.task}")
    name = branch_folder(branch.spec.task, branch.digest)
    if (root / name).exists():  # Left by an earlier change: the same bytes, or an error that names the file.
        read_branch_inside(root, name, expected=branch.files)
        fsync_folder((root / name).parent)  # Whoever put it there may have been killed before.
        return
    with staged_folder(root / name) as staging:
        copy_branch(branch, folder, staging, before_each=before_each)


def copy_branch(
    branch: StoredBranch, source: Path, target: Path, *, before_each: Callable[[], None] = lambda: None
) -> None:
    """Copy the files of a branch, durably; arguments as of `place_branch`.

    Raises:
        DigestMismatchError: A file is no longer the one that was read.
    """
    for name in BRANCH_FILES:
        before_each()
        content = read_inside(source, name)
        check_digest(content, branch.files[name], f"{source / name}")
        before_each()
        write_file(target / name, content)
