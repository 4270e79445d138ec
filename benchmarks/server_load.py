"""`server-load`: what the edge adds to the engine, how long requests wait below the peak, and what other tasks cost."""

import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.engine_agreement import real_bundle
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import measured_by, picture, publish
from benchmarks.peers.texts import source, texts
from benchmarks.served import Served
from benchmarks.server_bare import WARM_S, BareEngine, Done, Work
from benchmarks.server_bundle import part_of
from benchmarks.server_load_generator import N_CONNECTIONS, Answered, closed_loop, open_loop, poisson
from trunkline.bundle.store import open_bundle

SEED = 20251125
N_TEXTS, PER_REQUEST = 2048, 32
SHARE_OF_PEAK = 0.7
ONE_TASK = "hwu64_intent"
PATIENT = ("--max-wait-ms", "60000", "--deadline-ms", "60000")
"""A closed loop of large requests waits longer than a server takes by itself; nothing is to be refused here."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        n_rounds: In which whatever is compared takes turns.
        closed_s: Of a closed loop.
        open_s: Of an open loop.
    """

    n_rounds: int
    closed_s: int
    open_s: float


FULL, QUICK = Size(n_rounds=5, closed_s=8, open_s=20.0), Size(n_rounds=1, closed_s=4, open_s=8.0)


@dataclass(frozen=True, slots=True)
class Kind:
    """How requests are made whose processor time is compared.

    Attributes:
        n_texts: Of a request.
        n_different: Texts are drawn from so many.
        cache_mb: For results; with it all answers are found in the cache, and the edge is what is left.
    """

    n_texts: int
    n_different: int = N_TEXTS
    cache_mb: int = 0


KINDS = {"batched": Kind(PER_REQUEST), "single": Kind(1), "cached": Kind(1, n_different=64, cache_mb=256)}


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Server and bare engine take turns; then an open loop; then two servers asked one task."""
    size = QUICK if quick else FULL
    said = list(dict.fromkeys(texts(2 * N_TEXTS, SEED)))[:N_TEXTS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        costs = {name: _costs(kind, said[: kind.n_different], folder, size) for name, kind in KINDS.items()}
        waits = _waits(said, size)
        alone = _one_task(said, folder, size)
    us = {
        name: {who: median(each.processor_us for each in found[who]) for who in found} for name, found in costs.items()
    }
    shares = {name: _shares(found) for name, found in costs.items()}
    return Measured(
        figures={
            "batched_share": median(shares["batched"]),
            "single_share": median(shares["single"]),
            "edge_us": us["cached"]["server"] - us["cached"]["engine"],
            "p99_over_p50": median(each["p99_ms"] / each["p50_ms"] for each in waits["rounds"]),
            "one_task_p99_ratio": median(
                among["p99_ms"] / only["p99_ms"]
                for among, only in zip(alone["rounds"]["among others"], alone["rounds"]["alone"], strict=True)
            ),
        },
        details={
            "seed": SEED,
            "texts": source(),
            "n_tasks": len(open_bundle(real_bundle()).manifest.tasks),
            "n_connections": N_CONNECTIONS,
            "processor_us_per_text": us,
            "shares": shares,
            "rounds": {
                name: {who: [msgspec.to_builtins(each) for each in done] for who, done in found.items()}
                for name, found in costs.items()
            },
            "open_loop": waits,
            "one_task": alone,
        },
    )


def _shares(found: Mapping[str, Sequence[Done]]) -> list[float]:
    return [bare.processor_us / ours.processor_us for bare, ours in zip(found["engine"], found["server"], strict=True)]


def _costs(kind: Kind, said: Sequence[str], folder: Path, size: Size) -> dict[str, list[Done]]:
    """Processor time for each text, of the server and of the engine alone, with as many requests at a time."""
    found: dict[str, list[Done]] = {"engine": [], "server": []}
    lines = folder / "texts"
    lines.write_text("".join(f"{text}\n" for text in said), encoding="utf-8")
    groups = [said[first : first + kind.n_texts] for first in range(0, len(said), kind.n_texts)]
    bodies = [msgspec.json.encode({"texts": group}) for group in groups]
    work = Work(kind.n_texts, N_CONNECTIONS, size.closed_s)
    with (
        BareEngine(real_bundle(), lines, kind.cache_mb) as bare,
        Served(real_bundle(), "--cache-mb", str(kind.cache_mb), *PATIENT) as server,
    ):
        for number in range(size.n_rounds):
            runs = {"engine": lambda: bare.run(work), "server": lambda: run_server(server, bodies, size.closed_s)}
            for who in ("engine", "server") if number % 2 == 0 else ("server", "engine"):
                found[who].append(runs[who]())
                print(f"{kind}: {who} {found[who][-1].processor_us:.0f} us of a processor for a text", flush=True)
    return found


def run_server(server: Served, bodies: Sequence[bytes], seconds: float) -> Done:
    """A closed loop; what happens in the seconds behind a short warm-up counts."""
    whole = round(WARM_S + seconds + 1.0)
    load = threading.Thread(target=lambda: ask(server, bodies, whole))
    load.start()
    time.sleep(WARM_S)
    before = _progress(server)
    time.sleep(seconds)
    after = _progress(server)
    load.join()
    return Done(*(late - early for early, late in zip(before, after, strict=True)))


def ask(server: Served, bodies: Sequence[bytes], seconds: int) -> float:
    """Requests a second of a closed loop.

    Raises:
        RuntimeError: One failed.
    """
    seen = closed_loop(f"{server.url}/v1/analyze", bodies, seconds, headers=server.headers)
    if seen.not_2xx or seen.unanswered:
        raise RuntimeError(f"{seen.not_2xx} requests were refused, {seen.unanswered} had no answer: {server.log()}")
    return seen.per_s


def _progress(server: Served) -> tuple[float, float, float]:
    """Texts that all tasks answered, seconds of a processor, seconds on the wall."""
    told = httpx.get(f"{server.url}/metrics", headers=server.headers).text
    counts = [
        sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if sample.name == "trunkline_answers_total"
    ]
    return sum(counts) / max(len(counts), 1), server.processor_s(), time.perf_counter()


def _waits(said: Sequence[str], size: Size) -> dict[str, Any]:
    """Latency of single texts at a share of the server's own peak."""
    bodies = [msgspec.json.encode({"texts": [text]}) for text in said]
    with Served(real_bundle(), "--cache-mb", "0") as server:
        ask(server, bodies, 2)
        peak = ask(server, bodies, size.closed_s)
        rounds = [_open(server, bodies, SHARE_OF_PEAK * peak, size.open_s, number) for number in range(size.n_rounds)]
    return {"peak_per_s": peak, "rate_per_s": SHARE_OF_PEAK * peak, "rounds": rounds}


