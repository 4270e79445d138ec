"""The backend for processors: OpenVINO, without torch; bfloat16 where the machine computes in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from weakref import WeakSet

import numpy as np
import openvino as ov

from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.errors import SpecError
from trunkline.engine.backends.base import BackendName, BranchPrograms, Floats, Precision, Program, Reading
from trunkline.engine.backends.graph import Graph, Value
from trunkline.engine.weights import MappedWeights, WeightStore, to_bits
from trunkline.model.config import EncoderConfig, embedding_tensor_shapes, layer_tensor_name, layer_tensor_shapes

PRECISIONS: dict[Precision, ov.Type] = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}
_ATTENTION = ("attention.query", "attention.key", "attention.value")


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
        precision: What is computed in.
    """

    name: BackendName = "openvino"

    def __init__(
        self, *, precision: Precision = "fp32", n_threads: int | None = None, store: WeightStore | None = None
    ) -> None:
        """Choose precision and threads.

        Args:
            precision: ``"fp32"`` or ``"bf16"``.
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
        self._element = PRECISIONS[precision]
        self._store = store or WeightStore()
        self._mapped: WeakSet[MappedWeights] = WeakSet()
        self._options = {
            "INFERENCE_PRECISION_HINT": self._element,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            **({} if n_threads is None else {"INFERENCE_NUM_THREADS": n_threads}),
        }

    def embeddings(self, trunk: StoredTrunk) -> Program:
        """See `trunkline.engine.backends.base.Backend`."""
        names = [name for name in embedding_tensor_shapes(trunk.config) if name.startswith("embeddings.")]
        weights = self._prepared(trunk.chain[0], {name: trunk.tensors[name] for name in names})
        graph = Graph(trunk.config, weights.arrays, self._element)
        token_ids, type_ids, positions = (graph.input(-1, -1, of_ids=True) for _ in range(3))
        return self._program(graph.model(graph.embed(token_ids, type_ids, positions)), (weights,))

    def layers(self, trunk: StoredTrunk, layers: range) -> Program:
        """See `trunkline.engine.backends.base.Backend`."""
        names = layer_tensor_shapes(trunk.config)
        weights = [
            self._prepared(
                trunk.chain[layer + 1],
                {full: trunk.tensors[full] for full in (layer_tensor_name(layer, name) for name in names)},
            )
            for layer in layers
        ]
        return self._whole(trunk.config, weights, layers)

    def branch(self, branch: StoredBranch, config: EncoderConfig) -> BranchPrograms:
        """See `trunkline.engine.backends.base.Backend`."""
        spec = branch.spec
        weights = self._prepared(branch.digest, branch.tensors)
        own = range(spec.exit_layer, spec.exit_layer + spec.own_layers)
        graph = Graph(config, weights.arrays, self._element)
        if spec.kind == "tagging" or spec.pooling == "mean":
            hidden, bias = graph.input(-1, -1, config.width), graph.input(-1, -1, -1, -1)
            states = graph.layers(hidden, bias, own)
            reads: Reading = "tokens"
            if spec.kind != "tagging":
                reads = "mean"
                states = graph.mean(states, graph.input(-1, -1), graph.input(-1))
            return BranchPrograms(reads, None, self._logits(graph, graph.output(states), weights))
        hidden = graph.input(-1, -1, config.width)
        first = graph.folded(hidden, graph.input(-1, -1, -1), own[-1]) if own else graph.first(hidden)
        logits = graph.output(graph.pooler(first))
        before = self._whole(config, [weights], own[:-1]) if len(own) > 1 else None
        return BranchPrograms("first", before, self._logits(graph, logits, weights))

    def take(self, states: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See `trunkline.engine.backends.base.Backend`."""
        return states.reshape(-1, states.shape[-1]).take(index, axis=0)

    def encode(self, values: np.ndarray) -> Floats:
        """See `trunkline.engine.backends.base.Backend`."""
        return to_bits(values) if self._element == ov.Type.bf16 else values.astype(np.float32, copy=False)

    def settle(self) -> None:
        """See `trunkline.engine.backends.base.Backend`."""
        for weights in list(self._mapped):
            weights.release()

    def _whole(self, config: EncoderConfig, weights: Sequence[MappedWeights], layers: Sequence[int]) -> "_Program":
        arrays = {name: array for each in weights for name, array in each.arrays.items()}
        graph = Graph(config, arrays, self._element)
        hidden, bias = graph.input(-1, -1, config.width), graph.input(-1, -1, -1, -1)
        return self._program(graph.model(graph.layers(hidden, bias, layers)), tuple(weights))

    def _prepared(self, source: str, tensors: Mapping[str, np.ndarray]) -> MappedWeights:
        weights = self._store.get(source, self.precision, lambda: _prepare(tensors, self.encode))
        self._mapped.add(weights)
        return weights

    def _logits(self, graph: Graph, logits: Value, weights: MappedWeights) -> "_Program":
        return self._program(graph.model(logits, as_float32=True), (weights,), gives_logits=True)

    def _program(
        self, model: ov.Model, weights: tuple[MappedWeights, ...], *, gives_logits: bool = False
    ) -> "_Program":
        compiled = _core().compile_model(model, "CPU", self._options)
        return _Program(compiled, compiled.create_infer_request(), weights, self._element, gives_logits)


def available_precisions() -> tuple[Precision, ...]:
    """What the processor computes in with OpenVINO: always fp32, and bf16 where it has instructions for it."""
    found = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in found else ("fp32",)


@cache
def _core() -> ov.Core:
    return ov.Core()


def _prepare(tensors: Mapping[str, np.ndarray], encode: Callable[[np.ndarray], Floats]) -> dict[str, np.ndarray]:
    """Stack queries, keys and values, so that a layer reads its input once, and narrow the numbers."""
    prepared: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        for part in _ATTENTION:
            if f".{part}." in name:
                stacked = name.replace(part, "attention.qkv")
                if stacked not in prepared:
                    parts = [tensors[name.replace(part, other)] for other in _ATTENTION]
                    prepared[stacked] = encode(np.concatenate(parts))
                break
        else:
            prepared[name] = encode(tensor)
    return prepared
