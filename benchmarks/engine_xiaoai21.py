"""`engine-xiaoai21`: 21 tasks on one trunk beside 21 single models, the roofline and OpenVINO's own encoder."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine_contestant import EngineContestant
from benchmarks.engine_lines import LEFT_OUT, rooflines
from benchmarks.engine_memory import measured_apart
from benchmarks.engine_peers import SHAPE, served
from benchmarks.engine_profile import profile
from benchmarks.engine_race import Race, measured, with_shared
from benchmarks.engine_report import write_page
from benchmarks.engine_rounds import Taken, fastest, ratio, slope, spread
from benchmarks.engine_shapes import FURTHER, XIAOAI21, n_whole_layers
from benchmarks.engine_sweeps import sweeps
from benchmarks.harness import Benchmark, Measured
from benchmarks.peers.openvino_peer import openvino_singles
from benchmarks.peers.texts import source, texts
from benchmarks.peers.tokens import encode, read_tokenizer

QUICK_PEERS = ("openvino-bf16", "onnxruntime-int8")
PEERS = (
    "openvino-bf16", "openvino-bf16-lanes", "openvino-int8", "torch-bf16", "onnxruntime-f32", "onnxruntime-int8",
    "onnxruntime-int8-lanes", "students-bf16", "adapters-bf16", "joint-bf16",
)  # fmt: skip
N_SINGLES_IN_FLIGHT = 8
"""Texts that are asked one after the other where one is in flight."""
TAGGERS = tuple(task.name for task in XIAOAI21 if task.kind == "tagging")
MORE = (0, 5, 10)


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """Memory first, in processes of their own; then everyone in this one, alternating."""
    memory = {"trunkline": measured_apart("xiaoai21")}
    if not quick:
        memory["openvino-bf16"] = measured_apart("openvino-bf16", n_models=2)
    race = Race.open(XIAOAI21, further=FURTHER[: max(MORE)] if quick else FURTHER, n_models=2)
    race.open_int8()
    race.invite(QUICK_PEERS if quick else PEERS)
    n_rounds = 3 if quick else 5
    asked = texts(32, 0)
    lines = _Lines(asked)
    print("measuring", flush=True)
    taken, seen = _at_32(race, lines, asked, n_rounds)
    ones = [[text] for text in texts(N_SINGLES_IN_FLIGHT, 2)]
    taken_alone = measured(race.runs(ones), n_rounds, "1 in flight")
    many, single = race.models(taken.wall), race.models(taken_alone.wall)
    many_processor, single_processor = race.models(taken.processor), race.models(taken_alone.processor)
    further = _further(race, asked, n_rounds)
    spent = profile(race.engine, [task.name for task in XIAOAI21], asked, n_rounds)
    figures = {
        **race.speedups(many, "32"),
        **race.speedups(single, "1"),
        **_lines_figures(many),
        "first_answer_share": median(first / last for first, last in seen),
        "next_task_share": slope({n: median(seconds) for n, seconds in further.items()}) / median(further[0]),
        "overhead_share_32": spent["overhead_share"],
        "memory_over_weights": memory["trunkline"]["ratio"],
    }
    details = {
        **race.facts([asked]),
        "texts": source(),
        "in_flight_32": race.table(many, many_processor),
        "in_flight_1": {"n_texts": N_SINGLES_IN_FLIGHT, **race.table(single, single_processor)},
        "by_processor_time": {
            **race.speedups(many_processor, "32"),
            **race.speedups(single_processor, "1"),
            **_lines_figures(many_processor),
        },
        "further_tasks": {str(n): spread(seconds) for n, seconds in further.items()},
        "first_answers": [{"first_s": first, "last_s": last} for first, last in seen],
        "memory": memory,
        "profile": spent,
        "roofline": {"fastest": _roofline(many), "left_out": LEFT_OUT, "whole_layers": n_whole_layers(XIAOAI21)},
        "readings_of_the_encoder": _readings(many, spent),
    }
    lines.close()
    if not quick:
        race.dismiss(keep=("openvino-bf16",))
        details["additivity"] = _additivity(race, asked, n_rounds)
        details["sweeps"] = sweeps(race, (*XIAOAI21, *FURTHER))
    race.close()
    return Measured(figures=figures, details=details)


class _Lines:
    """What the engine is held against besides peers: models of OpenVINO's own, and bare products."""

    def __init__(self, asked: Sequence[str]) -> None:
        tokenizer = read_tokenizer(512)
        n_tokens = sum(map(len, encode(tokenizer, asked)))
        layers = n_whole_layers([task for task in XIAOAI21 if task.name in TAGGERS])
        self._models = {
            f"openvino encoder, {layers} layers": openvino_singles(
                SHAPE.with_layers(layers), served(XIAOAI21[-1:]), tokenizer
            ),
            "student of 9 layers alone": openvino_singles(SHAPE.with_layers(9), served(XIAOAI21[:1]), tokenizer),
        }
        for model in self._models.values():
            model.warm(asked)
        self.runs = rooflines(XIAOAI21, n_tokens, len(asked))
        for run in self.runs.values():
            run()
        for name, model in self._models.items():
            self.runs[name] = lambda model=model: _nothing(model.answer(asked))

    def close(self) -> None:
        """Let go of models and weights."""
        for model in self._models.values():
            model.close()
        self.runs.clear()


