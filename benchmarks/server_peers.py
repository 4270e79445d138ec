"""`server-peers`: nine sentence tasks served by us, by Infinity, and by single models in the fastest runtime.

Twice: at the size of MiniLM with the trained bundle, and at that of BERT-base with random weights and the paper's plan.
"""

import os
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
from benchmarks.peers.infinity_peer import (
    OPTIONS,
    embedded_checkpoint,
    infinity_server,
    infinity_versions,
    write_classifiers,
)
from benchmarks.peers.processes import tree_megabytes
from benchmarks.peers.shapes import SHAPES
from benchmarks.peers.single_peer import single_server, write_graphs
from benchmarks.peers.texts import source, texts
from benchmarks.served import Served
from benchmarks.server_bundle import ASSISTANT12, XIAOAI9, part_of, random_bundle, random_checkpoint, sentence_tasks
from benchmarks.server_load import PATIENT
from benchmarks.server_load_generator import N_CONNECTIONS, closed_loop, open_loop, poisson
from benchmarks.server_peers_report import draw, figures_of, markdown_table
from trunkline.bundle.manifest import Manifest
from trunkline.bundle.store import open_bundle
from trunkline.core.errors import BundleError
from trunkline.engine.backends.choose import choose_backend, describe
from trunkline.model.cost import folds

SEED = 20251125
N_TEXTS = 512
N_CHECKED = 9
"""Requests whose answers are counted before the load: one for each model where each has its own."""
SHARE_OF_PEAK = 0.7
PRECISIONS = {"bf16": "bf16", "fp32": "f32"}
"""OpenVINO's names of ours."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        n_rounds: Each starts every server once.
        warm_s: Of load before anything is measured.
        closed_s: Of the closed loop; long beside what 32 requests take, as those under way at its end do not count.
        open_s: Of the open loop.
        batches: For which single models look for the fastest way to cut.
    """

    n_rounds: int
    warm_s: int
    closed_s: int
    open_s: int
    batches: tuple[int, ...]


FULL = {
    "minilm": Size(
        n_rounds=3, warm_s=5, closed_s=15, open_s=12,
        batches=(1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 29, 30, 31, 32),
    ),
    "bert-base": Size(n_rounds=2, warm_s=5, closed_s=40, open_s=15, batches=(1, 2, 4, 8, 16, 31, 32)),
}  # fmt: skip
QUICK = {
    "minilm": Size(n_rounds=1, warm_s=1, closed_s=4, open_s=4, batches=(1, 8)),
    "bert-base": Size(n_rounds=1, warm_s=2, closed_s=8, open_s=4, batches=(1, 8)),
}


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


@dataclass(frozen=True, slots=True)
class Scenario:
    """One backbone and one plan.

    Attributes:
        shape: Of the backbone, a name of `SHAPES`; the scenario's name too.
        bundle: Of sentence tasks alone.
        said: What the bundle is.
        checkpoint: Of the backbone.
    """

    shape: str
    bundle: Path
    said: str
    checkpoint: Path


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """One scenario after the other."""
    sizes = QUICK if quick else FULL
    cache = platformdirs.user_cache_path("trunkline") / "benchmarks"
    found = {}
    for make in (_trained, _random):
        with tempfile.TemporaryDirectory() as temporary:
            scenario = make(cache, Path(temporary))
            found[scenario.shape] = _measured(scenario, sizes[scenario.shape], cache, Path(temporary))
    return Measured(
        figures=figures_of({name: each["rounds"] for name, each in found.items()}),
        details={
            "seed": SEED,
            "texts": source(),
            "n_texts": N_TEXTS,
            "engine": describe(choose_backend()),
            "trunkline": {"options": " ".join(("--cache-mb 0", *PATIENT))},
            "infinity": {"options": " ".join(OPTIONS), "versions": infinity_versions()},
            "scenarios": found,
        },
    )