def _one_task(said: Sequence[str], folder: Path, size: Size) -> dict[str, Any]:
    """One task asked of a server that has all, and of one that has it alone; the same moments for both."""
    bodies = [msgspec.json.encode({"texts": [text], "tasks": [ONE_TASK]}) for text in said]
    part = part_of(real_bundle(), (ONE_TASK,), folder)
    rounds: dict[str, list[dict[str, Any]]] = {"among others": [], "alone": []}
    with Served(real_bundle(), "--cache-mb", "0") as all_tasks, Served(part, "--cache-mb", "0") as alone:
        servers = {"among others": all_tasks, "alone": alone}
        for server in servers.values():
            ask(server, bodies, 2)
        peaks = {name: ask(server, bodies, size.closed_s) for name, server in servers.items()}
        rate = SHARE_OF_PEAK * min(peaks.values())
        for number in range(size.n_rounds):
            for name in servers if number % 2 == 0 else reversed(servers):
                rounds[name].append(_open(servers[name], bodies, rate, size.open_s, number))
    return {"task": ONE_TASK, "peaks_per_s": peaks, "rate_per_s": rate, "rounds": rounds}


def _open(server: Served, bodies: Sequence[bytes], rate: float, seconds: float, number: int) -> dict[str, Any]:
    load = poisson(rate, seconds, n_bodies=len(bodies), seed=SEED + number)
    seen: Answered = open_loop(f"{server.url}/v1/analyze", bodies, load, headers=server.headers)
    told = seen.told()
    print(f"{rate:.0f} a second: P50 {told['p50_ms']:.1f} ms, P99 {told['p99_ms']:.1f} ms", flush=True)
    return told


def markdown_table(result: dict[str, Any]) -> str:
    """Figures beside what they are to be, and what is behind them."""
    figures, details = result["figures"], result["details"]
    us, waits, alone = details["processor_us_per_text"], details["open_loop"], details["one_task"]
    rows = [
        ("`batched_share`", f"{figures['batched_share']:.3f}", "at least 0.9"),
        ("`single_share`", f"{figures['single_share']:.3f}", "at least 0.7"),
        ("`edge_us`", f"{figures['edge_us']:.0f}", "at most 200"),
        ("`p99_over_p50`", f"{figures['p99_over_p50']:.2f}", "at most 3"),
        ("`one_task_p99_ratio`", f"{figures['one_task_p99_ratio']:.2f}", "at most 1.2"),
    ]
    lines = ["| figure | measured | to be |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", "| processor time for a text, µs | the engine alone | the server | share |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {each['engine']:.0f} | {each['server']:.0f} | {median(details['shares'][name]):.3f} |"
        for name, each in us.items()
    ]
    lines += ["", "| open loop, medians of the rounds | requests a second | P50, ms | P99, ms |", "|---|---|---|---|"]
    for name, rate, rounds in (
        ("all tasks", waits["rate_per_s"], waits["rounds"]),
        *((f"one task, {name}", alone["rate_per_s"], alone["rounds"][name]) for name in alone["rounds"]),
    ):
        p50, p99 = (median(each[key] for each in rounds) for key in ("p50_ms", "p99_ms"))
        lines.append(f"| {name} | {rate:.0f} | {p50:.1f} | {p99:.1f} |")
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """Where the processor time of a text goes."""
    us = result["details"]["processor_us_per_text"]
    with picture(path, width=7, height=2.4) as figure:
        axes = figure.subplots()
        engine = [each["engine"] for each in us.values()]
        axes.barh(list(us), engine, color="tab:blue", label="the engine alone")
        rest = [max(0.0, each["server"] - each["engine"]) for each in us.values()]
        axes.barh(list(us), rest, left=engine, color="tab:orange", label="the server adds")
        axes.set_xlabel("processor time for a text, µs")
        axes.legend()


BENCHMARK = Benchmark(
    name="server-load",
    purpose="what HTTP adds to the engine, waiting at 70% of the peak, one task beside others",
    measure=measure,
    after=lambda path: publish(path, "server-load", table=markdown_table, draw=draw),
)
