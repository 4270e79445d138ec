"""A writer that is killed at any moment loses no change that it was told was made, and leaves nothing half made."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny_registries import NEWER, make_registry, read_whole
from trunkline.bundle.registry import Registry

WRITER = Path(__file__).with_name("registry_writer.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
N_KILLS = 8


def run_and_kill(folder: Path, seed: int, seconds: float) -> int:
    """Number of the last entry whose change returned before the writer was killed."""
    branches = [str(folder / name) for name in (*NEWER, "run-intent")]
    command = [sys.executable, str(WRITER), str(folder / "registry"), str(seed), *branches]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        assert first, process.stderr.read().decode()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        *whole, _ = (first + process.stdout.read()).split(b"\n")
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    return int(whole[-1])


def test_a_writer_killed_at_random_moments_loses_nothing(tmp_path: Path, seed: int) -> None:
    folder = make_registry(tmp_path)
    rng = random.Random(seed)
    known = Registry.open(folder / "registry").history()
    for number in range(N_KILLS):
        told = run_and_kill(folder, number, rng.uniform(0.0, 0.3))
        state = read_whole(folder / "registry")
        assert told <= state.seq <= told + 1
        history = Registry.open(folder / "registry").history()
        assert history[: len(known)] == known
        known = history
    assert len(known) > 5 + N_KILLS
    Registry.open(folder / "registry").prune()
    assert not list((folder / "registry").rglob(".*.tmp-*"))
    read_whole(folder / "registry")
