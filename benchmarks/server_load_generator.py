"""Load on a server from ``wrk``: open loop, with moments fixed beforehand, or closed loop."""

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trunkline.core.errors import MissingDependencyError

HERE = Path(__file__).resolve().parent
N_CONNECTIONS = 32
_LEAD_S = 0.5
"""As in server_load.lua."""


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What an open loop sends.

    Attributes:
        due_s: When each request is due, seconds since the start; ascending.
        bodies: Number of each one's body.
    """

    due_s: np.ndarray
    bodies: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What became of a `Load`; arrays in its order.

    Attributes:
        status: Of HTTP; 0 where no answer came.
        due_s: When each was due, seconds since the start.
        sent_s: When it was sent; not a number where it never was.
        latency_s: From when it was due to its answer, so that waiting to be sent counts.
        retry_after_s: As the answer said; not a number where it did not.
        generator_share: Of one processor, taken by the generator.
    """

    status: np.ndarray
    due_s: np.ndarray
    sent_s: np.ndarray
    latency_s: np.ndarray
    retry_after_s: np.ndarray
    generator_share: float

    def between(self, start_s: float, end_s: float) -> "Answered":
        """Of what was due in a stretch of time."""
        chosen = (self.due_s >= start_s) & (self.due_s < end_s)
        arrays = (self.status, self.due_s, self.sent_s, self.latency_s, self.retry_after_s)
        return Answered(*(each[chosen] for each in arrays), self.generator_share)

    def percentile_ms(self, share: float, *, status: Sequence[int] = (200,)) -> float:
        """Percentile of the latency of answers of some status."""
        chosen = self.latency_s[np.isin(self.status, status)]
        return 1e3 * float(np.percentile(chosen, share)) if len(chosen) else float("nan")

    def lateness_ms(self, share: float) -> float:
        """Percentile of how much later than due requests were sent: a generator at its limit shows here."""
        return 1e3 * float(np.nanpercentile(self.sent_s - self.due_s, share))

    def told(self) -> dict[str, Any]:
        """For the details of a result."""
        codes, counts = np.unique(self.status, return_counts=True)
        return {
            "n_requests": len(self.status),
            "status": {str(code): int(count) for code, count in zip(codes, counts, strict=True)},
            "p50_ms": self.percentile_ms(50),
            "p99_ms": self.percentile_ms(99),
            "lateness_p50_ms": self.lateness_ms(50),
            "lateness_p99_ms": self.lateness_ms(99),
            "generator_processor_share": self.generator_share,
        }


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """What a closed loop saw.

    Attributes:
        requests: Answered.
        seconds: On the wall.
        not_2xx: Of the requests.
        unanswered: Errors of connections, and timeouts.
        p50_ms: Of latency.
        p99_ms: Of latency.
        generator_share: Of one processor, taken by the generator.
    """

    requests: int
    seconds: float
    not_2xx: int
    unanswered: int
    p50_ms: float
    p99_ms: float
    generator_share: float = 0.0

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def poisson(rate: float, seconds: float, *, n_bodies: int, seed: int, start_s: float = 0.0) -> Load:
    """Arrivals at random, as of many clients who do not know of each other.

    Args:
        rate: A second.
        seconds: For how long.
        n_bodies: Each request has one of so many.
        seed: Of moments and bodies.
        start_s: When the first may come.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, size=int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10))
    due = np.cumsum(gaps)
    due = due[due < seconds]
    return Load(start_s + due, rng.integers(n_bodies, size=len(due)))


def joined(loads: Sequence[Load]) -> Load:
    """One after the other."""
    return Load(np.concatenate([each.due_s for each in loads]), np.concatenate([each.bodies for each in loads]))


def open_loop(
    url: str,
    bodies: Sequence[bytes],
    load: Load,
    *,
    headers: Mapping[str, str] | None = None,
    n_connections: int = 256,
    wait_s: float = 3.0,
) -> Answered:
    """Send every request when it is due, whether the ones before are answered or not.

    Args:
        url: Where to; its answers echo the header ``X-Request-Id``.
        bodies: JSON without line breaks.
        load: When, and which.
        headers: Of each request.
        n_connections: More than requests that wait for their answers at a time.
        wait_s: After the last request is due, for answers.
    """
    seconds = int(np.ceil(_LEAD_S + float(load.due_s[-1]) + wait_s))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_bodies(folder / "bodies", bodies)
        lines = (f"{round(1e6 * due)} {body}\n" for due, body in zip(load.due_s, load.bodies, strict=True))
        (folder / "arrivals").write_text("".join(lines), encoding="ascii")
        files = [str(folder / name) for name in ("arrivals", "bodies", "results")]
        share = _wrk("server_load.lua", (url, headers, n_connections, seconds), files, {})
        results = (folder / "results").read_text(encoding="ascii").split("\n")[:-1]
    return _answered(load, results, share)


def closed_loop(
    url: str,
    bodies: Sequence[bytes],
    seconds: int,
    *,
    headers: Mapping[str, str] | None = None,
    n_connections: int = N_CONNECTIONS,
) -> Closed:
    """As many requests as so many connections get answered, each of which waits for its answer.

    Args:
        url: Where to.
        bodies: JSON without line breaks; they take turns.
        seconds: For how long.
        headers: Of each request.
        n_connections: Requests at a time.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_bodies(folder / "bodies", bodies)
        environment = {"TRUNKLINE_SUMMARY": str(folder / "summary")}
        how = (url, headers, n_connections, seconds)
        share = _wrk("server_closed.lua", how, [str(folder / "bodies")], environment)
        seen = msgspec.json.decode((folder / "summary").read_bytes(), type=Closed)
    return msgspec.structs.replace(seen, generator_share=share)


