"""Branches on their way to a server: the four files of one, in a tar."""

import asyncio
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

from trunkline.core.errors import BundleError

BRANCH_FILES = ("README.md", "branch.json", "branch.safetensors", "golden.json")
"""As `trunkline.bundle.manifest` has them; a test compares."""
_CHUNK = 1 << 20


def pack_branch(folder: Path, archive: Path) -> None:
    """Write the files of a branch into a tar, not compressed: weights hardly shrink.

    The same files give the same bytes: no owner, no time of change.

    Args:
        folder: Of the branch; further files in it stay behind.
        archive: Is written.

    Raises:
        BundleError: A file of the branch is not there, or cannot be read.
    """
    missing = [name for name in BRANCH_FILES if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            f"branch folder {str(folder)!r}: lacks {', '.join(missing)}; a branch has {', '.join(BRANCH_FILES)}; name "
            "the folder of a branch"
        )
    try:
        with tarfile.open(archive, "w") as opened:
            for name in BRANCH_FILES:
                with (folder / name).open("rb") as file:
                    member = tarfile.TarInfo(name)
                    member.size = file.seek(0, 2)
                    file.seek(0)
                    opened.addfile(member, file)
    except OSError as error:
        raise BundleError(
            f"branch folder {str(folder)!r}: cannot be packed ({error}); check its permissions, and free space in the "
            "folder for temporary files"
        ) from error


async def chunks(archive: Path) -> AsyncIterator[bytes]:
    """The bytes of an archive, piece by piece, read beside the event loop."""
    with await asyncio.to_thread(archive.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
