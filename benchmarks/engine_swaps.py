"""`engine-swaps`: branches are replaced under load; nothing is lost, nothing else changes, no memory stays behind."""

import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import msgspec
import numpy as np

from benchmarks.engine_agreement import real_bundle
from benchmarks.engine_contestant import EngineContestant
from benchmarks.engine_memory import resident_megabytes
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import measured_by, picture, publish
from benchmarks.peers.texts import texts
from trunkline.bundle.merge import replace
from trunkline.bundle.store import StoredBranch, open_bundle, write_branch
from trunkline.core.errors import TrunklineError
from trunkline.engine.backends.choose import choose_backend
from trunkline.engine.engine import Engine

N_WARM, N_SWAPS, N_CROWDED = 20, 200, 40
N_TEXTS = 24
N_CROWD = 4
SHIFT = 0.01
"""Added to a head's biases: the second version of a branch, of which every logit is so much larger."""
BIAS = "head.output.bias"
A_SWAP = (
    f"a branch's biases change by {SHIFT}: read, verified, compiled, compared with its golden inputs, warmed, put in "
    "place; tasks take turns; the other version follows at a task's next turn"
)
CHANGED = (
    "a task's logits for the fixed batch have other bits than its version in place gives; of the states that were in "
    "place between asking and answering, the one that fits best counts"
)
Bits = dict[str, bytes]
"""Task to the bits of its logits for the fixed batch."""


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Swaps beside one caller who asks the same batch again and again, then beside several who ask anything."""
    n_warm, n_swaps, n_crowded = (4, 16, 8) if quick else (N_WARM, N_SWAPS, N_CROWDED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        shutil.copytree(real_bundle(), path)
        versions = _versions(path, Path(folder))
        with Engine.open(path, backend=choose_backend(precision="bf16")) as engine:
            engine.warm()
            swapper = _Swapper(engine, path, versions)
            known = swapper.known_bits()
            with _Caller(engine, swapper, known) as caller:
                swapper.swap(n_warm)
                before = caller.while_quiet(_memory)
                swapper.swap(n_swaps)
                after = caller.while_quiet(_memory)
            crowd = [_Crowd(engine, seed) for seed in range(N_CROWD)]
            for each in crowd:
                each.start()
            swapper.swap(n_crowded)
            for each in crowd:
                each.stop()
            n_tasks = len(engine.specs)
    seconds = swapper.seconds[n_warm : n_warm + n_swaps]
    lost = caller.lost + [each for member in crowd for each in member.lost]
    return Measured(
        figures={
            "swaps": float(len(seconds)),
            "lost": float(len(lost)),
            "changed": float(sum(caller.changed.values())),
            "memory_growth_share": after["Pss"] / before["Pss"] - 1,
        },
        details={
            "n_tasks": n_tasks,
            "n_texts": N_TEXTS,
            "n_requests": caller.n_requests,
            "n_answers_compared": caller.n_compared,
            "versions_seen": {task: sorted(seen) for task, seen in caller.seen.items()},
            "changed": caller.changed,
            "lost": lost[:20],
            "crowd": {"n_callers": N_CROWD, "n_swaps": n_crowded, "n_requests": sum(each.n_requests for each in crowd)},
            "megabytes_before": before,
            "megabytes_after": after,
            "swap_seconds": {"median": median(seconds), "slowest": max(seconds), "rounds": seconds},
            "request_ms": {"median": 1e3 * median(caller.seconds), "slowest": 1e3 * max(caller.seconds)},
            "a_swap": A_SWAP,
            "changed_means": CHANGED,
        },
    )


def _memory() -> dict[str, float]:
    return {name: resident_megabytes(name) for name in ("Pss", "Pss_Anon")}


def _versions(path: Path, folder: Path) -> dict[str, tuple[Path, Path]]:
    """For each task the folders of two versions: the present one, and one with other biases."""
    bundle = open_bundle(path)
    found = {}
    for task in bundle.manifest.tasks:
        stored = bundle.branch(task)
        folders = (folder / f"{task}-a", folder / f"{task}-b")
        write_branch(folders[0], stored.spec, stored.tensors, stored.golden)
        write_shifted(folders[1], stored)
        found[task] = folders
    return found


def write_shifted(folder: Path, stored: StoredBranch, amount: float = SHIFT) -> None:
    """Write a branch whose every second logit is larger by so much, with golden outputs that say so."""
    shift = _shift(stored, amount)
    tensors = {**stored.tensors, BIAS: stored.tensors[BIAS] + shift}
    lines = tuple(tuple(tuple((np.float32(line) + shift).tolist()) for line in row) for row in stored.golden.logits)
    write_branch(folder, stored.spec, tensors, msgspec.structs.replace(stored.golden, logits=lines))


def _shift(stored: StoredBranch, amount: float) -> np.ndarray:
    # every second label, so that answers change and not only a constant that softmax takes out again
    return np.where(np.arange(stored.spec.n_outputs) % 2 == 0, np.float32(amount), np.float32(0))


@dataclass(slots=True)
class _Swapper:
    """Replaces branches, the tasks in turn.

    Attributes:
        seconds: What each `Engine.activate` took.
        n_swaps: Begun.
        n_done: Ended.
    """

    engine: Engine
    path: Path
    versions: dict[str, tuple[Path, Path]]
    seconds: list[float] = field(default_factory=list)
    n_swaps: int = 0
    n_done: int = 0

    def known_bits(self) -> dict[str, tuple[bytes, bytes]]:
        """Bits of the fixed batch under both versions of every task, taken while nobody else asks; ends as it began."""
        contestant, asked = EngineContestant(self.engine), texts(N_TEXTS, 0)
        first = _bits(contestant, asked)
        self._put_all(1)
        second = _bits(contestant, asked)
        self._put_all(0)
        return {task: (first[task], second[task]) for task in first}

    def version(self, task: str, n_swaps: int) -> int:
        """Which version of a task is in place after so many swaps."""
        place, n_tasks = list(self.versions).index(task), len(self.versions)
        return (n_swaps - place + n_tasks - 1) // n_tasks % 2

    def swap(self, n: int) -> None:
        """Replace `n` branches, one after the other."""
        for _ in range(n):
            began = time.perf_counter()
            self._next()
            self.seconds.append(time.perf_counter() - began)
        print(f"{self.n_swaps} swaps, the last {n} at {1e3 * median(self.seconds[-n:]):.0f} ms", flush=True)

    def _put_all(self, version: int) -> None:
        for folders in self.versions.values():
            replace(open_bundle(self.path), folders[version])
        self.engine.activate(open_bundle(self.path))

    def _next(self) -> None:
        tasks = list(self.versions)
        task = tasks[self.n_swaps % len(tasks)]
        self.n_swaps += 1
        version = self.version(task, self.n_swaps)
        replace(open_bundle(self.path), self.versions[task][version])
        changed = self.engine.activate(open_bundle(self.path))
        if changed != (task,):
            raise RuntimeError(f"swap {self.n_swaps}: {changed} changed instead of {task!r}")
        self.n_done += 1


def _bits(contestant: EngineContestant, asked: Sequence[str]) -> Bits:
    answers = contestant.answer(asked)
    return {task: b"".join(np.ascontiguousarray(row).tobytes() for row in rows) for task, rows in answers.items()}


class _Caller:
    """Asks the same batch again and again, one request at a time, so that its shapes are always the same.

    Attributes:
        lost: What was said of requests that had no answer.
        changed: Task to how often its bits were none of its versions'.
        seen: Task to which of its versions were seen.
        n_requests: Answered.
        n_compared: Answers of one task to one text that were compared.
        seconds: Of each request.
    """

    def __init__(self, engine: Engine, swapper: _Swapper, known: dict[str, tuple[bytes, bytes]]) -> None:
        self._contestant, self._swapper, self._known = EngineContestant(engine), swapper, known
        self._asked = texts(N_TEXTS, 0)
        self._quiet, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.lost: list[str] = []
        self.changed = dict.fromkeys(known, 0)
        self.seen: dict[str, set[int]] = {task: set() for task in known}
        self.n_requests = self.n_compared = 0
        self.seconds: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def while_quiet(self, call: Any) -> Any:
        """Call while no request runs."""
        with self._quiet:
            return call()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._quiet:
                began, n_done = time.perf_counter(), self._swapper.n_done
                try:
                    found = _bits(self._contestant, self._asked)
                except TrunklineError as error:
                    self.lost.append(str(error))
                    continue
                self.seconds.append(time.perf_counter() - began)
            self._compare(found, range(n_done, self._swapper.n_swaps + 1))

    def _compare(self, found: Bits, states: range) -> None:
        """Against every state that was in place meanwhile."""
        self.n_requests += 1
        self.n_compared += N_TEXTS * len(found)
        wrong = min((self._wrong(found, n_swaps) for n_swaps in states), key=len)
        for task in wrong:
            self.changed[task] += 1
        for task, versions in self._known.items():
            self.seen[task].update(number for number, bits in enumerate(versions) if bits == found[task])

    def _wrong(self, found: Bits, n_swaps: int) -> list[str]:
        version = self._swapper.version
        return [task for task, versions in self._known.items() if found[task] != versions[version(task, n_swaps)]]


class _Crowd:
    """A caller who asks different texts and tasks, so that batches are mixed anew each time.

    Attributes:
        lost: What was said of requests that had no answer, or too few.
        n_requests: All.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine, self._seed = engine, seed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.lost: list[str] = []
        self.n_requests = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present request."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        rng = np.random.default_rng(self._seed)
        names, pool = list(self._engine.specs), texts(500, self._seed)
        while not self._stopped.is_set():
            asked = [pool[place] for place in rng.integers(len(pool), size=int(rng.integers(1, 9)))]
            tasks = [names[place] for place in rng.permutation(len(names))[: int(rng.integers(1, len(names) + 1))]]
            self.n_requests += 1
            try:
                answers = list(self._engine.stream(asked, tasks=tasks, caller=str(self._seed)))
            except TrunklineError as error:
                self.lost.append(str(error))
                continue
            if {(each.index, each.task) for each in answers} != {
                (i, task) for i in range(len(asked)) for task in tasks
            }:
                self.lost.append(f"{len(answers)} of {len(asked) * len(tasks)} answers")


