"""The ledger: appended to, read again, mended after a kill, refused when damaged."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.tiny_bundles import backbone_of, branch_digest, put_branch
from tests.tiny_records import run_record, run_spec
from trunkline.core.errors import TrainingError
from trunkline.train.ledger import Ledger

BRANCH_DIGEST = branch_digest("mood")
RECORDS = [run_record(80.0 + seed, seed=seed, branch=BRANCH_DIGEST) for seed in range(3)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "runs")
    for record in RECORDS:
        made.append(record)
        put_branch(made.branch_folder(record.run_id), "mood", backbone_of())
    return made


def test_a_ledger_that_nobody_wrote_is_empty(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "none").records() == []
    assert not (tmp_path / "none").exists()


def test_a_ledger_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(TrainingError, match="cannot be read"):
        Ledger(tmp_path).records()


def test_records_are_read_as_they_were_appended(ledger: Ledger) -> None:
    assert Ledger(ledger.folder).records() == RECORDS


def test_a_finished_run_is_found_by_an_equal_spec(ledger: Ledger) -> None:
    assert ledger.find(run_spec(seed=1)) == RECORDS[1]
    assert ledger.find(run_spec(seed=9)) is None


def test_a_run_whose_branch_was_removed_counts_as_not_run(ledger: Ledger) -> None:
    shutil.rmtree(ledger.branch_folder(RECORDS[1].run_id))
    assert ledger.find(RECORDS[1].spec) is None


@pytest.mark.parametrize("name", ["branch.json", "branch.safetensors"])
def test_a_run_whose_branch_is_not_the_one_it_left_counts_as_not_run(ledger: Ledger, name: str) -> None:
    path = ledger.branch_folder(RECORDS[1].run_id) / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x01
    path.write_bytes(content)
    assert ledger.find(RECORDS[1].spec) is None
    assert ledger.find(RECORDS[0].spec) == RECORDS[0]


def test_a_run_that_another_holds_is_waited_for(ledger: Ledger) -> None:
    order: list[str] = []

    def run() -> None:
        with ledger.running("abc", on_wait=lambda: order.append("waits")):
            order.append("second")

    thread = threading.Thread(target=run)
    with ledger.running("abc", on_wait=lambda: order.append("never")):
        thread.start()
        while "waits" not in order:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["waits", "first", "second"]


def test_a_full_fine_tuning_needs_no_branch(ledger: Ledger) -> None:
    record = run_record(90.0, arm="full", exit_layer=0, own_layers=4)
    ledger.append(record)
    assert ledger.find(record.spec) == record


def test_the_latest_record_of_a_run_counts(ledger: Ledger) -> None:
    again = run_record(70.0, seed=1, branch=BRANCH_DIGEST)
    ledger.append(again)
    assert ledger.find(again.spec) == again
    assert ledger.get(again.run_id) == again


def test_an_unknown_run_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(TrainingError, match="run 'abc' is not in"):
        ledger.get("abc")


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_torn_last_line_is_no_record_and_the_next_writer_cuts_it_off(ledger: Ledger, cut: int) -> None:
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content[:-cut])
    assert ledger.records() == RECORDS[:2]
    ledger.append(RECORDS[2])
    assert ledger.path.read_bytes() == content


def test_a_ledger_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.path.write_bytes(b'{"run_id": "ab')
    assert ledger.records() == []
    ledger.append(RECORDS[0])
    assert ledger.records() == RECORDS[:1]


@pytest.mark.parametrize(
    "line", [b"{}", b"not json", b'{"run_id": 3}', b'{"run_id": "\xff"}', b'{"run_id": "a", "extra": 1}']
)
def test_a_damaged_whole_line_is_an_error_that_names_it(ledger: Ledger, line: bytes) -> None:
    lines = ledger.path.read_bytes().splitlines()
    ledger.path.write_bytes(b"\n".join([lines[0], line, lines[2], b""]))
    with pytest.raises(TrainingError, match=r"ledger .*ledger\.jsonl line 2: not a run record .* restore the file"):
        ledger.records()


def test_a_damaged_ledger_is_still_appended_to_without_loss(ledger: Ledger) -> None:
    before = ledger.path.read_bytes() + b"damaged\n"
    ledger.path.write_bytes(before)
    ledger.append(RECORDS[0])
    assert ledger.path.read_bytes().startswith(before)


def test_writers_at_once_lose_no_record(tmp_path: Path) -> None:
    records = [run_record(50.0, seed=seed) for seed in range(16)]

    def append(some: slice) -> None:
        for record in records[some]:
            Ledger(tmp_path).append(record)

    threads = [threading.Thread(target=append, args=(slice(start, None, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.spec.seed for record in Ledger(tmp_path).records()) == list(range(16))


def test_a_full_disk_is_a_training_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(TrainingError, match=r"cannot be written \(No space left on device\); free space"):
            ledger.append(run_record(1.0, seed=9))
    assert ledger.records()[:3] == RECORDS


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        Ledger(tmp_path / "file").make_folder()
