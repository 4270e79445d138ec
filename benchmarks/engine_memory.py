"""What memory contestants take, each in a process of its own: ``python -m benchmarks.engine_memory WHO``."""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT


def measured_apart(who: str, n_models: int = 1) -> dict[str, float]:
    """What a contestant of `CONTESTANTS` takes, measured in a fresh process.

    Returns:
        ``megabytes``: proportional set size, less that of the same process with a tiny model; ``weights_megabytes``: of
        its weights in the served precision.
    """
    command = [sys.executable, "-m", "benchmarks.engine_memory", who, "--models", str(n_models)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"memory of {who}: the process ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_megabytes(name: str = "Pss") -> float:
    """Of this process, after everything that is free was given back.

    Args:
        name: A line of ``/proc/self/smaps_rollup``.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/smaps_rollup: has no line {name!r}; this needs Linux 4.14 or newer")


def _engine(shape: str) -> tuple[float, float]:
    from benchmarks import engine_shapes as shapes
    from benchmarks.engine_contestant import EngineContestant
    from benchmarks.peers.texts import texts
    from trunkline.engine.backends.openvino import OpenVinoBackend
    from trunkline.engine.engine import Engine

    tasks = {"xiaoai21": shapes.XIAOAI21, "glue8": shapes.GLUE8}[shape]
    asked = texts(32, 0) if shape == "xiaoai21" else [(text, text) for text in texts(32, 0)]
    backend = OpenVinoBackend(precision="bf16", n_threads=2, store=shapes.served_weights())

    def run(snapshot: Any) -> EngineContestant:
        contestant = EngineContestant(Engine(snapshot, backend))
        for batch in (asked, asked[:1]):
            contestant.warm(batch)
        return contestant

    tiny = run(shapes.random_snapshot(backend, tasks[:1], shapes.sized(12, 32, 2)))
    before = resident_megabytes()
    whole = run(shapes.random_snapshot(backend, tasks))
    taken = resident_megabytes() - before
    whole.close()
    tiny.close()
    return taken, 2 * shapes.n_weights(tasks) / 2**20


def _singles(n_models: int, *, lanes: int = 1) -> tuple[float, float]:
    from benchmarks.peers.openvino_peer import openvino_singles
    from benchmarks.peers.shapes import SHAPES, Shape, sample_tasks
    from benchmarks.peers.texts import texts
    from benchmarks.peers.tokens import read_tokenizer

    tokenizer = read_tokenizer(512)
    tiny = openvino_singles(Shape(12, 32, 2, 64), sample_tasks(1), tokenizer, lanes=lanes)
    tiny.warm(texts(32, 0))
    before = resident_megabytes()
    service = openvino_singles(SHAPES["bert-base"], sample_tasks(n_models), tokenizer, lanes=lanes)
    for batch in (texts(32, 0), texts(1, 0)):
        service.warm(batch)
    taken = resident_megabytes() - before
    service.close()
    tiny.close()
    embeddings = (30522 + 512 + 2) * 768
    return taken, n_models * 2 * (12 * (12 * 768 * 768 + 13 * 768) + 768 * 768 + embeddings) / 2**20


CONTESTANTS: dict[str, Callable[[int], tuple[float, float]]] = {
    "xiaoai21": lambda _: _engine("xiaoai21"),
    "glue8": lambda _: _engine("glue8"),
    "openvino-bf16": _singles,
    "openvino-bf16-lanes": lambda n_models: _singles(n_models, lanes=2),
}


def main() -> None:
    """Measure one and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_memory", description=__doc__)
    parser.add_argument("who", choices=sorted(CONTESTANTS))
    parser.add_argument("--models", type=int, default=1, help="of single models, how many")
    arguments = parser.parse_args()
    taken, weights = CONTESTANTS[arguments.who](arguments.models)
    print(json.dumps({"megabytes": taken, "weights_megabytes": weights, "ratio": taken / weights}))


if __name__ == "__main__":
    main()
