"""Branches as archives, for uploads."""

import io
import tarfile
from pathlib import Path

from trunkline.bundle.manifest import BRANCH_FILES

TAR = {"Content-Type": "application/x-tar"}


def tar_of(files: dict[str, bytes]) -> bytes:
    """Files as a tar."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return content.getvalue()


def branch_files_of(folder: Path) -> dict[str, bytes]:
    """The four files of a branch."""
    return {name: (folder / name).read_bytes() for name in BRANCH_FILES}
