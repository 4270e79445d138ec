"""`server-overload`: five times the peak for a minute: what is refused is told at once, what is taken is answered."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.engine_agreement import real_bundle
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import measured_by, picture, publish
from benchmarks.peers.texts import source, texts
from benchmarks.served import Served
from benchmarks.server_load import ask
from benchmarks.server_load_generator import Answered, joined, open_loop, poisson
from trunkline.bundle.store import open_bundle

SEED = 20251125
N_TEXTS = 2048
TIMES_PEAK, SHARE_BEFORE = 5.0, 0.5
DEADLINE_MS = 3_000
N_CONNECTIONS = 2_000
"""More than requests that wait: as many as come within the longest wait."""
_WINDOW_S, _MANY = 0.25, 0.25


@dataclass(frozen=True, slots=True)
class Size:
    """How long each stretch is.

    Attributes:
        peak_s: The peak is looked for so long.
        calm_s: Before and behind.
        storm_s: Of overload.
    """

    peak_s: int
    calm_s: float
    storm_s: float


FULL, QUICK = Size(peak_s=10, calm_s=15.0, storm_s=60.0), Size(peak_s=4, calm_s=6.0, storm_s=10.0)


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """One open loop: half of the peak, five times the peak, half of it again."""
    size = QUICK if quick else FULL
    said = list(dict.fromkeys(texts(2 * N_TEXTS, SEED)))[:N_TEXTS]
    bodies = [msgspec.json.encode({"texts": [text], "deadline_ms": DEADLINE_MS}) for text in said]
    with Served(real_bundle(), "--cache-mb", "0") as server:
        ask(server, bodies, 2)
        peak = ask(server, bodies, size.peak_s)
        _storm(server, bodies, size, peak, storm_s=3.0, seed=SEED + 1)  # buffers grow once to what overload needs
        before = server.pss_megabytes()
        seen = _storm(server, bodies, size, peak, storm_s=size.storm_s, seed=SEED)
        after = server.pss_megabytes()
        crashes = int(not server.is_running) + server.log().count("Traceback")
    calm, storm = seen.between(0.0, size.calm_s), seen.between(size.calm_s, size.calm_s + size.storm_s)
    behind = seen.between(size.calm_s + size.storm_s, np.inf)
    late = (storm.status == 200) & (storm.latency_s - _unsent(storm) > DEADLINE_MS / 1e3)
    return Measured(
        figures={
            "crashes": float(crashes),
            "refusal_p99_ms": _refusals_ms(storm, 99),
            "late_admitted": float(late.sum()),
            "recovery_s": _recovery_s(calm, behind, size),
            "memory_growth_share": after / before - 1,
        },
        details={
            "seed": SEED,
            "texts": source(),
            "n_tasks": len(open_bundle(real_bundle()).manifest.tasks),
            "peak_per_s": peak,
            "deadline_ms": DEADLINE_MS,
            "n_connections": N_CONNECTIONS,
            "megabytes": {"before": before, "after": after},
            "calm": calm.told(),
            "storm": {**storm.told(), "seconds": size.storm_s, "refusal_p50_ms": _refusals_ms(storm, 50)},
            "behind": behind.told(),
            "retry_after_s": sorted({float(each) for each in storm.retry_after_s if np.isfinite(each)}),
            "seconds_of_the_run": _by_second(seen),
        },
    )


def _storm(server: Served, bodies: list[bytes], size: Size, peak: float, *, storm_s: float, seed: int) -> Answered:
    calm, storm = SHARE_BEFORE * peak, TIMES_PEAK * peak
    n_bodies = len(bodies)
    load = joined(
        [
            poisson(calm, size.calm_s, n_bodies=n_bodies, seed=seed),
            poisson(storm, storm_s, n_bodies=n_bodies, seed=seed + 10, start_s=size.calm_s),
            poisson(calm, size.calm_s, n_bodies=n_bodies, seed=seed + 20, start_s=size.calm_s + storm_s),
        ]
    )
    seen = open_loop(
        f"{server.url}/v1/analyze", bodies, load, headers=server.headers, n_connections=N_CONNECTIONS, wait_s=5.0
    )
    time.sleep(1.0)
    return seen


def _unsent(seen: Answered) -> np.ndarray:
    """How much later than due each request was sent: the server's deadline begins when a request arrives."""
    return np.nan_to_num(np.maximum(seen.sent_s - seen.due_s, 0.0))


