"""Bytes on disk: written durably, read once, verified before anything decodes them."""

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trunkline.core.errors import BundleError, DigestMismatchError


def sha256_hex(content: bytes) -> str:
    """SHA-256 of bytes, as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def files_digest(files: Mapping[str, str]) -> str:
    """One digest for a set of files: SHA-256 over its (name, SHA-256) lines, sorted by name."""
    lines = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return sha256_hex(lines.encode())


def read_inside(root: Path, name: str, *, missing: type[BundleError] = BundleError) -> bytes:
    """Read one file that must lie inside a folder.

    Args:
        root: The folder that nothing may lead out of.
        name: Path relative to it, with ``/``.
        missing: Which error says that the file is not there.

    Returns:
        The whole content: verify these bytes and decode the same ones.

    Raises:
        BundleError: The path or a symbolic link leads out of ``root``, or the file cannot be read.
    """
    subject = f"{root / name}"
    try:
        top = root.resolve(strict=True)
        path = (top / name).resolve(strict=True)
        if not path.is_relative_to(top):
            raise BundleError(f"{subject}: leads out of {top} to {path}; only files inside are read; restore the file")
        # O_NONBLOCK: opening a named pipe must not hang.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"{subject}: is not a regular file; only regular files are read; restore the file")
            return file.read()
    except FileNotFoundError as error:
        if not os.path.isdir(root):  # noqa: PTH112 - unlike Path.is_dir it never raises, whatever the path is.
            raise missing(f"{root}: there is no such folder; a folder that exists is needed; check the path") from error
        raise missing(f"{subject}: the file is missing; restore it from a copy, or write the whole anew") from error
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{subject}: cannot be read ({error}); check that it exists and its permissions") from error


def check_digest(content: bytes, expected: str | None, subject: str) -> str:
    """Compare bytes with their digest, where it is known.

    Returns:
        SHA-256 (hex) of the content.

    Raises:
        DigestMismatchError: They differ.
    """
    found = sha256_hex(content)
    if expected not in (None, found):
        raise DigestMismatchError(
            f"{subject}: its {len(content)} bytes have SHA-256 {found}; {expected} was written; "
            "the file was damaged or changed: restore it from a copy"
        )
    return found


def require_inside(root: Path, name: str) -> None:
    """Refuse to write through a link that leads out of a folder.

    Raises:
        BundleError: It does.
    """
    if not (root / name).resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root / name}: is a link that leads out of the bundle; remove the link")


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A new folder that appears whole or not at all.

    Yields a temporary sibling to fill through `write_file`; when the block ends without an error everything in it
    is fsynced and it is renamed to ``folder``, which must not exist or be empty. On an error it is removed.

    Raises:
        BundleError: The folder cannot be written, or is not empty.
    """
    folder = _new_folder(folder)
    staging = folder.parent / f".{folder.name}.tmp-{uuid.uuid4().hex[:12]}"
    try:
        _make_folders(folder.parent)
        staging.mkdir()
        yield staging
        for inner in sorted((path for path in staging.rglob("*") if path.is_dir()), reverse=True):
            fsync_folder(inner)
        fsync_folder(staging)
        staging.rename(folder)
        fsync_folder(folder.parent)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error}); check free space and permissions") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a new file and fsync it; its folder is made where it is missing and must be fsynced by the caller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def swap_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old bytes or the new ones, and so does a machine after a crash.

    Raises:
        BundleError: It cannot be written; the old file is still in place.
    """
    staging = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        write_file(staging, content)
        staging.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error}); check free space and permissions") from error
    finally:
        staging.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable; a new or renamed file is lost in a crash without it."""
    if os.name == "nt":  # Windows has no handle for a folder; its rename is journaled.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed writers left: staged files and folders for entries of ``folder`` whose names match.

    Only for whoever holds the lock under which they are written: what others are still writing has the same names.
    """
    for path in folder.glob(f".{name}.tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _new_folder(folder: Path) -> Path:
    try:
        # The last part is not resolved before it was looked at: a link in its place is not written through.
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise BundleError(f"{folder}: exists already; it must not exist or be an empty folder; choose another")
        resolved = folder.resolve()
        if resolved == Path.cwd():
            raise BundleError(
                f"{folder}: is the current folder, whose place another one would take; a new folder is allowed; "
                "name one inside it"
            )
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{folder}: cannot be written ({error}); check its name and permissions") from error
    return resolved


def _make_folders(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def remove_whole(path: Path) -> None:
    """Remove a file or folder; a folder is out of the way before its content goes, so that no half of it is found."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    gone = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    path.rename(gone)
    shutil.rmtree(gone)
