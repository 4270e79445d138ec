"""One run in which the engine and its peers alternate, on a shape with random weights."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.engine_contestant import INCLUDES, LEAVES_OUT, EngineContestant, Text
from benchmarks.engine_peers import Peer, of_precision, peers, served, standing_for
from benchmarks.engine_rounds import Run, Taken, alternate, fastest, ratio, ratio_range, scaled, spread
from benchmarks.engine_shapes import OwnLayers, int8_snapshot, random_snapshot, served_weights
from benchmarks.peers.adapters_peer import AdaptersService
from benchmarks.peers.service import Contestant
from benchmarks.peers.texts import texts
from benchmarks.peers.tokens import encode, read_tokenizer
from trunkline.engine.backends.openvino import OpenVinoBackend
from trunkline.engine.engine import Engine

N_THREADS = 2


@dataclass(slots=True)
class Race:
    """An open engine and the peers that stand for N single models.

    Attributes:
        tasks: What is asked.
        engine: With these tasks and perhaps further ones.
        ours: It, asked for `tasks`.
        peers: Name to what a peer is.
        running: Name to it, built.
        n_models: Single models that stand for all.
        also_ours: Name in `OURS` to a further engine in another precision.
    """

    tasks: Sequence[OwnLayers]
    engine: Engine
    ours: EngineContestant
    n_models: int
    also_ours: dict[str, EngineContestant] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    running: dict[str, Contestant] = field(default_factory=dict)

    @classmethod
    def open(cls, tasks: Sequence[OwnLayers], *, further: Sequence[OwnLayers] = (), n_models: int = 2) -> "Race":
        """Load the engine in bf16.

        Args:
            tasks: What is asked.
            further: Other tasks that are loaded too.
            n_models: Single models that stand for all.
        """
        backend = OpenVinoBackend(precision="bf16", n_threads=N_THREADS, store=served_weights())
        engine = Engine(random_snapshot(backend, (*tasks, *further)), backend)
        return cls(tasks, engine, EngineContestant(engine, [task.name for task in tasks]), n_models)

    def open_int8(self) -> None:
        """Load the tasks a second time, in int8 wherever the engine has it."""
        backend = OpenVinoBackend(precision="bf16", as_gated=True, n_threads=N_THREADS, store=served_weights())
        self.also_ours[OURS["int8"]] = EngineContestant(
            Engine(int8_snapshot(backend, self.tasks, texts(4, 1)), backend)
        )

    def invite(self, names: Sequence[str] | None = None) -> None:
        """Build peers; None builds all."""
        tokenizer = read_tokenizer(512)
        for peer in peers(tokenizer, texts(32, 1)):
            if names is not None and peer.name not in names:
                continue
            chosen = standing_for(self.tasks, self.n_models) if peer.scales else served(self.tasks)
            self.peers[peer.name], self.running[peer.name] = peer, peer.build(chosen)
            gc.collect()
            print(f"built {peer.name}", flush=True)

    def dismiss(self, *, keep: Sequence[str]) -> None:
        """Let go of all peers but some, and of further engines of ours: several gigabytes."""
        for name in [name for name in self.running if name not in keep]:
            self.running.pop(name).close()
        for contestant in self.also_ours.values():
            contestant.close()
        self.also_ours.clear()
        gc.collect()

    def runs(self, batches: Sequence[Sequence[Text]]) -> dict[str, Run]:
        """Everyone on the same batches, one batch after the other; all are warmed first."""
        everyone: dict[str, Contestant] = {"trunkline": self.ours, **self.also_ours, **self.running}
        found: dict[str, Run] = {}
        for name, contestant in everyone.items():
            for batch in batches:
                contestant.warm(batch)
            found[name] = _inside(contestant, batches) if name.startswith("adapters") else _all(contestant, batches)
        return found

    def models(self, taken: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """Seconds of as many models as there are tasks, out of those that were measured."""
        n_tasks = len(self.tasks)
        return {
            name: scaled(seconds, self.n_models, n_tasks)
            if (peer := self.peers.get(name.removesuffix(SHARED))) and peer.scales
            else list(seconds)
            for name, seconds in taken.items()
        }

    def speedups(self, taken: Mapping[str, Sequence[float]], suffix: str) -> dict[str, float]:
        """Figures ``speedup_PRECISION_SUFFIX``: the fastest runtime's N models over ours, equal precisions.

        Args:
            taken: From `models`.
            suffix: Texts in flight.
        """
        figures = {}
        for precision, ours in OURS.items():
            rivals = {name: taken[name] for name in of_precision(self.peers, precision) if name in taken}
            if ours in taken and rivals:
                figures[f"speedup_{precision}_{suffix}"] = ratio(rivals[fastest(rivals)], taken[ours])
        return figures

    def table(
        self, taken: Mapping[str, Sequence[float]], processor: Mapping[str, Sequence[float]]
    ) -> dict[str, dict[str, Any]]:
        """Every contestant's seconds, and how they are to ours.

        Args:
            taken: From `models`.
            processor: The same of processor seconds.
        """
        ours = taken["trunkline"]
        return {
            name: {
                **spread(seconds),
                "over_ours": round(ratio(seconds, ours), 3),
                "range": ratio_range(seconds, ours),
                "processor_ms": round(1e3 * median(processor[name]) / N_THREADS, 3),
            }
            for name, seconds in taken.items()
        }

    def facts(self, batches: Sequence[Sequence[Text]]) -> dict[str, Any]:
        """What a reader of the result must know."""
        lengths = [len(row) for batch in batches for row in encode(read_tokenizer(512), batch)]
        return {
            "n_tasks": len(self.tasks),
            "n_texts": len(lengths),
            "n_tokens": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "includes": INCLUDES,
            "leaves_out": LEAVES_OUT,
            "single_models_measured": self.n_models,
            "scaling": f"measured seconds times {len(self.tasks)}/{self.n_models}: models run one after the other",
            "backend": f"{self.engine.backend.name}, {self.engine.backend.precision}, {N_THREADS} threads",
        }

    def close(self) -> None:
        """Let go of everyone."""
        for contestant in (self.ours, *self.also_ours.values(), *self.running.values()):
            contestant.close()


OURS = {"bf16": "trunkline", "int8": "trunkline-int8"}
"""Precision to the name of our contestant in it."""
SHARED = "+shared"
"""Ends the name of a run in which texts were tokenized once for all models."""


def with_shared(race: Race, runs: dict[str, Run], batches: Sequence[Sequence[Text]], name: str) -> None:
    """Add a peer's run with one tokenization for all of its models."""
    service = race.running[name]

    def run() -> None:
        for batch in batches:
            service.answer_shared(batch)

    runs[name + SHARED] = run


def measured(runs: Mapping[str, Run], n_rounds: int, told: str) -> Taken:
    """`alternate`, and a line about it."""
    taken = alternate(runs, n_rounds)
    words = ", ".join(f"{name} {1e3 * sorted(each)[len(each) // 2]:.0f}" for name, each in taken.wall.items())
    print(f"{told}, ms: {words}", flush=True)
    return taken


def _all(contestant: Contestant, batches: Sequence[Sequence[Text]]) -> Run:
    def run() -> None:
        for batch in batches:
            contestant.answer(batch)

    return run


def _inside(contestant: Contestant, batches: Sequence[Sequence[Text]]) -> Run:
    """Seconds that another process took itself: neither pipe nor JSON count."""
    if not isinstance(contestant, AdaptersService):
        raise TypeError(f"contestant {contestant.name}: takes no time of its own")

    def run() -> tuple[float, float]:
        seconds = [(contestant.timed(batch), contestant.cpu_seconds) for batch in batches]
        return sum(wall for wall, _ in seconds), sum(processor for _, processor in seconds)

    return run
