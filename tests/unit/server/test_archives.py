"""Archives whose heads are larger than any memory: refused before they are read."""

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.bundle.manifest import BRANCH_FILES
from trunkline.server.archives import unpack
from trunkline.server.refusals import ServerError

LARGE = 64 * 2**20
ENOUGH = 8 * 2**20


def head(kind: bytes, size: int) -> bytes:
    """The block before a member, which says how many bytes follow."""
    info = tarfile.TarInfo("branch.json")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def packed(head_block: bytes, body: int = LARGE) -> bytes:
    return gzip.compress(head_block + bytes(body), 1)


def sparse_map() -> bytes:
    """The old sparse form: blocks of a map, each of which says that another one follows."""
    info = bytearray(head(tarfile.GNUTYPE_SPARSE, 0))
    info[482] = 1
    info[148:156] = b"%06o\0 " % (sum(info[:148]) + sum(info[156:]) + 8 * 32)
    return gzip.compress(bytes(info) + (b"00000000001\0" * 42 + b"\1" + bytes(7)) * (LARGE // 2**13), 1)


def many_heads() -> bytes:
    return gzip.compress(head(tarfile.GNUTYPE_LONGNAME, 0) * 10_000, 1)


def many_members(n: int = 3000) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(n):
            archive.writestr(f"{number}", b"")
    return content.getvalue()


def refused(content: bytes, folder: Path) -> tuple[str, int]:
    """Why an archive is refused, and the most memory that it took."""
    (folder / "archive").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ServerError) as raised:
            unpack(folder / "archive", folder / "branch", max_bytes=2 * LARGE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    refusal = raised.value.refusal
    assert (refusal.status, refusal.code) == (422, "damaged_archive")
    return refusal.message, peak


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: packed(head(tarfile.GNUTYPE_LONGNAME, LARGE)), id="long name"),
        pytest.param(lambda: packed(head(tarfile.GNUTYPE_LONGLINK, LARGE)), id="long link"),
        pytest.param(lambda: packed(head(tarfile.XHDTYPE, LARGE)), id="pax of a member"),
        pytest.param(lambda: packed(head(tarfile.XGLTYPE, LARGE)), id="pax of all members"),
        pytest.param(lambda: head(tarfile.XHDTYPE, LARGE) + bytes(LARGE), id="not compressed"),
        pytest.param(sparse_map, id="sparse map"),
        pytest.param(many_heads, id="one after another"),
    ],
)
def test_a_tar_with_a_large_head_is_refused_before_it_is_read(content: Callable[[], bytes], tmp_path: Path) -> None:
    message, peak = refused(content(), tmp_path)
    assert "more than the 8192 bytes that are allowed" in message
    assert peak < ENOUGH


def test_a_pax_head_that_is_slow_to_look_through_is_refused(tmp_path: Path) -> None:
    digits = b"1" * 2**15  # The standard library's pattern for them takes quadratic time.
    message, _ = refused(head(tarfile.XHDTYPE, len(digits)) + digits, tmp_path)
    assert "8192 bytes" in message


@pytest.mark.parametrize("zip64", [False, True])
def test_a_zip_with_a_large_directory_is_refused_before_it_is_read(
    zip64: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    message, peak = refused(many_members(), tmp_path)
    assert "more than the 131072 bytes that are allowed" in message
    assert peak < ENOUGH


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_as_people_have_them_are_taken(form: int, tmp_path: Path) -> None:
    content, folder = io.BytesIO(), "a branch of " + "很长" * 60
    with tarfile.open(fileobj=content, mode="w:gz", format=form) as archive:
        for name in BRANCH_FILES:
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mtime = 3, 1.5
            archive.addfile(info, io.BytesIO(b"abc"))
    (tmp_path / "archive").write_bytes(content.getvalue())
    unpack(tmp_path / "archive", tmp_path / "branch", max_bytes=100)
    assert {path.name for path in (tmp_path / "branch").iterdir()} == set(BRANCH_FILES)


def test_a_zip_with_a_long_comment_is_taken(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.comment = b"c" * 65_000
        for name in BRANCH_FILES:
            archive.writestr(name, b"abc")
    unpack(tmp_path / "archive", tmp_path / "branch", max_bytes=100)
    assert {path.name for path in (tmp_path / "branch").iterdir()} == set(BRANCH_FILES)