def _write_bodies(path: Path, bodies: Sequence[bytes]) -> None:
    if any(b"\n" in body for body in bodies):
        raise ValueError("bodies: one has a line break; they are one a line in a file; encode them without")
    path.write_bytes(b"".join(body + b"\n" for body in bodies))


def _wrk(
    script: str,
    how: tuple[str, Mapping[str, str] | None, int, int],
    files: Sequence[str],
    environment: Mapping[str, str],
) -> float:
    """Run it on an address, with headers, connections, seconds.

    Returns:
        Its processor time as a share of one processor.
    """
    program = shutil.which("wrk")
    if program is None:
        raise MissingDependencyError("wrk: is not installed; it makes the load; install it with: apt-get install wrk")
    url, headers, n_connections, seconds = how
    told = [part for name, value in (headers or {}).items() for part in ("-H", f"{name}: {value}")]
    command = [
        program,
        *told,
        "-t1",
        f"-c{n_connections}",
        f"-d{seconds}s",
        "-T60s",
        "-s",
        str(HERE / script),
        url,
        "--",
    ]
    started, before = time.perf_counter(), _children_s()
    done = subprocess.run(
        [*command, *files], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    used, seconds_taken = _children_s() - before, time.perf_counter() - started
    if done.returncode != 0 or "PANIC" in done.stderr or script in done.stderr:
        raise RuntimeError(f"wrk: ended with {done.returncode}: {(done.stderr or done.stdout)[-800:]}")
    return used / seconds_taken


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _answered(load: Load, lines: Sequence[str], share: float) -> Answered:
    n = len(load.due_s)
    status, blank = np.zeros(n, dtype=np.int64), np.full(n, np.nan)
    sent, latency, retry = blank.copy(), blank.copy(), blank.copy()
    for line in lines:
        index, code, due, sent_us, answered_us, retry_after = line.split()
        place = int(index) - 1
        status[place] = int(code)
        sent[place] = float(sent_us) / 1e6
        latency[place] = (float(answered_us) - float(due)) / 1e6
        if retry_after != "-":
            retry[place] = float(retry_after)
    return Answered(status, load.due_s, sent, latency, retry, share)
