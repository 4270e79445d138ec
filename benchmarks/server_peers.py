"""`server-peers`: nine sentence tasks served by us, by Infinity, and by single models in the fastest runtime."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
import platformdirs

from benchmarks.engine_agreement import real_bundle
from benchmarks.harness import Benchmark, Measured
from benchmarks.pages import publish
from benchmarks.peers.infinity_peer import OPTIONS, infinity_server, infinity_versions, write_classifiers
from benchmarks.peers.processes import tree_megabytes
from benchmarks.peers.single_peer import single_server, write_graphs
from benchmarks.peers.texts import source, texts
from benchmarks.served import Served
from benchmarks.server_bundle import part_of, random_bundle, sentence_tasks
from benchmarks.server_load_generator import N_CONNECTIONS, closed_loop, open_loop, poisson
from benchmarks.server_peers_report import draw, figures_of, markdown_table
from trunkline.bundle.store import open_bundle
from trunkline.core.errors import BundleError
from trunkline.engine.backends.choose import choose_backend, describe

SEED = 20251125
N_TEXTS = 512
SHARE_OF_PEAK = 0.7
PRECISIONS = {"bf16": "bf16", "fp32": "f32"}
"""OpenVINO's names of ours."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        n_rounds: Each starts every server once.
        warm_s: Of load before anything is measured.
        closed_s: Of the closed loop.
        open_s: Of the open loop.
    """

    n_rounds: int = 3
    warm_s: int = 5
    closed_s: int = 20
    open_s: int = 20


FULL, QUICK = Size(), Size(n_rounds=1, warm_s=3, closed_s=8, open_s=8)


class Running(Protocol):
    """A server process."""

    pid: int

    @property
    def url(self) -> str:
        """Where HTTP begins."""

    @property
    def headers(self) -> dict[str, str]:
        """Of every request: the key, where it asks for one."""


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """A server that is measured.

    Attributes:
        name: In results.
        start: Starts it.
        path: That answers.
        bodies: Of requests; they take turns.
        answers_of: Tasks that an answer's body holds.
        answers_a_request: Task answers.
        n_connections: Requests at a time.
        in_open_loop: Whether it also gets the open loop.
    """

    name: str
    start: Callable[[], AbstractContextManager[Running]]
    path: str
    bodies: Sequence[bytes]
    answers_of: Callable[[Any], int]
    answers_a_request: int
    n_connections: int = N_CONNECTIONS
    in_open_loop: bool = True


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Rounds in which each server is started, loaded and ended, in turn."""
    size = QUICK if quick else FULL
    cache = platformdirs.user_cache_path("trunkline") / "benchmarks"
    backend = choose_backend()
    path, said = _bundle(cache)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = part_of(path, sentence_tasks(path), folder)
        tasks = {name: entry.labels for name, entry in open_bundle(bundle).manifest.tasks.items()}
        graphs = cache / f"server-peers-{version('openvino')}"
        contestants = _contestants(bundle, tasks, folder, graphs, PRECISIONS[backend.precision])
        rounds = _rounds(contestants, size)
    return Measured(
        figures=figures_of(rounds),
        details={
            "seed": SEED,
            "bundle": said,
            "tasks": {name: len(labels) for name, labels in tasks.items()},
            "texts": source(),
            "n_texts": N_TEXTS,
            "engine": describe(backend),
            "infinity": {"options": " ".join(OPTIONS), "versions": infinity_versions()},
            "connections": {each.name: each.n_connections for each in contestants},
            "answers_a_request": {each.name: each.answers_a_request for each in contestants},
            "rounds": rounds,
        },
    )


def _bundle(cache: Path) -> tuple[Path, str]:
    try:
        path = real_bundle()
    except BundleError:
        return random_bundle(cache / "assistant12.random"), "of the shape of assistant12, random branches"
    return path, "assistant12, trained"


