"""Training in real processes: several at once, and one that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.tiny import write_checkpoint
from tests.tiny_bundles import backbone_of
from tests.tiny_tasks import write_task
from trunkline.bundle.store import read_branch
from trunkline.train.ledger import Ledger

SOURCE = Path(__file__).resolve().parents[2] / "src"
N_RUNS = 8


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_checkpoint(tmp_path / "backbone", backbone_of())
    task = write_task(tmp_path, "topic", n_train=60, n_dev=12)
    options = ["--layers", "2,3", "--seeds", "0,1", "--students", "1,2", "--precision", "fp32"]
    places = ["--backbone", str(tmp_path / "backbone"), "--out", str(tmp_path / "runs")]
    return [sys.executable, "-c", "from trunkline.cli import main; main()", "train", str(task), *places, *options]


def start(command: list[str], folder: Path, *, out: bool = False) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TRUNKLINE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SOURCE),
    }
    stdout = subprocess.PIPE if out else subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE)


def check_ledger(folder: Path) -> None:
    ledger = Ledger(folder / "runs")
    records = ledger.records()
    assert Counter(record.run_id for record in records).most_common(1)[0][1] == 1
    assert len(records) == N_RUNS
    for record in records:
        assert read_branch(ledger.branch_folder(record.run_id)).digest == record.branch_digest


def test_processes_with_the_same_command_share_its_runs(command: list[str], tmp_path: Path) -> None:
    processes = [start(command, tmp_path) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    check_ledger(tmp_path)


def test_a_killed_process_is_gone_on_with(command: list[str], tmp_path: Path) -> None:
    process = start(command, tmp_path)
    ledger = Ledger(tmp_path / "runs")
    while len(ledger.records()) < 2:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    n_done = len(ledger.records())
    assert n_done < N_RUNS
    resumed = start(command, tmp_path)
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors.decode()
    check_ledger(tmp_path)


def test_processes_share_a_search(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "backbone", backbone_of())
    task = write_task(tmp_path, "topic", n_train=1400, n_dev=12)
    places = ["--backbone", str(tmp_path / "backbone"), "--out", str(tmp_path / "runs")]
    call = [sys.executable, "-c", "from trunkline.cli import main; main()", "search", str(task), *places]
    processes = [start([*call, "--budget", "3", "--students", "0,1", "--json"], tmp_path, out=True) for _ in range(2)]
    reports = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        (report,) = msgspec.json.decode(output)
        reports.append(report)
    assert reports[0]["winner"] == reports[1]["winner"]
    assert [tried["run_id"] for tried in reports[0]["tried"]] == [tried["run_id"] for tried in reports[1]["tried"]]
    ids = [record.run_id for record in Ledger(tmp_path / "runs").records()]
    assert sorted(ids) == sorted({tried["run_id"] for tried in reports[0]["tried"]})
