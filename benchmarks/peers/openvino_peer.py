"""OpenVINO: a compiled graph for each single-task model, or one graph with all heads."""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.peers.models import Lean, reference, seed_of
from benchmarks.peers.service import Service
from benchmarks.peers.shapes import ServedTask, Shape
from benchmarks.peers.tokens import encode, padded

if TYPE_CHECKING:
    import openvino


class OpenVinoRunner:
    """A compiled graph; safe to call from as many threads as it has streams.

    Args:
        model: The graph.
        tasks: In the order of its outputs.
        precision: ``f32`` or ``bf16``, of what is not int8 in the graph.
        n_threads: Of the whole graph.
        lanes: Calls at a time, each on ``n_threads / lanes`` threads; weights are held once.
    """

    def __init__(
        self,
        model: "openvino.Model",
        tasks: tuple[ServedTask, ...],
        *,
        precision: str,
        n_threads: int = 2,
        lanes: int = 1,
    ) -> None:
        import openvino

        self.tasks = tasks
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": n_threads}
        options |= {"PERFORMANCE_HINT": "LATENCY"} if lanes == 1 else {"NUM_STREAMS": lanes}
        self._compiled = openvino.Core().compile_model(model, "CPU", options)
        self._idle = [self._compiled.create_infer_request() for _ in range(lanes)]

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        """Logits for each task."""
        request = self._idle.pop()
        try:
            answered = request.infer([ids, mask], share_inputs=True)
            # a request's outputs are its own memory, which the next call writes over: infer() has copied them
            return list(answered.values())
        finally:
            self._idle.append(request)


def convert(shape: Shape, tasks: tuple[ServedTask, ...], seed: int) -> "openvino.Model":
    """The graph of a random model, batch and length dynamic; no transformation changes its weights."""
    import openvino

    ids = torch.randint(1000, 20000, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        return openvino.convert_model(Lean(reference(shape, tasks, seed)).eval(), example_input=(ids, mask))


def openvino_singles(
    shape: Shape,
    tasks: Sequence[ServedTask],
    tokenizer: Tokenizer,
    *,
    precision: str = "bf16",
    lanes: int = 1,
    name: str | None = None,
) -> Service:
    """One full model for each task.

    Args:
        shape: Of each model; a 6-layer student is a shape of 6 layers.
        tasks: One model each.
        tokenizer: Reads the texts.
        precision: ``f32`` or ``bf16``.
        lanes: 1 for a call on two threads at a time, 2 for two calls on a thread each.
        name: Another than ``openvino``.
    """
    runners = []
    for place, task in enumerate(tasks):
        graph = convert(shape, (task,), seed_of(place))
        runners.append(OpenVinoRunner(graph, (task,), precision=precision, lanes=lanes))
        # graph and torch hold the fp32 original between them; the compiled model has its own copy
        del graph
        gc.collect()
    title = name or f"openvino{'-lanes' if lanes > 1 else ''}"
    return Service(title, precision, tokenizer, runners, lanes=lanes)


def openvino_int8_singles(
    shape: Shape, tasks: Sequence[ServedTask], tokenizer: Tokenizer, texts: Sequence[str], *, lanes: int = 1
) -> Service:
    """One full model for each task, products in int8 by nncf, calibrated on `texts`; the rest in bf16."""
    runners = []
    for place, task in enumerate(tasks):
        graph = quantized(convert(shape, (task,), seed_of(place)), tokenizer, texts)
        runners.append(OpenVinoRunner(graph, (task,), precision="bf16", lanes=lanes))
        del graph
        gc.collect()
    return Service(f"openvino{'-lanes' if lanes > 1 else ''}", "int8", tokenizer, runners, lanes=lanes)


def quantized(graph: "openvino.Model", tokenizer: Tokenizer, texts: Sequence[str]) -> "openvino.Model":
    """Post-training int8 of a transformer: weights by channel, inputs of products by tensor."""
    import logging

    import nncf

    nncf.set_log_level(logging.ERROR)
    batches = [padded([row]) for row in encode(tokenizer, texts)]
    return nncf.quantize(
        graph,
        nncf.Dataset(batches, list),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
    )


def openvino_joint(
    shape: Shape, tasks: Sequence[ServedTask], tokenizer: Tokenizer, *, precision: str = "bf16"
) -> Service:
    """One jointly trained trunk with a linear head for each task: the floor of cost."""
    graph = convert(shape, tuple(tasks), seed_of(0))
    return Service("openvino-joint", precision, tokenizer, [OpenVinoRunner(graph, tuple(tasks), precision=precision)])
