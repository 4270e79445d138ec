"""`server-hostile`: thousands of hostile requests; the server refuses them, tells nothing of itself, and goes on."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import hostile_wire as wire
from benchmarks.engine_agreement import real_bundle
from benchmarks.harness import Benchmark, Measured
from benchmarks.hostile_archives import archives, branch_files, flip, flipped, places
from benchmarks.hostile_bodies import bodies, from_schema, made_up
from benchmarks.hostile_tensors import binary_rest, grpc_calls
from benchmarks.hostile_wire import Tried
from benchmarks.pages import measured_by, picture, publish
from benchmarks.peers.texts import texts
from benchmarks.served import Served
from trunkline.bundle.registry import Registry
from trunkline.bundle.store import branch_folder, open_bundle

N_REQUESTS, N_QUICK = 20_000, 1_000
SEED = 20251125
DELIBERATE = frozenset({503, 504})
TRACES = (b"Traceback", b'File "/', b'.py", line', b"site-packages")
SHARES = {
    "bodies": 0.25, "made up": 0.15, "schema": 0.1, "heads": 0.1, "lengths": 0.08, "paths": 0.1, "archives": 0.05,
    "binary tensors": 0.08, "gRPC": 0.08, "vanishing": 0.01,
}  # fmt: skip
"""Of the requests; slow connections and flipped bytes come beside."""
N_SLOW, N_FLIPS, N_FLIPPED_STARTS = 60, 8, 6
WARM_SHARE = 1.0
"""As many come before memory is looked at: the engine has met every shape then, and the allocator every size."""
OPTIONS = ("--cache-mb", "4", "--max-wait-ms", "10000")
"""A small cache is full before memory is looked at; more is run than a server would take that must not wait."""
QUIET_S = 2.0


@dataclass(slots=True)
class Found:
    """What came of hostile requests.

    Attributes:
        n: Requests.
        statuses: How often which was answered; ``none`` where the connection was closed.
        by_family: Requests of each sort, and what they took in seconds.
        unexpected: Requests that were answered with an error of the server's own.
        traced: Answers that told where the code lies.
    """

    n: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    by_family: dict[str, tuple[int, float]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)

    def take(self, family: str, made: Iterator[Tried]) -> None:
        """Send and judge them."""
        before, began = self.n, time.perf_counter()
        for each in made:
            self.n += max(1, len(each.statuses))
            self.statuses.update(
                [each.detail] if each.detail else map(str, each.statuses) if each.statuses else ["none"]
            )
            if any(status >= 500 and status not in DELIBERATE for status in each.statuses):
                self.unexpected.append(f"{family}, {each.kind}: {each.statuses} {each.answer[-300:]!r}")
            if any(trace in each.answer for trace in TRACES):
                self.traced.append(f"{family}, {each.kind}: {each.answer[-300:]!r}")
        seconds = time.perf_counter() - began
        self.by_family[family] = (self.n - before, seconds)
        print(f"{family}: {self.n - before} in {seconds:.1f} s, {len(self.unexpected)} unexpected", flush=True)


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """A server of `assistant12`'s tasks under hostile requests of every sort."""
    n = N_QUICK if quick else N_REQUESTS
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "registry"
        Registry.create(path, open_bundle(real_bundle()), who="bench", why="hostile requests")
        with Served(path, *OPTIONS) as server:
            before = answers_of(server)
            n_slow = 8 if quick else N_SLOW
            memory = [settled_megabytes(server)]
            attack(server, path, int(n * WARM_SHARE), seed=SEED + 1, n_slow=n_slow)
            memory.append(settled_megabytes(server))
            found = attack(server, path, n, seed=SEED, n_slow=n_slow)
            memory.append(settled_megabytes(server))
            after, log = answers_of(server), server.log()
            refused = refused_flips(server, path, 4 if quick else N_FLIPS)
            running = server.is_running
        starts = refused_starts(path, 2 if quick else N_FLIPPED_STARTS)
    same = running and before == after
    return Measured(
        figures={
            "requests": float(found.n),
            "unexpected_5xx": float(len(found.unexpected)),
            "memory_growth_share": memory[2] / memory[1] - 1,
            "tracebacks": float(len(found.traced)),
            "same_answers_after": float(same),
        },
        details={
            "seed": SEED,
            "statuses": dict(found.statuses.most_common()),
            "families": {name: {"n": n, "seconds": seconds} for name, (n, seconds) in found.by_family.items()},
            "unexpected": found.unexpected[:30],
            "traced": found.traced[:30],
            "megabytes": memory,
            "n_tracebacks_in_log": log.count("Traceback"),
            "flipped_bytes": refused,
            "flipped_starts": starts,
        },
    )