def layers_of(manifest: Manifest, n_layers: int) -> dict[str, int]:
    """Layers that a text passes in whole: on the plan of a bundle, and in a whole model for each of its tasks.

    Args:
        manifest: Of the bundle.
        n_layers: Of each single model.
    """
    own = sum(entry.own_layers for entry in manifest.tasks.values())
    folded = sum(folds(entry.kind, entry.pooling) and entry.own_layers > 0 for entry in manifest.tasks.values())
    depth = manifest.trunk.depth
    return {
        "trunk": depth, "own": own, "folded": folded, "plan": depth + own - folded,
        "single_models": n_layers * len(manifest.tasks),
    }  # fmt: skip


def _trained(cache: Path, folder: Path) -> Scenario:
    try:
        path, said = real_bundle(), "assistant12, trained"
    except BundleError:
        path = random_bundle(cache / "assistant12.random", "minilm", ASSISTANT12)
        said = "of the shape of assistant12, random branches"
    return Scenario("minilm", part_of(path, sentence_tasks(path), folder), said, embedded_checkpoint())


def _random(cache: Path, _folder: Path) -> Scenario:
    root = cache / "bert-base.random"
    checkpoint = random_checkpoint(root / "checkpoint", SHAPES["bert-base"])
    bundle = random_bundle(root / "xiaoai9", str(checkpoint), XIAOAI9)
    return Scenario("bert-base", bundle, "the paper's plan for XiaoAI at nine sentence tasks, random", checkpoint)


def _measured(scenario: Scenario, size: Size, cache: Path, folder: Path) -> dict[str, Any]:
    manifest = open_bundle(scenario.bundle).manifest
    contestants = _contestants(scenario, size, cache, folder)
    os.sync()  # gigabytes of models on their way to the disk would slow down who is measured first
    return {
        "bundle": scenario.said,
        "tasks": {name: len(entry.labels) for name, entry in manifest.tasks.items()},
        "layers": layers_of(manifest, SHAPES[scenario.shape].n_layers),
        "connections": {each.name: each.n_connections for each in contestants},
        "answers_a_request": {each.name: each.answers_a_request for each in contestants},
        "rounds": _rounds(scenario.shape, contestants, size),
    }


def _contestants(scenario: Scenario, size: Size, cache: Path, folder: Path) -> list[Contestant]:
    tasks = {name: entry.labels for name, entry in open_bundle(scenario.bundle).manifest.tasks.items()}
    asked = list(dict.fromkeys(texts(2 * N_TEXTS, SEED)))[:N_TEXTS]
    whole = [msgspec.json.encode({"texts": [text]}) for text in asked]
    singles = [msgspec.json.encode({"model": task, "input": [text]}) for text in asked for task in tasks]
    models = write_classifiers(folder / "classifiers", scenario.checkpoint, tasks)
    written = write_graphs(cache / f"server-peers-{version('openvino')}", scenario.shape, tasks)
    precision = PRECISIONS[choose_backend().precision]
    n = len(tasks)
    return [
        Contestant(
            "single_models",
            lambda: single_server(folder, written, precision=precision, sizes=size.batches, texts=asked),
            "/v1/analyze", whole, lambda body: len(body["results"][0]), n,
        ),
        Contestant(
            "infinity", lambda: infinity_server(models), "/classify", singles, lambda body: len(body["data"]), 1,
            in_open_loop=False,
        ),
        Contestant(
            "trunkline", lambda: Served(scenario.bundle, "--cache-mb", "0", *PATIENT), "/v1/analyze", whole,
            lambda body: len(body["results"][0]), n,
        ),
    ]  # fmt: skip


def _rounds(shape: str, contestants: list[Contestant], size: Size) -> list[dict[str, Any]]:
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
            print(f"{shape}, round {number + 1}, {each.name}: {_line(found[each.name])}", flush=True)
        rounds.append(found)
    return rounds


def _closed(each: Contestant, server: Running, size: Size) -> dict[str, Any]:
    url = f"{server.url}{each.path}"
    for body in each.bodies[:N_CHECKED]:
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
        "requests": seen.requests,
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
