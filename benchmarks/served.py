"""A real ``trunkline serve`` in a process of its own, for benchmarks and tests of faults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from benchmarks.harness import ROOT
from trunkline.server.keys import ENVIRONMENT, as_yaml, new_key

START_S = 120.0
GRPC = ("--grpc-port", "0")
"""A free port for gRPC too."""
_LISTENS, _GRPC = "listening on http://", "gRPC on "


class Served:
    """A server that listens; as a context it is killed at the end.

    Attributes:
        pid: Of the process.
        host: Where it listens.
        port: For HTTP.
        grpc_port: For gRPC; None where it offers none.
        admin: The administrator's key.

    Args:
        path: Bundle or registry.
        options: Further ones of ``trunkline serve``.
    """

    program = "from trunkline.cli import main; main()"

    def __init__(self, path: Path, *options: str) -> None:
        self.admin, key = new_key("bench", ("admin", "infer"))
        self._log = TemporaryFile()  # noqa: SIM115 - closed with the server
        environment = {
            **os.environ,
            ENVIRONMENT: as_yaml(key),
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.program, "serve", str(path), "--port", "0",
             *GRPC, *options],
            env=environment, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.pid = self._process.pid
        self.host, self.port, self.grpc_port = "127.0.0.1", 0, None
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    @property
    def url(self) -> str:
        """Where HTTP begins."""
        return f"http://{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Of the administrator."""
        return {"Authorization": f"Bearer {self.admin}"}

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def log(self) -> str:
        """Everything that it said."""
        self._log.flush()
        return os.pread(self._log.fileno(), 1 << 26, 0).decode("utf-8", "replace")

    def pss_megabytes(self) -> float:
        """Memory, shared pages in proportion."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("smaps_rollup: has no line Pss; this needs Linux 4.14 or newer")

    def processor_s(self) -> float:
        """Processor seconds of all its threads so far, in user and in system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def terminate(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            said = self.log()
            if _LISTENS in said:
                self.port = _port_behind(said, _LISTENS)
                self.grpc_port = _port_behind(said, _GRPC) if _GRPC in said else None
                return
            if not self.is_running:
                raise RuntimeError(f"the server ended with code {self._process.returncode}: {said[-2000:]}")
            time.sleep(0.02)
        raise RuntimeError(f"the server did not listen within {START_S:.0f} s: {self.log()[-2000:]}")


def _port_behind(said: str, mark: str) -> int:
    return int(said.partition(mark)[2].split()[0].rpartition(":")[2])
