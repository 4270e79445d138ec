"""The roofline: bare matrix products of the work that an engine's tasks are, on real tokens alone."""

from collections.abc import Sequence

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops

from benchmarks.engine_rounds import Run
from benchmarks.engine_shapes import OwnLayers, n_whole_layers
from trunkline.model.tensors import to_bits

WIDTH, FFN = 768, 3072
_LAYER = ((3 * WIDTH, WIDTH), (WIDTH, WIDTH), (FFN, WIDTH), (WIDTH, FFN))
"""The dense products of a layer, (out, in): queries, keys and values at once; attention's output; up; down."""
LEFT_OUT = (
    "attention's own products (about 1% of the dense ones at these lengths), norms, activations, embeddings, heads"
)


def rooflines(tasks: Sequence[OwnLayers], n_tokens: int, n_rows: int) -> dict[str, Run]:
    """The same products in each library that was found fast, every layer with weights of its own.

    Args:
        tasks: Whose layers; whole ones run on all tokens, of a folded one the same products on one token a row.
        n_tokens: Real tokens.
        n_rows: Rows.
    """
    n_folded = sum(task.folds for task in tasks)
    shapes = [(n_whole_layers(tasks), n_tokens), (n_folded, n_rows)]
    return {"roofline-openvino": _in_openvino(shapes), "roofline-torch": _in_torch(shapes)}


def _in_openvino(shapes: Sequence[tuple[int, int]]) -> Run:
    weights = _Weights()
    inputs, outputs = [], []
    for n_layers, n_lines in shapes:
        parameter = ops.parameter([n_lines, WIDTH], ov.Type.bf16)
        inputs.append(parameter)
        value = parameter
        for _ in range(n_layers):
            for n_out, n_in in _LAYER:
                if n_in == WIDTH:
                    value = _columns(value, n_in)
                tensor = ov.Tensor(weights.bits(n_out, n_in), [n_out, n_in], ov.Type.bf16)
                value = ops.matmul(value, ops.constant(tensor, shared_memory=True), False, True)  # noqa: FBT003
        outputs.append(value)
    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(ov.Model(outputs, inputs), "CPU", options)
    request = compiled.create_infer_request()
    for number, (_, n_lines) in enumerate(shapes):
        bits = weights.bits(n_lines, WIDTH)
        request.set_input_tensor(number, ov.Tensor(bits, [n_lines, WIDTH], ov.Type.bf16))

    def run(_kept: _Weights = weights) -> None:  # the request reads the weights as long as it runs
        request.infer()

    return run


def _columns(value: ov.Node, n: int) -> ov.Node:
    shape = list(value.get_output_shape(0))
    if shape[1] == n:
        return value
    return ops.slice(value, np.array([0]), np.array([n]), np.array([1]), np.array([1]))


def _in_torch(shapes: Sequence[tuple[int, int]]) -> Run:
    torch.set_num_threads(2)
    chains = [
        (
            torch.randn(n_lines, WIDTH).bfloat16(),
            [[(torch.randn(shape) / shape[1] ** 0.5).bfloat16() for shape in _LAYER] for _ in range(n_layers)],
        )
        for n_layers, n_lines in shapes
    ]

    def run() -> None:
        with torch.inference_mode():
            for start, layers in chains:
                value = start
                for layer in layers:
                    for weight in layer:
                        value = torch.nn.functional.linear(value[:, : weight.shape[1]], weight)

    return run


class _Weights:
    """Arrays of bfloat16 bits, each in memory of its own; numbers repeat, in another order."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._base = to_bits(np.random.default_rng(0).standard_normal(FFN * WIDTH, dtype=np.float32) * 0.03)

    def bits(self, n_out: int, n_in: int) -> np.ndarray:
        """(n_out, n_in) uint16; kept here."""
        array = np.roll(self._base, 977 * len(self._kept))[: n_out * n_in].reshape(n_out, n_in).copy()
        self._kept.append(array)
        return array
