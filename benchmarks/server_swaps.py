"""`server-swaps`: tasks change under load: nothing fails, nobody gets a version that was not in place, nobody waits."""

import gc
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import msgspec
import numpy as np

from benchmarks.engine_agreement import real_bundle
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import measured_by, picture, publish
from benchmarks.peers.texts import texts
from benchmarks.served import Served
from benchmarks.swaps_changes import Changer, make_versions, shuffled_kinds
from benchmarks.swaps_judge import judge, timeline_of
from benchmarks.swaps_load import Answered, OpenLoop, Seen, bodies_of, peak_of
from trunkline.bundle.registry import Registry
from trunkline.bundle.store import open_bundle

SEED = 20251125
SHARE_OF_PEAK = 0.5
N_TEXTS, N_CANDIDATES = 64, 4096
MARGIN = 0.05
"""Texts are asked for which every task is so far from another answer: in bf16 probabilities move by up to 0.02."""
OPTIONS = ("--cache-mb", "0")
N_SETTLING = 120
"""Changes before anything is measured: a server whose tasks have canaries runs more branches a request, and its peak is
lower."""
_SWITCH_S = 0.0005


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        n_changes: In all.
        n_uploads: Of them.
        n_rounds: Each a stretch without changes and one with.
        round_s: Of each stretch with changes.
        quiet_s: Of each stretch without.
        peak_s: The server's peak is looked for so long.
    """

    n_changes: int = 1000
    n_uploads: int = 100
    n_rounds: int = 10
    round_s: float = 60.0
    quiet_s: float = 30.0
    peak_s: float = 10.0


FULL, QUICK = Size(), Size(n_changes=60, n_uploads=10, n_rounds=4, round_s=15.0, quiet_s=10.0, peak_s=4.0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Requests of one stretch of time.

    Attributes:
        changing: Whether tasks changed meanwhile.
        answered: Every request that was due in it.
        latest_start_s: See `OpenLoop`.
    """

    changing: bool
    answered: list[Answered]
    latest_start_s: float

    def p_ms(self, percent: float) -> float:
        """Latency from when a request was due, in milliseconds."""
        return 1e3 * float(np.percentile([each.done - each.due for each in self.answered], percent))


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Stretches with and without changes take turns, at half of the server's peak."""
    size = QUICK if quick else FULL
    sys.setswitchinterval(_SWITCH_S)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "registry"
        created = Registry.create(path, open_bundle(real_bundle()), who="bench", why="changes under load").state.seq
        n_tasks = len(open_bundle(real_bundle()).manifest.tasks)
        versions = make_versions(real_bundle(), Path(temporary), n_tasks + size.n_uploads)
        with Served(path, *OPTIONS) as server:
            asked, before = stable_texts(server, path)
            requests = bodies_of(server, asked)
            changer = Changer(server.url, server.headers, list(before[0]), random.Random(SEED))
            # A second version of each task, so that there is something to change to, and as many canaries as later.
            changer.run(["upload"] * n_tasks, versions[:n_tasks], 0.0)
            changer.run(shuffled_kinds(N_SETTLING, 0, changer.rng), [], 0.0)
            settling, changer.made = changer.made, []
            peak = peak_of(server, requests, size.peak_s)
            print(f"{len(asked)} texts, peak {peak:.0f} requests a second", flush=True)
            with _no_collections():
                changer, stretches = _stretches(
                    server, requests, changer, versions[n_tasks:], size, SHARE_OF_PEAK * peak
                )
            memory = server.pss_megabytes()
        entries = [msgspec.to_builtins(each) for each in Registry.open(path).history()]
    start = {task: frozenset({seen.version}) for task, seen in before[0].items()}
    later = [{"percent": None, **entry} for entry in entries if entry["seq"] > created]
    answered = [each for stretch in stretches for each in stretch.answered]
    every = [*settling, *changer.made]
    judged = judge(answered, timeline_of(later, start, every), before)
    failed_changes = [f"{each.kind}: {each.failure}" for each in every if each.seq is None]
    p99 = {changing: [each.p_ms(99) for each in stretches if each.changing == changing] for changing in (False, True)}
    return Measured(
        figures={
            "changes": float(sum(each.seq is not None for each in changer.made)),
            "failed": float(len(judged.failed) + len(failed_changes)),
            "wrong_version": float(len(judged.wrong_version)),
            "changed": float(len(judged.changed)),
            "p99_ratio": median(p99[True]) / median(p99[False]),
        },
        details={
            "seed": SEED,
            "peak_per_s": peak,
            "rate_per_s": SHARE_OF_PEAK * peak,
            "n_texts": len(asked),
            "n_requests": len(answered),
            "n_answers": judged.n_answers,
            "failed": (judged.failed + failed_changes)[:20],
            "wrong_version": judged.wrong_version[:20],
            "changed": judged.changed[:20],
            "largest_difference": judged.largest_difference,
            "versions_seen": dict(judged.versions),
            "stretches": [
                {
                    "changing": each.changing,
                    "n_requests": len(each.answered),
                    "p50_ms": each.p_ms(50),
                    "p99_ms": each.p_ms(99),
                    "latest_start_ms": 1e3 * each.latest_start_s,
                }
                for each in stretches
            ],
            "changes": changes_by_kind(changer),
            "megabytes": memory,
        },
    )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Millions of answers are kept, in no circles: to look through them stops the generator for half a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _stretches(
    server: Served, requests: list[bytes], changer: Changer, versions: list[Path], size: Size, rate: float
) -> tuple[Changer, list[Stretch]]:
    """In turns; changes come from a process of their own, so that requests are sent, and answers timed, as without."""
    kinds = shuffled_kinds(size.n_changes, size.n_uploads, changer.rng)
    rng, found = random.Random(SEED), []
    rng.shuffle(versions)
    each, left = size.n_changes // size.n_rounds, iter(versions)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        with OpenLoop(server, requests, rate, seed=SEED):
            changer = other.submit(changer.run, [], [], 0.0).result()  # It is there before anything is measured.
            time.sleep(min(5.0, size.round_s / 3))
        for number in range(size.n_rounds):
            for changing in (False, True) if number % 2 == 0 else (True, False):
                wanted = kinds[number * each : (number + 1) * each]
                archives = list(islice(left, wanted.count("upload"))) if changing else []
                with OpenLoop(server, requests, rate, seed=SEED + number) as loop:
                    if changing:
                        changer = other.submit(changer.run, wanted, archives, size.round_s).result()
                    else:
                        time.sleep(size.quiet_s)
                found.append(Stretch(changing, loop.answered, loop.latest_start_s))
                p50, p99 = found[-1].p_ms(50), found[-1].p_ms(99)
                print(f"{'changes' if changing else 'quiet'}: P50 {p50:.1f} ms, P99 {p99:.1f} ms", flush=True)
    return changer, found


