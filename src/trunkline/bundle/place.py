"""Branches are written to where they are served from."""

from collections.abc import Callable
from pathlib import Path

from trunkline.bundle.files import fsync_folder, require_inside, staged_folder, write_file
from trunkline.bundle.store import StoredBranch, branch_folder, read_branch_inside


def place_branch(root: Path, branch: StoredBranch, *, before_each: Callable[[], None] = lambda: None) -> None:
    """Write a branch, as it was read, to its place in a bundle, durably; the caller holds the bundle's lock.

    Args:
        root: Of the bundle.
        branch: With the bytes of its files.
        before_each: Is called before each piece of the work.
    """
    require_inside(root, f"branches/{branch.spec.task}")
    name = branch_folder(branch.spec.task, branch.digest)
    if (root / name).exists():  # Left by an earlier change: the same bytes, or an error that names the file.
        read_branch_inside(root, name, expected=branch.files)
        fsync_folder((root / name).parent)  # Whoever put it there may have been killed before.
        return
    with staged_folder(root / name) as staging:
        copy_branch(branch, staging, before_each=before_each)


def copy_branch(branch: StoredBranch, target: Path, *, before_each: Callable[[], None] = lambda: None) -> None:
    """Write the files of a branch, as they were read, durably; arguments as of `place_branch`."""
    for name, content in branch.contents.items():
        before_each()
        write_file(target / name, content)
