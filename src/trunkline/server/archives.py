"""Branches from elsewhere: uploads, folders, addresses. Sizes, paths and links are checked before anything is read."""

import asyncio
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, closing
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any, TypeAlias, cast

from trunkline.bundle.manifest import BRANCH_FILES
from trunkline.server.bodies import Body
from trunkline.server.refusals import refuse
from trunkline.server.settings import Settings

ARCHIVE_TYPES = ("application/x-tar", "application/gzip", "application/zip")
_CHUNK = 1 << 20
_Members: TypeAlias = Generator[tuple[str, Callable[[], IO[bytes]]], None, None]
"""Names, and how to open each."""
_MEMBERS = 16
"""An archive holds four files, and perhaps their folder."""
_TAR_HEAD_BYTES = 8 * 1024
"""Of a member, its long names and pax records together; tarfile looks through them in quadratic time."""
_ZIP_HEAD_BYTES = 128 * 1024
"""Of the directory, and of the 64 KB that are searched for its place."""


@asynccontextmanager
async def upload_folder() -> AsyncIterator[Path]:
    """A temporary folder, which goes beside the event loop: to let tens of megabytes go takes milliseconds."""
    temporary = TemporaryDirectory(prefix="trunkline-upload-")
    try:
        yield Path(temporary.name)
    finally:
        await asyncio.to_thread(temporary.cleanup)


async def write_upload(body: Body, path: Path, *, before_each: Callable[[], None]) -> Path:
    """Write a body to a file as it comes.

    Args:
        body: Of the request; errors are its.
        path: Of the file.
        before_each: Is called in a thread before more than a megabyte is taken, and may let others go first.
    """
    with path.open("wb") as file:
        gathered: list[bytes] = []
        n_bytes = 0

        def write() -> None:
            file.writelines(gathered)
            gathered.clear()
            before_each()

        while not body.is_read:
            gathered.append(await body.piece())
            n_bytes += len(gathered[-1])
            if n_bytes >= _CHUNK:  # A hop to a thread for each packet would cost more than the writing.
                await asyncio.to_thread(write)
                n_bytes = 0
        await asyncio.to_thread(write)
    return path


def unpack(archive: Path, folder: Path, *, max_bytes: int, before_each: Callable[[], None] = lambda: None) -> None:
    """Take the files of a branch out of an archive, and nothing else.

    Args:
        archive: tar, compressed or not, or zip.
        folder: Is made; the files come to lie in it, whatever folder they had.
        max_bytes: Most bytes of all files, unpacked.
        before_each: Is called before each piece of them, and may let others go first.

    Raises:
        ServerError: 422: it is no archive, or holds other things than the four files of a branch; 413: it is larger.
    """
    folder.mkdir()
    try:
        members = _of_zip(archive) if zipfile.is_zipfile(archive) else _of_tar(archive)
        with closing(members):
            _write_members(members, folder, max_bytes, before_each)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise refuse(
            422, "damaged_archive", f"archive: cannot be read ({type(error).__name__}); send a tar or zip of the four "
            "files of a branch",
        ) from error  # fmt: skip
    missing = sorted(name for name in BRANCH_FILES if not (folder / name).exists())
    if missing:
        raise refuse(422, "incomplete_branch", f"archive: lacks {', '.join(missing)}; send all files of the branch")


def _write_members(
    members: _Members, folder: Path, max_bytes: int, before_each: Callable[[], None] = lambda: None
) -> None:
    left = max_bytes
    for name, opened in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or len(path.parts) > 2 or path.name not in BRANCH_FILES:
            raise refuse(
                422, "foreign_file", f"archive: holds {name[:100]!r}; only {', '.join(BRANCH_FILES)} are taken, in at "
                "most one folder; leave it out",
            )  # fmt: skip
        with opened() as source, (folder / path.name).open("xb") as target:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise refuse(
                        413, "archive_too_large", f"archive: unpacks to more than {max_bytes} bytes; send less"
                    )
                target.write(chunk)
                before_each()


