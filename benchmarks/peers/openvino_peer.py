"""OpenVINO: a compiled graph for each single-task model, or one graph with all heads."""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from benchmarks.peers.models import Lean, reference, seed_of
from benchmarks.peers.openvino_runner import OpenVinoRunner
from benchmarks.peers.service import Service
from benchmarks.peers.shapes import ServedTask, Shape
from benchmarks.peers.tokens import encode, padded

if TYPE_CHECKING:
    import openvino


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