def _contestants(
    bundle: Path, tasks: dict[str, tuple[str, ...]], folder: Path, graphs: Path, precision: str
) -> list[Contestant]:
    asked = list(dict.fromkeys(texts(2 * N_TEXTS, SEED)))[:N_TEXTS]
    whole = [msgspec.json.encode({"texts": [text]}) for text in asked]
    singles = [msgspec.json.encode({"model": task, "input": [text]}) for text in asked for task in tasks]
    models = write_classifiers(folder / "classifiers", tasks)
    written = write_graphs(graphs, tasks)
    n = len(tasks)
    return [
        Contestant(
            "single_models", lambda: single_server(folder, written, precision=precision, texts=asked),
            "/v1/analyze", whole, lambda body: len(body["results"][0]), n,
        ),
        Contestant(
            "infinity", lambda: infinity_server(models), "/classify", singles, lambda body: len(body["data"]), 1,
            in_open_loop=False,
        ),
        Contestant(
            "trunkline", lambda: Served(bundle, "--cache-mb", "0"), "/v1/analyze", whole,
            lambda body: len(body["results"][0]), n,
        ),
    ]  # fmt: skip


def _rounds(contestants: list[Contestant], size: Size) -> list[dict[str, Any]]:
    """Each round begins with another server; the first sets the rate of every open loop."""
    rounds: list[dict[str, Any]] = []
    rate = 0.0
    for number in range(size.n_rounds):
        start = number % len(contestants)
        found: dict[str, Any] = {}
        for each in contestants[start:] + contestants[:start]:
            with each.start() as server:
                found[each.name] = _closed(each, server, size)
                # the slower of those that get the open loop is the first of the first round
                rate = rate or SHARE_OF_PEAK * found[each.name]["requests_a_second"]
                if each.in_open_loop:
                    found[each.name]["open"] = _open(each, server, rate, size)
            print(f"round {number + 1}, {each.name}: {_line(found[each.name])}", flush=True)
        rounds.append(found)
    return rounds


def _closed(each: Contestant, server: Running, size: Size) -> dict[str, Any]:
    url = f"{server.url}{each.path}"
    for body in each.bodies[: 2 * each.answers_a_request]:
        said = httpx.post(url, content=body, headers={"Content-Type": "application/json", **server.headers}, timeout=60)
        n_answers = each.answers_of(said.raise_for_status().json())
        if n_answers != each.answers_a_request:
            raise RuntimeError(f"{each.name}: answers {n_answers} tasks instead of {each.answers_a_request}")
    how = {"headers": server.headers, "n_connections": each.n_connections}
    closed_loop(url, each.bodies, size.warm_s, **how)
    seen = closed_loop(url, each.bodies, size.closed_s, **how)
    if seen.not_2xx or seen.unanswered:
        raise RuntimeError(f"{each.name}: {seen.not_2xx} requests were refused, {seen.unanswered} not answered")
    return {
        "answers_a_second": each.answers_a_request * seen.per_s,
        "requests_a_second": seen.per_s,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "megabytes": tree_megabytes(server.pid),
        "generator_processor_share": seen.generator_share,
    }


def _open(each: Contestant, server: Running, rate: float, size: Size) -> dict[str, Any]:
    load = poisson(rate, size.open_s, n_bodies=len(each.bodies), seed=SEED)
    seen = open_loop(f"{server.url}{each.path}", each.bodies, load, headers=server.headers)
    return {"rate_a_second": rate, **seen.told()}


def _line(found: dict[str, Any]) -> str:
    said = (
        f"{found['answers_a_second']:.0f} answers a second, P50 {found['p50_ms']:.1f} ms, "
        f"P99 {found['p99_ms']:.1f} ms, {found['megabytes']:.0f} MB"
    )
    if "open" in found:
        opened = found["open"]
        said += (
            f"; open loop at {opened['rate_a_second']:.0f} a second: P50 {opened['p50_ms']:.1f} ms, "
            f"P99 {opened['p99_ms']:.1f} ms"
        )
    return said


BENCHMARK = Benchmark(
    name="server-peers",
    purpose="nine sentence tasks a text: task answers a second beside Infinity and beside single models in OpenVINO",
    measure=measure,
    after=lambda path: publish(path, "server-peers", table=markdown_table, draw=draw),
)