def _refusals_ms(seen: Answered, percent: float) -> float:
    """Percentile of the time from sending to a refusal."""
    refused = np.isin(seen.status, (429, 503))
    return 1e3 * float(np.percentile((seen.latency_s - _unsent(seen))[refused], percent))


def _recovery_s(calm: Answered, behind: Answered, size: Size) -> float:
    """Seconds from the end of overload until requests are answered as before for a whole second.

    A stretch of a quarter of a second is not as before when more than a quarter of its requests are refused, or
    answered later than the P99 before the overload.
    """
    end_s = size.calm_s + size.storm_s
    unusual = (behind.status != 200) | ~(behind.latency_s <= calm.percentile_ms(99) / 1e3)
    places = ((behind.due_s - end_s) / _WINDOW_S).astype(int)
    n = int(places.max()) + 1
    is_usual = [not unusual[places == place].any() or unusual[places == place].mean() <= _MANY for place in range(n)]
    n_together = round(1 / _WINDOW_S)
    starts = [first for first in range(n - n_together + 1) if all(is_usual[first : first + n_together])]
    return _WINDOW_S * starts[0] if starts else float("inf")


def _by_second(seen: Answered) -> list[dict[str, float]]:
    found = []
    for second in range(int(seen.due_s[-1]) + 1):
        part = seen.between(second, second + 1)
        refused = np.isin(part.status, (429, 503))
        found.append(
            {
                "asked": len(part.status),
                "answered": int((part.status == 200).sum()),
                "refused": int(refused.sum()),
                "p99_ms": part.percentile_ms(99) if (part.status == 200).any() else 0.0,
            }
        )
    return found


def markdown_table(result: dict[str, Any]) -> str:
    """Figures beside what they are to be."""
    figures, details = result["figures"], result["details"]
    rows = [
        ("`crashes`", f"{figures['crashes']:.0f}", "0"),
        ("`refusal_p99_ms`", f"{figures['refusal_p99_ms']:.0f}", "at most 50"),
        ("`late_admitted`", f"{figures['late_admitted']:.0f}", "0"),
        ("`recovery_s`", f"{figures['recovery_s']:.2f}", "at most 2"),
        ("`memory_growth_share`", f"{figures['memory_growth_share']:.3f}", "at most 0.05"),
    ]
    lines = ["| figure | measured | to be |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", "| | requests | answers by status | P50 of 200s, ms | P99 of 200s, ms |", "|---|---|---|---|---|"]
    for name, key in (("half of the peak", "calm"), ("five times the peak", "storm"), ("half again", "behind")):
        each = details[key]
        codes = ", ".join(f"{code}: {n}" for code, n in each["status"].items())
        lines.append(f"| {name} | {each['n_requests']} | {codes} | {each['p50_ms']:.1f} | {each['p99_ms']:.1f} |")
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """What became of the requests of each second."""
    seconds = result["details"]["seconds_of_the_run"]
    with picture(path, width=8, height=3) as figure:
        axes = figure.subplots()
        places = range(len(seconds))
        for name, color in (("asked", "0.7"), ("refused", "tab:red"), ("answered", "tab:blue")):
            axes.step(places, [each[name] for each in seconds], where="post", color=color, label=name)
        axes.set_xlabel("second")
        axes.set_ylabel("requests")
        axes.legend()


BENCHMARK = Benchmark(
    name="server-overload",
    purpose="five times the peak for a minute: no crash, quick refusals, no late answer, quick recovery",
    measure=measure,
    after=lambda path: publish(path, "server-overload", table=markdown_table, draw=draw),
)
