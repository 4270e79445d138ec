"""The ranges of int8, found by running the fp32 graph on given rows and looking at what its dense layers multiply.

Least and greatest of each channel, and no library for quantization: measured against nncf's own calibration this was
as good or better (decision 0017).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from trunkline.bundle.served import Range
from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.types import Encoded
from trunkline.engine.backends.graph import Graph, Value
from trunkline.engine.backends.openvino import core, stacked_attention
from trunkline.engine.layout import Layout
from trunkline.engine.masks import Masks
from trunkline.model.cost import folds

_ALPHA = 0.75
"""Of SmoothQuant (Xiao et al. 2023, eq. 4): how much of a channel's size goes from the input to the weights. Measured
on twelve real tasks: from 0.7 to 0.95 dev logits are about equally near to fp32; golden inputs are nearest at 0.75."""
_ROWS = 32
_LEAST = 1e-5


def find_ranges(trunk: StoredTrunk, rows: Sequence[Encoded], *, branch: StoredBranch | None = None) -> dict[str, Range]:
    """Ranges of the dense layers of a trunk, or of a branch on it.

    Args:
        trunk: The trunk; it is run in fp32.
        rows: Real rows, at least one.
        branch: None for the trunk's own.

    Returns:
        Name of each dense layer that can be int8 to the range of its input: all of whole layers; of a folded one those
        behind its attention.
    """
    arrays = stacked_attention({**trunk.tensors, **(branch.tensors if branch is not None else {})})
    graph = Graph(trunk.config, arrays, ov.Type.f32)
    inputs = [graph.input(-1, -1, of_ids=True) for _ in range(3)]
    bias, first = graph.input(-1, -1, -1, -1), graph.input(-1, -1, -1)
    depth = len(trunk.chain) - 1 if branch is None else branch.spec.exit_layer
    hidden = graph.layers(graph.embed(*inputs), bias, range(depth))
    if branch is not None:
        graph.multiplied.clear()
        _run_branch(graph, branch, hidden, bias=bias, first=first)
    watched = {name: value for name, value in graph.multiplied.items() if name.startswith("layers.")}
    if not watched:
        return {}
    lows, highs = _extremes(graph, watched, _batches(trunk, rows))
    return {name: _range(lows[name], highs[name], arrays[f"{name}.weight"]) for name in watched}


def _run_branch(graph: Graph, branch: StoredBranch, hidden: Value, *, bias: Value, first: Value) -> None:
    own = range(branch.spec.exit_layer, branch.spec.exit_layer + branch.spec.own_layers)
    has_folded = len(own) > 0 and folds(branch.spec.kind, branch.spec.pooling)
    hidden = graph.layers(hidden, bias, own[:-1] if has_folded else own)
    if has_folded:
        graph.folded(hidden, first, own[-1])


def _extremes(
    graph: Graph, watched: dict[str, Value], batches: Iterator[tuple[np.ndarray, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Least and greatest value of each channel, (n_in,), by name."""
    outputs = []
    for value in watched.values():
        over = np.arange(len(value.get_output_partial_shape(0)) - 1)
        outputs += [ops.reduce_min(value, over, keep_dims=False), ops.reduce_max(value, over, keep_dims=False)]
    model = ov.Model(outputs, graph.parameters)
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    lows: dict[str, list[np.ndarray]] = defaultdict(list)
    highs: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in batches:
        found = compiled(batch)
        for number, name in enumerate(watched):
            lows[name].append(found[2 * number].copy())
            highs[name].append(found[2 * number + 1].copy())
    return (
        {name: np.minimum.reduce(values) for name, values in lows.items()},
        {name: np.maximum.reduce(values) for name, values in highs.items()},
    )


def _batches(trunk: StoredTrunk, rows: Sequence[Encoded]) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows of one length together: what stands at padding must not widen a range."""
    masks = Masks(trunk.tensors.get("shared.relative_bias.weight"), lambda values: values)
    by_length: dict[int, list[Encoded]] = defaultdict(list)
    for row in rows:
        by_length[len(row.token_ids)].append(row)
    for n_tokens, equal in sorted(by_length.items()):
        for start in range(0, len(equal), _ROWS):
            chosen = equal[start : start + _ROWS]
            lengths = np.full(len(chosen), n_tokens, dtype=np.int64)
            layout = Layout(lengths, len(chosen), n_tokens, np.arange(len(chosen), dtype=np.int64) * n_tokens)
            ids = np.stack([row.token_ids for row in chosen]).astype(np.int32)
            types = np.stack([row.type_ids for row in chosen]).astype(np.int32)
            yield ids, types, layout.positions, masks.lines(layout), masks.first(lengths, n_tokens)


def _range(lows: np.ndarray, highs: np.ndarray, weights: np.ndarray) -> Range:
    inputs = np.maximum(np.maximum(-lows, highs), _LEAST)
    divisors = inputs**_ALPHA / np.maximum(np.abs(weights).max(axis=0), _LEAST) ** (1 - _ALPHA)
    divisors = (divisors / np.exp(np.log(divisors).mean())).astype(np.float32)
    low, high = float((lows / divisors).min()), float((highs / divisors).max())
    return Range(min(low, -_LEAST), max(high, _LEAST), divisors)
