"""Where an engine's time goes: the same snapshot with a stopwatch around each program and each copy."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.engine_contestant import EngineContestant, Text
from trunkline.engine.backends.base import Backend, BranchPrograms, Program
from trunkline.engine.engine import Engine
from trunkline.engine.snapshot import LoadedBranch, LoadedTrunk, Snapshot

PROGRAMS = ("embeddings", "trunk layers", "whole branch layers", "folded layers", "taggers")
COPIES = ("picking tokens", "masks")


class Stopwatch:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def run(*inputs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*inputs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return run


class _Timed:
    """A program, timed."""

    def __init__(self, watch: Stopwatch, name: str, program: Program) -> None:
        self._run, self._inner = watch.timed(name, program), program

    def __call__(self, *inputs: Any) -> Any:
        return self._run(*inputs)

    def twin(self) -> Program:
        return self._inner.twin()


class _TimedBackend:
    """A backend whose copies are timed; everything else is the inner one's."""

    def __init__(self, watch: Stopwatch, inner: Backend) -> None:
        self._inner = inner
        self.take = watch.timed("picking tokens", inner.take)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _TimedMasks:
    def __init__(self, watch: Stopwatch, inner: Any) -> None:
        self.lines, self.first = watch.timed("masks", inner.lines), watch.timed("masks", inner.first)


def watched(engine: Engine, watch: Stopwatch) -> Engine:
    """A second engine on the same programs; the first must be idle while it runs."""
    trunk = _trunk(engine.snapshot.trunk, watch)
    branches = {task: _branch(branch, watch) for task, branch in engine.snapshot.branches.items()}
    backend: Any = _TimedBackend(watch, engine.backend)
    return Engine(Snapshot(trunk, branches), backend)


def profile(engine: Engine, tasks: Sequence[str], texts: Sequence[Text], n_rounds: int) -> dict[str, Any]:
    """Medians over rounds, in milliseconds, and the shares of a request.

    Returns:
        ``ms`` and ``share`` by what the time was spent on, ``total_ms``, and ``overhead_share``: all that is not spent
        in a program.
    """
    watch = Stopwatch()
    other = watched(engine, watch)
    contestant = EngineContestant(other, tasks)
    contestant.warm(texts)
    rounds: list[dict[str, float]] = []
    for _ in range(n_rounds):
        watch.seconds.clear()
        contestant.answer(texts)
        seen = contestant.seen
        found = {name: watch.seconds[name] for name in (*PROGRAMS, *COPIES)}
        found["tokenization"] = seen.encoded_s
        found["scheduling, packing, delivery"] = seen.last_s - sum(found.values())
        rounds.append(found | {"total": seen.last_s})
    other.close()
    middle = {name: median(each[name] for each in rounds) for name in rounds[0]}
    total = middle.pop("total")
    return {
        "ms": {name: round(1e3 * seconds, 3) for name, seconds in middle.items()},
        "share": {name: round(median(each[name] / each["total"] for each in rounds), 4) for name in middle},
        "total_ms": round(1e3 * total, 3),
        "overhead_share": median(1 - sum(each[name] for name in PROGRAMS) / each["total"] for each in rounds),
        "n_rounds": n_rounds,
    }


def _trunk(trunk: LoadedTrunk, watch: Stopwatch) -> LoadedTrunk:
    segments = tuple(replace(each, run=_Timed(watch, "trunk layers", each.run)) for each in trunk.segments)
    masks: Any = _TimedMasks(watch, trunk.masks)
    return replace(trunk, embed=_Timed(watch, "embeddings", trunk.embed), segments=segments, masks=masks)


def _branch(branch: LoadedBranch, watch: Stopwatch) -> LoadedBranch:
    inner = branch.programs
    before = inner.before and _Timed(watch, "whole branch layers", inner.before)
    top = _Timed(watch, "folded layers" if inner.reads == "first" else "taggers", inner.top)
    return replace(branch, programs=BranchPrograms(inner.reads, before, top))