def attack(server: Served, path: Path, n: int, *, seed: int, n_slow: int = 0) -> Found:
    """Send hostile requests of every sort.

    Args:
        server: Serves the registry, with an administrator's key.
        path: Of the registry.
        n: How many, about.
        seed: Of everything.
        n_slow: Connections that are slow, beside.
    """
    rng, found = random.Random(seed), Found()
    tasks = list(Registry.open(path).state.tasks)
    files, task = smallest_branch(path)
    document = httpx.get(f"{server.url}/openapi.json").json()
    makers: dict[str, Callable[..., Iterator[Tried]]] = {
        "bodies": partial(bodies, tasks=tasks),
        "made up": partial(made_up, tasks=tasks),
        "schema": partial(from_schema, document=document, tasks=tasks),
        "heads": wire.heads,
        "lengths": wire.lengths,
        "paths": wire.paths,
        "archives": partial(archives, files=files, task=task),
        "binary tensors": partial(binary_rest, tasks=tasks),
        "gRPC": partial(grpc_calls, tasks=tasks),
        "vanishing": wire.vanishing,
    }
    for family, share in SHARES.items():
        found.take(family, makers[family](server, rng, max(1, round(n * share))))
    if found.n < n:
        found.take("more bodies", bodies(server, rng, n - found.n, tasks))
    if n_slow:
        found.take("slow", wire.slow(server, n_slow))
    return found


def smallest_branch(path: Path) -> tuple[dict[str, bytes], str]:
    """The files of the registry's smallest branch, and its task."""
    state = Registry.open(path).state
    folders = {task: path / branch_folder(task, each.active) for task, each in state.tasks.items() if each.active}
    sizes = {task: sum(file.stat().st_size for file in folder.iterdir()) for task, folder in folders.items()}
    task = min(sizes, key=lambda name: sizes[name])
    return branch_files(folders[task]), task


def settled_megabytes(server: Served) -> float:
    """Memory when nothing runs any more: the least of several looks."""
    time.sleep(QUIET_S)
    looks = []
    for _ in range(5):
        looks.append(server.pss_megabytes())
        time.sleep(0.2)
    return min(looks)


def answers_of(server: Served) -> list[Any]:
    """What the server answers to fixed texts, one by one, without what differs from request to request."""
    found = []
    with httpx.Client(base_url=server.url, headers=server.headers) as client:
        for text in texts(8, 0):
            results = client.post(
                "/v1/analyze", json={"texts": [text], "probabilities": True, "truncate": True}
            ).json()["results"]
            found.append([{task: {**each, "timings": None} for task, each in one.items()} for one in results])
    return found


def refused_flips(server: Served, path: Path, n_each: int) -> dict[str, Any]:
    """Uploads with a flipped byte in each file in turn: how many there were, and which were not refused."""
    files, task = smallest_branch(path)
    said = list(flipped(server, random.Random(SEED), files, task, n_each))
    return {
        "n": len(said),
        "files": list(files),
        "not_refused": [each.kind for each in said if each.statuses != (422,)],
    }


def refused_starts(path: Path, n: int) -> dict[str, Any]:
    """Servers that are to start on a registry with a flipped byte, of a branch or the trunk: which did not refuse."""
    rng, wrong = random.Random(SEED), []
    state = Registry.open(path).state
    folders = [path / branch_folder(task, each.active) for task, each in state.tasks.items() if each.active]
    files = [file for folder in (*folders, path / "trunk") for file in sorted(folder.iterdir()) if file.is_file()]
    chosen = [*rng.sample(files, n - 1), rng.choice(sorted((path / "trunk").iterdir()))]
    for file in chosen:
        content = file.read_bytes()
        place = places(len(content), 3, rng)[1]
        file.write_bytes(flip(content, place))
        if not _refuses_to_start(path):
            wrong.append(f"byte {place} of {file.relative_to(path)}")
        file.write_bytes(content)
    return {"n": len(chosen), "not_refused": wrong}


def _refuses_to_start(path: Path) -> bool:
    try:
        with Served(path, *OPTIONS):
            return False
    except RuntimeError as error:
        return "SHA-256" in str(error) and "Traceback" not in str(error)


def markdown_table(result: dict[str, Any]) -> str:
    """What was sent, and what came back."""
    figures, details = result["figures"], result["details"]
    flips, starts = details["flipped_bytes"], details["flipped_starts"]
    rows = (
        ("hostile requests", f"{figures['requests']:.0f}", "20,000"),
        ("5xx that were not deliberate (503, 504)", f"{figures['unexpected_5xx']:.0f}", "0"),
        ("answers with a traceback", f"{figures['tracebacks']:.0f}", "0"),
        ("tracebacks in the log", f"{details['n_tracebacks_in_log']}", "0"),
        ("memory growth (PSS)", f"{100 * figures['memory_growth_share']:.1f}%", "at most 5%"),
        (
            "memory at the start, after as many requests, at the end",
            ", ".join(f"{mb:.0f} MB" for mb in details["megabytes"]),
            "",
        ),
        ("answers afterwards as before", "yes" if figures["same_answers_after"] else "**no**", "yes"),
        ("flipped bytes that were registered", f"{len(flips['not_refused'])} of {flips['n']}", "0"),
        ("flipped bytes that a server started with", f"{len(starts['not_refused'])} of {starts['n']}", "0"),
    )
    lines = ["| | measured | to be |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", measured_by(result)])


def draw(result: dict[str, Any], path: Path) -> None:
    """How often which status was answered."""
    statuses = result["details"]["statuses"]
    with picture(path, width=8, height=0.6 + 0.22 * len(statuses)) as figure:
        axes = figure.subplots()
        axes.barh(list(statuses), list(statuses.values()), color="tab:blue")
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("answers (none: the connection was closed)")


BENCHMARK = Benchmark(
    name="server-hostile",
    purpose="20,000 hostile requests over REST and gRPC: refused, nothing told, nothing kept",
    measure=measure,
    after=lambda path: publish(path, "server-hostile", table=markdown_table, draw=draw),
)