def _at_32(race: Race, lines: _Lines, asked: Sequence[str], n_rounds: int) -> tuple[Taken, list[tuple[float, float]]]:
    seen: list[tuple[float, float]] = []
    one, taggers = race.ours.asking((XIAOAI21[0].name,)), race.ours.asking(TAGGERS)
    for contestant in (one, taggers):
        contestant.warm(asked)

    def ours() -> None:
        race.ours.answer(asked)
        seen.append((race.ours.seen.first_s, race.ours.seen.last_s))

    runs = {**race.runs([asked]), **lines.runs}
    runs |= {
        "trunkline": ours,
        "trunkline, 1 task": lambda: _nothing(one.answer(asked)),
        "trunkline, 4 taggers": lambda: _nothing(taggers.answer(asked)),
    }
    with_shared(race, runs, [asked], "openvino-bf16")
    return measured(runs, n_rounds, "32 in flight"), seen


def _lines_figures(taken: dict[str, list[float]]) -> dict[str, float]:
    """Figures that hold the engine against OpenVINO's own graphs and against bare products."""
    return {
        "share_of_openvino_encoder": ratio(taken["openvino encoder, 16 layers"], taken["trunkline, 4 taggers"]),
        "roofline_share_32": ratio(taken[_roofline(taken)], taken["trunkline"]),
        "one_task_ratio": ratio(taken["trunkline, 1 task"], taken["student of 9 layers alone"]),
    }


def _further(race: Race, asked: Sequence[str], n_rounds: int) -> dict[int, list[float]]:
    """Seconds with so many further one-layer tasks."""
    names = [task.name for task in XIAOAI21]
    contestants = {n: race.ours.asking((*names, *(task.name for task in FURTHER[:n]))) for n in MORE}
    for contestant in contestants.values():
        contestant.warm(asked)
    runs = {str(n): _asker(contestant, asked) for n, contestant in contestants.items()}
    taken = measured(runs, 2 * n_rounds, "further tasks").wall
    return {int(n): seconds for n, seconds in taken.items()}


def _asker(contestant: EngineContestant, asked: Sequence[str]) -> Any:
    return lambda: _nothing(contestant.answer(asked))


def _nothing(_: object) -> None:
    """A run that tells no seconds of its own."""


def _roofline(taken: dict[str, list[float]]) -> str:
    return fastest({name: seconds for name, seconds in taken.items() if name.startswith("roofline")})


def _readings(taken: dict[str, list[float]], spent: dict[str, Any]) -> dict[str, float]:
    """Three ways to hold the engine against OpenVINO's encoder: more than the figure says."""
    layer = median(taken["openvino encoder, 16 layers"]) / 16
    ms = spent["ms"]
    whole = sum(ms[name] for name in ("embeddings", "trunk layers", "whole branch layers", "taggers", "masks")) / 1e3
    n_whole, total = n_whole_layers(XIAOAI21), median(taken["trunkline"])
    return {
        "whole layers alone, programs and masks": n_whole * layer / whole,
        "everything against the whole layers alone": n_whole * layer / total,
        "everything against all 40 layers in whole": 40 * layer / total,
    }


def _additivity(race: Race, asked: Sequence[str], n_rounds: int) -> dict[str, Any]:
    """Whether twice as many single models take twice as long."""
    service, n = race.running["openvino-bf16"], race.n_models
    others = openvino_singles(SHAPE, served(XIAOAI21)[n : 2 * n], read_tokenizer(512))
    others.warm(asked)

    def both() -> None:
        service.answer(asked)
        others.answer(asked)

    runs = {str(n): lambda: _nothing(service.answer(asked)), str(2 * n): both}
    taken = measured(runs, n_rounds, "additivity, single models").wall
    others.close()
    return {
        **{name: spread(seconds) for name, seconds in taken.items()},
        "ratio": ratio(taken[str(2 * n)], taken[str(n)]),
    }


BENCHMARK = Benchmark(
    name="engine-xiaoai21",
    purpose="21 tasks in one pass beside 21 single models, the roofline and OpenVINO's own encoder",
    measure=measure,
    after=lambda path: write_page(path, "engine-xiaoai21"),
)
