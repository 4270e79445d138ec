"""Servers of other makers as processes on loopback, and the memory of a process with its children."""

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import httpx
import psutil

from benchmarks.harness import ROOT

START_S, STOP_S = 240.0, 20.0


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Listening:
    """A server that answers ``/health``; as a context it has ended at the end.

    Args:
        command: Starts it.
        port: That the command makes it listen on.
        environment: Variables besides ours.

    Attributes:
        pid: Of the process.
        url: Where HTTP begins.
        start_s: What it took until it answered.
    """

    def __init__(self, command: Sequence[str | Path], *, port: int, environment: Mapping[str, str]) -> None:
        self._log = TemporaryFile()  # noqa: SIM115 - closed with the server
        self.url = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        self._process = subprocess.Popen(
            list(command), env={**os.environ, **environment}, stdout=self._log, stderr=subprocess.STDOUT, cwd=ROOT
        )
        self.pid = self._process.pid
        try:
            self._wait(started)
        except BaseException:
            self._end()
            raise
        self.start_s = time.monotonic() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def headers(self) -> dict[str, str]:
        """Of every request: it asks for no key."""
        return {}

    def log(self) -> str:
        """Everything that it said."""
        self._log.flush()
        return os.pread(self._log.fileno(), 1 << 24, 0).decode("utf-8", "replace")

    def _wait(self, started: float) -> None:
        while time.monotonic() - started < START_S:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self._process.returncode}: {self.log()[-2000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise RuntimeError(f"the server did not answer within {START_S:.0f} s: {self.log()[-2000:]}")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def tree_megabytes(pid: int) -> float:
    """Proportional set size of a process and all its children."""
    process = psutil.Process(pid)
    return sum(_pss_megabytes(each.pid) for each in (process, *process.children(recursive=True)))


def _pss_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("smaps_rollup: has no line Pss; this needs Linux 4.14 or newer")
