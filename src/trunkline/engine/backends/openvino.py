"""The backend for processors: OpenVINO, without torch; bfloat16 where the machine computes in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from weakref import WeakSet

import numpy as np
import openvino as ov

from trunkline.bundle.served import Range, Served, encode_ranges
from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.errors import SpecError
from trunkline.engine.backends.base import BackendName, BranchPrograms, Floats, Precision, Program, Reading
from trunkline.engine.backends.graph import Graph, Value, quantized_weights
from trunkline.engine.weights import MappedWeights, WeightStore
from trunkline.model.config import EncoderConfig, embedding_tensor_shapes, layer_tensor_name, layer_tensor_shapes
from trunkline.model.cost import folds
from trunkline.model.tensors import to_bits

PRECISIONS: dict[Precision, ov.Type] = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}
_ATTENTION = ("attention.query", "attention.key", "attention.value")


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """What a program computes in: an element type, and int8 in the dense layers that have ranges."""

    precision: Precision
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def element(self) -> ov.Type:
        return PRECISIONS[self.precision]

    @property
    def name(self) -> str:
        """Of prepared weights: ranges say which are int8, and what they are multiplied by before."""
        if not self.ranges:
            return self.precision
        return f"{self.precision}-int8-{sha256(encode_ranges(self.ranges)).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """A compiled graph with a request that runs it; keeps the weights alive that the graph reads."""

    compiled: ov.CompiledModel
    request: ov.InferRequest
    weights: tuple[MappedWeights, ...]
    element: ov.Type
    gives_logits: bool

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        for number, values in enumerate(inputs):
            element = ov.Type.i32 if values.dtype == np.int32 else self.element
            self.request.set_input_tensor(number, ov.Tensor(np.ascontiguousarray(values), list(values.shape), element))
        self.request.infer()
        data: np.ndarray = self.request.get_output_tensor(0).data
        # Logits leave the engine, states do not: the next run writes into the same memory.
        if self.gives_logits:
            logits = data.copy()
            logits.setflags(write=False)  # Callers with equal rows get the same arrays.
            return logits
        return data if self.element == ov.Type.f32 else data.view(np.uint16)

    def twin(self) -> "_Program":
        return replace(self, request=self.compiled.create_infer_request())


class OpenVinoBackend:
    """Builds graphs out of verified weights and runs them.

    Attributes:
        name: ``"openvino"``.
        precision: What is computed in, and what states between programs are.
        as_gated: Whether parts of a bundle that passed its gate compute in what they passed it in.
    """

    name: BackendName = "openvino"

    def __init__(
        self,
        *,
        precision: Precision = "fp32",
        as_gated: bool = False,
        n_threads: int | None = None,
        store: WeightStore | None = None,
    ) -> None:
        """Choose precision and threads.

        Args:
            precision: ``"fp32"`` or ``"bf16"``.
            as_gated: Compute in what a bundle's gate accepted, and in ``precision`` what passed none. The gate's bf16
                is fp32 on a processor without it.
            n_threads: How many threads compute; None takes one for each processor.
            store: Where prepared weights are kept.

        Raises:
            SpecError: The precision is another, or the processor does not compute in it.
        """
        if n_threads is not None and n_threads < 1:
            raise SpecError(f"n_threads: {n_threads} is not allowed; give 1 or more, or leave it out")
        if precision not in available_precisions():
            raise SpecError(
                f"precision {precision!r}: this processor computes in {', '.join(available_precisions())} with "
                "OpenVINO; choose one of them"
            )
        self.precision: Precision = precision
        self.as_gated = as_gated
        self._element = PRECISIONS[precision]
        self._store = store or WeightStore()
        self._mapped: WeakSet[MappedWeights] = WeakSet()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            **({} if n_threads is None else {"INFERENCE_NUM_THREADS": n_threads}),
        }

    def embeddings(self, trunk: StoredTrunk) -> Program:
        """See `trunkline.engine.backends.base.Backend`."""
        names = [name for name in embedding_tensor_shapes(trunk.config) if name.startswith("embeddings.")]
        form = _Form(self._form(trunk.served).precision)
        weights = self._prepared(trunk.chain[0], {name: trunk.tensors[name] for name in names}, form)
        graph = self._graph(trunk.config, [weights], form)
        token_ids, type_ids, positions = (graph.input(-1, -1, of_ids=True) for _ in range(3))
        return self._program(graph.model(graph.embed(token_ids, type_ids, positions)), [weights], form)

    def layers(self, trunk: StoredTrunk, layers: range) -> Program:
        """See `trunkline.engine.backends.base.Backend`."""
        names, form = layer_tensor_shapes(trunk.config), self._form(trunk.served)
        weights = [
            self._prepared(
                trunk.chain[layer + 1],
                {full: trunk.tensors[full] for full in (layer_tensor_name(layer, name) for name in names)},
                form,
            )
            for layer in layers
        ]
        return self._whole(trunk.config, weights, layers, form)

    def branch(self, branch: StoredBranch, config: EncoderConfig) -> BranchPrograms:
        """See `trunkline.engine.backends.base.Backend`."""
        spec, form = branch.spec, self._form(branch.served)
        weights = self._prepared(branch.digest, branch.tensors, form)
        own = range(spec.exit_layer, spec.exit_layer + spec.own_layers)
        graph = self._graph(config, [weights], form)
        if not folds(spec.kind, spec.pooling):
            hidden, bias = graph.input(-1, -1, config.width), graph.input(-1, -1, -1, -1)
            states = graph.layers(hidden, bias, own)
            reads: Reading = "tokens"
            if spec.kind != "tagging":
                reads = "mean"
                states = graph.mean(states, graph.input(-1, -1), graph.input(-1))
            return BranchPrograms(reads, None, self._logits(graph, graph.output(states), weights, form))
        hidden = graph.input(-1, -1, config.width)
        first = graph.folded(hidden, graph.input(-1, -1, -1), own[-1]) if own else graph.first(hidden)
        logits = graph.output(graph.pooler(first))
        before = self._whole(config, [weights], own[:-1], form) if len(own) > 1 else None
        return BranchPrograms("first", before, self._logits(graph, logits, weights, form))

    def take(self, states: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See `trunkline.engine.backends.base.Backend`."""
        return states.reshape(-1, states.shape[-1]).take(index, axis=0)

    def encode(self, values: np.ndarray) -> Floats:
        """See `trunkline.engine.backends.base.Backend`."""
        return _encoded(values, self._element)

    def settle(self) -> None:
        """See `trunkline.engine.backends.base.Backend`."""
        for weights in list(self._mapped):
            weights.release()

    def _form(self, served: Served) -> _Form:
        if not self.as_gated or served.precision is None:
            return _Form(self.precision)
        if served.precision == "int8":
            return _Form(self.precision, served.ranges)
        return _Form(served.precision if served.precision in available_precisions() else "fp32")

    def _graph(self, config: EncoderConfig, weights: Sequence[MappedWeights], form: _Form) -> Graph:
        arrays = {name: array for each in weights for name, array in each.arrays.items()}
        return Graph(config, arrays, form.element, carried=self._element, ranges=form.ranges)

    def _whole(
        self, config: EncoderConfig, weights: Sequence[MappedWeights], layers: Sequence[int], form: _Form
    ) -> "_Program":
        graph = self._graph(config, weights, form)
        hidden, bias = graph.input(-1, -1, config.width), graph.input(-1, -1, -1, -1)
        return self._program(graph.model(graph.layers(hidden, bias, layers)), weights, form)

    def _prepared(self, source: str, tensors: Mapping[str, np.ndarray], form: _Form) -> MappedWeights:
        weights = self._store.get(source, form.name, lambda: _prepare(tensors, form))
        self._mapped.add(weights)
        return weights

    def _logits(self, graph: Graph, logits: Value, weights: MappedWeights, form: _Form) -> "_Program":
        return self._program(graph.model(logits, as_float32=True), [weights], form, gives_logits=True)

    def _program(
        self, model: ov.Model, weights: Sequence[MappedWeights], form: _Form, *, gives_logits: bool = False
    ) -> "_Program":
        compiled = core().compile_model(model, "CPU", {**self._options, "INFERENCE_PRECISION_HINT": form.element})
        return _Program(compiled, compiled.create_infer_request(), tuple(weights), self._element, gives_logits)