class _Frugal:
    """A file that gives no more than it is told to: the standard library reads heads whole, however large they say."""

    def __init__(self, file: IO[bytes], most: int | None = None) -> None:
        self._file = file
        self.limit(most)

    def limit(self, most: int | None) -> None:
        """Give so many bytes from now on; None gives all."""
        self._most = self._left = most

    def read(self, size: int = -1) -> bytes:
        """As of a file; 422 where it would be more than is given."""
        if self._left is None:
            return self._file.read(size)
        found = self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(found)
        if self._left < 0:
            raise refuse(
                422, "damaged_archive", "archive: what it says of its members (names, attributes, comments) has more "
                f"than the {self._most} bytes that are allowed; pack the four files of the branch without it",
            )  # fmt: skip
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Tar(tarfile.TarFile):
    """Reads the head of each member within `_TAR_HEAD_BYTES`, whatever it was compressed with."""

    def __init__(self, name: Any, mode: Any, fileobj: IO[bytes], **options: Any) -> None:
        self._frugal = _Frugal(fileobj)
        super().__init__(name, mode, cast("IO[bytes]", self._frugal), **options)

    def next(self) -> tarfile.TarInfo | None:
        self._frugal.limit(_TAR_HEAD_BYTES)
        try:
            return super().next()
        finally:
            self._frugal.limit(None)


def _of_tar(archive: Path) -> _Members:
    with archive.open("rb") as file, _Tar.open(fileobj=file) as opened:
        for number, member in enumerate(opened):
            _check_count(number)
            if member.isdir():
                continue
            if not member.isreg():
                raise _link(member.name)
            content = opened.extractfile(member)
            if content is not None:
                yield member.name, lambda content=content: content  # type: ignore[misc]


def _of_zip(archive: Path) -> _Members:
    with archive.open("rb") as file:
        frugal = _Frugal(file, _ZIP_HEAD_BYTES)
        opened = zipfile.ZipFile(cast("IO[bytes]", frugal))
        frugal.limit(None)
        for number, member in enumerate(opened.infolist()):
            _check_count(number)
            if member.is_dir():
                continue
            mode = member.external_attr >> 16
            if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
                raise _link(member.filename)
            yield member.filename, lambda member=member: opened.open(member)  # type: ignore[misc]


def _check_count(number: int) -> None:
    if number >= _MEMBERS:
        raise refuse(422, "foreign_file", f"archive: holds more than {_MEMBERS} members; send the branch's files alone")


def _link(name: str) -> Exception:
    return refuse(422, "foreign_file", f"archive: {name[:100]!r} is no regular file; links and devices are not taken")


async def open_source(source: str, settings: Settings, folder: Path) -> Path:
    """A folder with the branch that an address names.

    Args:
        source: A folder of this machine, or an address of a file system that fsspec knows.
        settings: Say what is allowed.
        folder: Is made where files have to be fetched.

    Raises:
        ServerError: 403: it lies under none of the allowed sources; 422: it cannot be read.
    """
    roots = [root for root in settings.sources if ("://" in root) == ("://" in source)]
    if "://" not in source:
        return await asyncio.to_thread(_allowed_folder, source, roots)
    allowed = any(source.startswith(root.rstrip("/") + "/") for root in roots)
    if not allowed or ".." in source.split("/") or "::" in source:
        raise _not_allowed(source)
    return await asyncio.to_thread(_fetch, source, folder, settings.limits.archive_bytes)


def _allowed_folder(source: str, roots: list[str]) -> Path:
    try:
        path = Path(source).resolve()
    except ValueError as error:  # It holds a null character.
        raise _not_allowed(source) from error
    if not any(path.is_relative_to(Path(root).resolve()) for root in roots):
        raise _not_allowed(source)
    return path


def _fetch(source: str, folder: Path, max_bytes: int) -> Path:
    import fsspec

    folder.mkdir()

    def members() -> _Members:
        for name in BRANCH_FILES:
            yield name, lambda name=name: fsspec.open(f"{source.rstrip('/')}/{name}", "rb").open()  # type: ignore[misc]

    try:
        _write_members(members(), folder, max_bytes)
    except (OSError, ValueError, ImportError) as error:
        raise refuse(
            422, "unreadable_source", f"source {source[:200]!r}: cannot be read ({type(error).__name__}); check the "
            "address and the server's rights",
        ) from error  # fmt: skip
    return folder


def _not_allowed(source: str) -> Exception:
    return refuse(
        403, "source_not_allowed", f"source {source[:200]!r}: lies under none of the allowed ones; start the server "
        "with --source ROOT, or upload an archive",
    )  # fmt: skip
