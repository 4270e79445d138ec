import os
from pathlib import Path

import pytest

from trunkline.bundle import files
from trunkline.bundle.files import (
    check_digest,
    files_digest,
    read_inside,
    sha256_hex,
    staged_folder,
    swap_file,
    sweep,
    write_file,
)
from trunkline.core.errors import BundleError, DigestMismatchError, MissingBranchError


def test_a_file_inside_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"\x00content")
    assert read_inside(tmp_path, "a/b") == b"\x00content"


def test_a_missing_file_raises_the_error_asked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingBranchError, match="missing"):
        read_inside(tmp_path, "none", missing=MissingBranchError)


@pytest.mark.parametrize("name", ["../secret", "a/../../secret"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"s")
    with pytest.raises(BundleError, match="leads out"):
        read_inside(root, name)


def test_an_absolute_path_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    with pytest.raises(BundleError, match="leads out"):
        read_inside(root, str(tmp_path / "secret"))


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="leads out"):
        read_inside(root, "link")


def test_a_link_that_stays_inside_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"r")
    (tmp_path / "link").symlink_to("real")
    assert read_inside(tmp_path, "link") == b"r"


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BundleError):
        read_inside(tmp_path, "a")


def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="not a regular file"):
        read_inside(tmp_path, "pipe")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError):
        read_inside(tmp_path, "folder")


def test_bytes_with_another_digest_are_refused_with_both_values() -> None:
    with pytest.raises(DigestMismatchError) as caught:
        check_digest(b"b", sha256_hex(b"a"), "file")
    assert sha256_hex(b"a") in str(caught.value)
    assert sha256_hex(b"b") in str(caught.value)


def test_the_digest_of_files_depends_on_names_and_contents_and_not_on_order() -> None:
    assert files_digest({"a": "1", "b": "2"}) == files_digest({"b": "2", "a": "1"})
    assert len({files_digest(value) for value in ({"a": "1"}, {"b": "1"}, {"a": "2"}, {})}) == 4


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with staged_folder(target) as staging:
        write_file(staging / "inner" / "file", b"x")
        assert not target.exists()
    assert (target / "inner" / "file").read_bytes() == b"x"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_staged_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def stop() -> None:
        with staged_folder(target) as staging:
            write_file(staging / "file", b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_bundle_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        with staged_folder(folder) as staging:
            write_file(staging / "file", b"x")
            raise OSError(28, "No space left on device")

    with pytest.raises(BundleError, match="No space left"):
        fill(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with staged_folder(target) as staging:
        write_file(staging / "file", b"x")
    assert (target / "file").exists()


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"keep")
    with pytest.raises(BundleError, match="exists already"), staged_folder(tmp_path):
        pass
    assert (tmp_path / "theirs").read_bytes() == b"keep"


def test_a_name_that_no_disk_takes_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"), staged_folder(tmp_path / ("x" * 300)):
        pass


def test_a_folder_that_may_not_be_searched_is_a_bundle_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_arguments: object, **_options: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:  # Tests may run as root, whom no mode keeps out.
        patched.setattr(os, "stat", denied)
        patched.setattr(os, "lstat", denied)
        with pytest.raises(BundleError, match=r"cannot be written .*Permission denied"), staged_folder(tmp_path / "x"):
            pass


def test_the_current_folder_is_refused_and_other_paths_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "target").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "target")
    with pytest.raises(BundleError, match=r"^\.: is the current folder.*name one inside it"), staged_folder(Path()):
        pass
    monkeypatch.chdir(tmp_path / "here")
    with staged_folder(Path("target/../target/.")) as staging:
        write_file(staging / "file", b"x")
    assert [path.name for path in (tmp_path / "here").rglob("*")] == ["target", "file"]


def test_a_swap_is_durable_at_every_step_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        content = path.read_text() if path.is_file() else ""
        events.append(f"fsync {path.name.split('.tmp-')[0]} {content}".strip())
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    swap_file(tmp_path / "pointer", b"new")
    assert events == ["fsync .pointer new", "replace", f"fsync {tmp_path.name}"]


def test_sweeping_removes_what_was_staged_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keep").write_bytes(b"k")
    (tmp_path / ".keep.tmp-0123").write_bytes(b"half")
    (tmp_path / ".folder.tmp-0123").mkdir()
    (tmp_path / ".folder.tmp-0123" / "file").write_bytes(b"half")
    (tmp_path / ".link.tmp-0123").symlink_to(tmp_path / "keep")
    sweep(tmp_path, "keep")
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_swapping_a_file_replaces_it_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "pointer"
    path.write_bytes(b"old")
    swap_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pointer"]


def test_a_swap_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pointer"
    path.write_bytes(b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BundleError, match="No space left"):
        swap_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pointer"]


def test_files_and_folders_are_fsynced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        events.append("fsync " + Path(f"/proc/self/fd/{handle}").readlink().name.split(".tmp-")[0])
        real_fsync(handle)

    def rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    with staged_folder(tmp_path / "target") as staging:
        write_file(staging / "inner" / "file", b"x")
    assert events == ["fsync file", "fsync inner", "fsync .target", "rename", f"fsync {tmp_path.name}"]
