"""`engine-glue8`: the paper's mixed plan of eight GLUE tasks, 7 shared and 26 own layers, beside eight models."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.engine_contestant import Text
from benchmarks.engine_memory import measured_apart
from benchmarks.engine_profile import profile
from benchmarks.engine_race import Race, measured, with_shared
from benchmarks.engine_report import write_page
from benchmarks.engine_shapes import GLUE8
from benchmarks.harness import DATA, Benchmark, Measured
from benchmarks.peers.texts import texts

PEERS = ("openvino-bf16", "openvino-bf16-lanes", "torch-bf16", "students-bf16", "joint-bf16")
SOURCES = ("glue_mrpc", "glue_rte", "glue_stsb", "glue_qqp", "glue_mnli", "glue_qnli")


def measure(*, quick: bool, out: Path) -> Measured:  # noqa: ARG001 - every benchmark is told where its result goes
    """All eight tasks on the same 32 pairs, as the paper's count of layers assumes."""
    memory = measured_apart("glue8")
    race = Race.open(GLUE8, n_models=2)
    race.invite(PEERS[:1] if quick else PEERS)
    asked = pairs(32, 0)
    n_rounds = 3 if quick else 7
    print("measuring", flush=True)
    runs = race.runs([asked])
    with_shared(race, runs, [asked], PEERS[0])
    taken = measured(runs, n_rounds, "32 in flight")
    many = race.models(taken.wall)
    details: dict[str, Any] = {
        **race.facts([asked]),
        "texts": source(),
        "in_flight_32": race.table(many, race.models(taken.processor)),
        "speedups_by_processor_time": race.speedups(race.models(taken.processor), "32"),
        "memory": {"trunkline": memory},
        "profile": profile(race.engine, [task.name for task in GLUE8], asked, n_rounds),
        "plan": {task.name: [task.exit_layer, task.own_layers] for task in GLUE8},
    }
    race.close()
    return Measured(figures=race.speedups(many, "32"), details=details)


def source() -> str:
    """Where `pairs` draws from."""
    if _has_data():
        return f"dev rows of {', '.join(SOURCES)}, each set as likely as another"
    return "pairs of our sample grammar's texts (no ../shared/data beside this checkout)"


def pairs(n: int, seed: int) -> list[Text]:
    """`n` pairs, the same for the same seed."""
    rng = random.Random(seed)
    if not _has_data():
        return list(zip(texts(n, seed), texts(n, seed + 1), strict=True))
    pools = [_rows(name) for name in SOURCES]
    return [rng.choice(rng.choice(pools)) for _ in range(n)]


def _has_data() -> bool:
    return all((DATA / name / "dev.jsonl.gz").is_file() for name in SOURCES)


def _rows(name: str) -> list[Text]:
    with gzip.open(DATA / name / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text"], row["text_pair"]) for row in rows]


BENCHMARK = Benchmark(
    name="engine-glue8",
    purpose="the paper's mixed plan for eight GLUE tasks beside eight single models",
    measure=measure,
    after=lambda path: write_page(path, "engine-glue8"),
)