def markdown_table(result: dict[str, Any]) -> str:
    """Figures beside what they are to be."""
    figures, details = result["figures"], result["details"]
    before, after = details["megabytes_before"], details["megabytes_after"]
    swap, request = details["swap_seconds"], details["request_ms"]
    rows: Sequence[tuple[str, str, str]] = (
        ("swaps", f"{figures['swaps']:.0f}", "200"),
        ("requests lost", f"{figures['lost']:.0f} of {details['n_requests'] + details['crowd']['n_requests']}", "0"),
        ("answers changed in bits", f"{figures['changed']:.0f} of {details['n_answers_compared']}", "0"),
        ("memory growth (PSS)", f"{100 * figures['memory_growth_share']:.1f}%", "at most 5%"),
        ("memory before, after (PSS, MB)", f"{before['Pss']:.0f}, {after['Pss']:.0f}", ""),
        ("of it anonymous, MB", f"{before['Pss_Anon']:.0f}, {after['Pss_Anon']:.0f}", ""),
        ("a swap: median, slowest, s", f"{swap['median']:.2f}, {swap['slowest']:.2f}", ""),
        ("a request meanwhile: median, slowest, ms", f"{request['median']:.0f}, {request['slowest']:.0f}", ""),
    )  # fmt: skip
    lines = ["| | measured | to be |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """What each swap took."""
    with picture(path, width=8, height=3) as figure:
        axes = figure.subplots()
        axes.plot(result["details"]["swap_seconds"]["rounds"], ".", color="tab:blue")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("swap")
        axes.set_ylabel("seconds, under load")


BENCHMARK = Benchmark(
    name="engine-swaps",
    purpose="200 swaps under load: nothing lost, nothing else changed, no memory left behind",
    measure=measure,
    after=lambda path: publish(path, "engine-swaps", table=markdown_table, draw=draw),
)