def changes_by_kind(changer: Changer) -> dict[str, Any]:
    """How many of each kind, and what they took."""
    counts = Counter(each.kind for each in changer.made)
    taken = {kind: [each.done - each.began for each in changer.made if each.kind == kind] for kind in counts}
    return {
        kind: {"n": counts[kind], "median_s": median(seconds), "slowest_s": max(seconds)}
        for kind, seconds in taken.items()
    }


def stable_texts(server: Served, path: Path) -> tuple[list[str], list[dict[str, Seen]]]:
    """Texts whose answers lie far from others, and these answers."""
    kinds = {task: entry.kind for task, entry in Registry.open(path).bundle().manifest.tasks.items()}
    asked, before = [], []
    with httpx.Client(base_url=server.url, headers=server.headers) as client:
        for text in dict.fromkeys(texts(N_CANDIDATES, SEED)):
            response = client.post("/v1/analyze", json={"texts": [text], "top_k": 2}).json()
            (results,) = response["results"]
            if all(_is_stable(results[task], kind) for task, kind in kinds.items()):
                asked.append(text)
                before.append(msgspec.convert(results, dict[str, Seen]))
            if len(asked) == N_TEXTS:
                break
    return asked, before


def _is_stable(answer: dict[str, Any], kind: str) -> bool:
    if kind == "tagging":
        return all(span["confidence"] > 0.5 + MARGIN for span in answer["spans"])
    first, second = answer["top"][:2]
    return not answer["abstained"] and first["confidence"] - second["confidence"] > MARGIN


def markdown_table(result: dict[str, Any]) -> str:
    """Figures beside what they are to be."""
    figures, details = result["figures"], result["details"]
    p99 = {
        changing: median(each["p99_ms"] for each in details["stretches"] if each["changing"] == changing)
        for changing in (False, True)
    }
    rows = [
        ("changes", f"{figures['changes']:.0f}", "1,000"),
        ("requests or changes that failed", f"{figures['failed']:.0f} of {details['n_requests']}", "0"),
        (
            "answers of a version that was not in place",
            f"{figures['wrong_version']:.0f} of {details['n_answers']}",
            "0",
        ),
        ("answers that changed", f"{figures['changed']:.0f} of {details['n_answers']}", "0"),
        ("P99 with changes and without, ms", f"{p99[True]:.1f}, {p99[False]:.1f}", ""),
        ("ratio of the two", f"{figures['p99_ratio']:.2f}", "at most 1.15"),
        ("requests a second, of a peak of", f"{details['rate_per_s']:.0f}, {details['peak_per_s']:.0f}", ""),
    ]
    rows += [
        (f"{kind}: times; median, slowest, s", f"{each['n']}; {each['median_s']:.2f}, {each['slowest_s']:.2f}", "")
        for kind, each in details["changes"].items()
    ]
    lines = ["| | measured | to be |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """P99 of each stretch."""
    with picture(path, width=8, height=3) as figure:
        axes = figure.subplots()
        for changing, color in ((False, "0.6"), (True, "tab:blue")):
            points = [
                (place, each["p99_ms"])
                for place, each in enumerate(result["details"]["stretches"])
                if each["changing"] == changing
            ]
            axes.bar(*zip(*points, strict=True), color=color, label="with changes" if changing else "without")
        axes.set_ylabel("P99, ms")
        axes.set_xlabel("stretch")
        axes.legend()


BENCHMARK = Benchmark(
    name="server-swaps",
    purpose="1,000 changes under load: nothing fails, no wrong version, P99 as without",
    measure=measure,
    after=lambda path: publish(path, "server-swaps", table=markdown_table, draw=draw),
)
