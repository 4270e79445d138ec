"""The engine alone, in a process of its own, with the load that its server gets: what the edge adds is the difference.

Run as ``python -m benchmarks.server_bare BUNDLE TEXTS CACHE_MB``; each line of its input is a `Work` in JSON, each line
of its output a `Done`.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.harness import ROOT
from trunkline.engine.engine import Engine

WARM_S = 1.5
"""Of each piece of work, before it is counted."""


class Work(msgspec.Struct, frozen=True):
    """A closed loop.

    Attributes:
        n_texts: Of a request.
        n_callers: Each asks again as soon as it has all answers.
        seconds: That count.
    """

    n_texts: int
    n_callers: int
    seconds: float


class Done(msgspec.Struct, frozen=True):
    """What was done in the seconds that count.

    Attributes:
        texts: Answered by all tasks.
        processor_s: Of the whole process.
        seconds: On the wall.
    """

    texts: float
    processor_s: float
    seconds: float

    @property
    def processor_us(self) -> float:
        """Microseconds of a processor for each text."""
        return 1e6 * self.processor_s / self.texts


class BareEngine:
    """The engine in its process; as a context it has ended at the end.

    Args:
        bundle: Folder.
        texts: File with one text a line.
        cache_mb: For results.
    """

    def __init__(self, bundle: Path, texts: Path, cache_mb: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server_bare", str(bundle), str(texts), str(cache_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, work: Work) -> Done:
        """Do it, and wait until it is done."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None  # noqa: S101 - both are pipes
        assert told is not None  # noqa: S101
        asked.write(msgspec.json.encode(work) + b"\n")
        asked.flush()
        line = told.readline()
        if not line:
            raise RuntimeError(f"the engine alone ended with code {self._process.wait()}; see above what it said")
        return msgspec.json.decode(line, type=Done)


async def _run(engine: Engine, texts: Sequence[str], work: Work) -> Done:
    n_answers, is_over = 0, False
    requests = count()

    async def call() -> None:
        nonlocal n_answers
        while not is_over:
            first = next(requests) * work.n_texts
            asked = [texts[(first + place) % len(texts)] for place in range(work.n_texts)]
            async for _ in engine.astream(asked):
                n_answers += 1

    callers = [asyncio.create_task(call()) for _ in range(work.n_callers)]
    await asyncio.sleep(WARM_S)
    before = (n_answers, time.process_time(), time.perf_counter())
    await asyncio.sleep(work.seconds)
    after = (n_answers, time.process_time(), time.perf_counter())
    is_over = True
    await asyncio.gather(*callers)
    answers, processor_s, seconds = (late - early for early, late in zip(before, after, strict=True))
    return Done(answers / len(engine.specs), processor_s, seconds)


def main() -> None:
    """Open the engine and work off the input."""
    bundle, texts, cache_mb = sys.argv[1:]
    lines = Path(texts).read_text(encoding="utf-8").splitlines()
    with Engine.open(Path(bundle), cache_bytes=int(cache_mb) * 2**20) as engine:
        engine.warm()
        for line in sys.stdin.buffer:
            done = asyncio.run(_run(engine, lines, msgspec.json.decode(line, type=Work)))
            sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