def available_precisions() -> tuple[Precision, ...]:
    """What the processor computes in with OpenVINO: always fp32, and bf16 where it has instructions for it."""
    found = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in found else ("fp32",)


@cache
def core() -> ov.Core:
    """The runtime, one for the process."""
    return ov.Core()


def _prepare(tensors: Mapping[str, np.ndarray], form: _Form) -> dict[str, np.ndarray]:
    """Stack queries, keys and values, so that a layer reads its input once, and narrow the numbers."""
    stacked = stacked_attention(tensors)
    whole = quantized_weights(stacked, form.ranges)
    narrow = {name: _encoded(array, form.element) for name, array in stacked.items() if name not in whole}
    # Wide numbers first: each array then begins at a multiple of its own numbers' size.
    return dict(sorted((narrow | whole).items(), key=lambda item: -item[1].itemsize))


def stacked_attention(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as `Graph` takes them: queries, keys and values of a layer as one (``attention.qkv``)."""
    stacked: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        part = next((part for part in _ATTENTION if f".{part}." in name), None)
        if part is None:
            stacked[name] = tensor
        elif part == _ATTENTION[0]:
            parts = [tensors[name.replace(part, other)] for other in _ATTENTION]
            stacked[name.replace(part, "attention.qkv")] = np.concatenate(parts)
    return stacked


def _encoded(values: np.ndarray, element: ov.Type) -> Floats:
    return to_bits(values) if element == ov.Type.bf16 else values.astype(np.float32, copy=False)
