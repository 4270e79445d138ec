"""An encoder's graphs in OpenVINO's own operators, without torch (design.md, section 5).

All of a graph is in one element type, weights included, so that the runtime makes no second copy of them in another;
but for dense layers whose input has a known range: those multiply int8 (decision 0017).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from trunkline.bundle.served import Range
from trunkline.model.config import EncoderConfig, layer_tensor_name
from trunkline.model.tensors import to_int8

NO_RANGES: Mapping[str, Range] = MappingProxyType({})
_I32 = np.int32
_ELEMENTS = {"float32": ov.Type.f32, "uint16": ov.Type.bf16, "int8": ov.Type.i8}
_LEVELS = 256
Value: TypeAlias = Any
"""A node of a graph, or one of its outputs."""


class Graph:
    """One graph as it grows: parameters, constants out of given arrays, and the bricks of an encoder.

    Attributes:
        parameters: Inputs, in the order in which they were asked for.
        multiplied: Name of each dense layer of an encoder layer to what it multiplies.
    """

    def __init__(
        self,
        config: EncoderConfig,
        arrays: Mapping[str, np.ndarray],
        element: ov.Type,
        *,
        carried: ov.Type | None = None,
        ranges: Mapping[str, Range] = NO_RANGES,
    ) -> None:
        """Take what graphs are made of.

        Args:
            config: Facts of the backbone.
            arrays: Canonical name to weights in the element type, queries, keys and values of a layer stacked
                (``attention.qkv``). They are not copied and must outlive the compiled graph. Of a dense layer in
                ``ranges`` the weight is int8, and beside it lie its scales (`quantized_weights`).
            element: float32 or bfloat16: what is computed in.
            carried: The element type of inputs and states; None takes ``element``.
            ranges: Dense layers that multiply int8, and the ranges of their inputs.
        """
        self.parameters: list[Value] = []
        self.multiplied: dict[str, Value] = {}
        self._carried = carried or element
        self._ranges = ranges
        self._config = config
        self._arrays = arrays
        self._element = element
        self._head_width = config.width // config.n_heads

    def input(self, *shape: int, of_ids: bool = False) -> Value:
        """A further parameter; -1 is an axis of any length."""
        parameter = ops.parameter(list(shape), ov.Type.i32 if of_ids else self._carried)
        self.parameters.append(parameter)
        return parameter if of_ids else _converted(parameter, self._carried, self._element)

    def model(self, output: Value, *, as_float32: bool = False) -> ov.Model:
        """The graph as a model of one output."""
        given = ov.Type.f32 if as_float32 else self._carried
        return ov.Model([_converted(output, self._element, given)], self.parameters)

    def embed(self, token_ids: Value, type_ids: Value, positions: Value) -> Value:
        """Word, position and type embeddings, normalised: (lines, tokens, width)."""
        offset = ops.constant(np.array(self._config.position_offset, _I32))
        hidden = ops.add(
            self._rows("embeddings.word.weight", token_ids),
            self._rows("embeddings.position.weight", ops.add(positions, offset)),
        )
        if self._config.n_types:
            hidden = ops.add(hidden, self._rows("embeddings.token_type.weight", type_ids))
        hidden = self._norm(hidden, "embeddings.norm")
        if self._config.embedding_width != self._config.width:
            hidden = self._dense(hidden, "embeddings.projection")
        return hidden

    def layers(self, hidden: Value, bias: Value, layers: Sequence[int]) -> Value:
        """Whole layers: (lines, tokens, width)."""
        for layer in layers:
            hidden = self._layer(hidden, bias, layer)
        return hidden

    def folded(self, hidden: Value, bias: Value, layer: int) -> Value:
        """A layer's first token alone, without keys and values (see `trunkline.model.folded`).

        Args:
            hidden: (rows, tokens, width).
            bias: (rows, 1 or heads, tokens).
            layer: Absolute layer index.

        Returns:
            (rows, width).
        """
        name = layer_tensor_name(layer, "attention")
        heads, width, head_width = self._config.n_heads, self._config.width, self._head_width
        first = self.first(hidden)
        query = self._add(_times_transposed(first, self._part(f"{name}.qkv.weight", 0)), f"{name}.qkv.bias", 0)
        query = ops.multiply(query, self._number(head_width**-0.5))
        by_head = ops.transpose(_reshape(query, _ints(-1, heads, head_width)), _ints(1, 0, 2))
        asked = _times(by_head, self._part(f"{name}.qkv.weight", 1, by_head=True))
        scores = ops.add(_times_transposed(ops.transpose(asked, _ints(1, 0, 2)), hidden), bias)
        read = ops.transpose(_times(ops.softmax(scores, 2), hidden), _ints(1, 0, 2))
        values = _times_transposed(read, self._part(f"{name}.qkv.weight", 2, by_head=True))
        mixed = _reshape(ops.transpose(values, _ints(1, 0, 2)), _ints(-1, width))
        mixed = self._add(mixed, f"{name}.qkv.bias", 2)
        return self._after_attention(first, mixed, layer)

    def first(self, hidden: Value) -> Value:
        """The first token of each row: (rows, width)."""
        return ops.squeeze(ops.slice(hidden, _ints(0), _ints(1), _ints(1), _ints(1)), _ints(1))

    def mean(self, hidden: Value, pooling: Value, lengths: Value) -> Value:
        """Means over rows: pooling (rows, all tokens) of 0 and 1, lengths (rows,), to (rows, width)."""
        flat = _reshape(hidden, _ints(-1, self._config.width))
        return ops.divide(_times(pooling, flat), ops.unsqueeze(lengths, _ints(1)))

    def pooler(self, features: Value) -> Value:
        """The dense layer and tanh under a head that reads the first token."""
        return ops.tanh(self._dense(features, "head.pooler"))

    def output(self, features: Value) -> Value:
        """Logits."""
        return self._dense(features, "head.output")

    def _layer(self, hidden: Value, bias: Value, layer: int) -> Value:
        name = layer_tensor_name(layer, "attention")
        width = self._config.width
        stacked = self._dense(hidden, f"{name}.qkv")
        query, key, value = ops.variadic_split(stacked, 2, _ints(width, width, width)).outputs()
        mixed = ops.scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value), bias)
        joined = _reshape(ops.transpose(mixed, _ints(0, 2, 1, 3)), _ints(0, 0, width))
        return self._after_attention(hidden, joined, layer)

    def _after_attention(self, hidden: Value, mixed: Value, layer: int) -> Value:
        def name(part: str) -> str:
            return layer_tensor_name(layer, part)

        middle = self._norm(ops.add(hidden, self._dense(mixed, name("attention.output"))), name("attention.norm"))
        inner = self._activation(self._dense(middle, name("ffn.up")))
        return self._norm(ops.add(middle, self._dense(inner, name("ffn.down"))), name("ffn.norm"))

    def _heads(self, values: Value) -> Value:
        split = _reshape(values, _ints(0, 0, self._config.n_heads, self._head_width))
        return ops.transpose(split, _ints(0, 2, 1, 3))

    def _activation(self, values: Value) -> Value:
        match self._config.activation:
            case "gelu":
                return ops.gelu(values, "erf")
            case "gelu_tanh":
                return ops.gelu(values, "tanh")
            case "relu":
                return ops.relu(values)
            case "silu":
                return ops.swish(values)

    def _norm(self, values: Value, name: str) -> Value:
        scaled = ops.mvn(values, _ints(-1), normalize_variance=True, eps=self._config.norm_eps, eps_mode="inside_sqrt")
        weighted = ops.multiply(scaled, self._constant(f"{name}.weight"))
        return ops.add(weighted, self._constant(f"{name}.bias"))

    def _dense(self, values: Value, name: str) -> Value:
        self.multiplied[name] = values
        if name in self._ranges:
            product = self._int8_product(values, name)
        else:
            product = _times_transposed(values, self._constant(f"{name}.weight"))
        return ops.add(product, self._constant(f"{name}.bias"))

    def _int8_product(self, values: Value, name: str) -> Value:
        """In the form that OpenVINO turns into one int8 product: fake quantization, and whole numbers times scales."""
        known = self._ranges[name]
        low, high = np.float32(known.low), np.float32(known.high)
        exact = _converted(values, self._element, ov.Type.f32)
        if known.divisors is not None:
            exact = ops.multiply(exact, ops.constant(1 / known.divisors))
        rounded = ops.fake_quantize(exact, low, high, low, high, _LEVELS)
        whole = ops.convert(self._constant(f"{name}.weight"), "f32")
        weights = ops.multiply(whole, self._constant(f"{name}.weight.scales"))
        return _converted(_times_transposed(rounded, weights), ov.Type.f32, self._element)

    def _rows(self, name: str, ids: Value) -> Value:
        # A table is the largest thing that is never packed, and a batch reads few of its rows: it stays mapped.
        return ops.gather(self._shared(self._arrays[name]), ids, ops.constant(np.array(0, _I32)))

    def _part(self, name: str, number: int, *, by_head: bool = False) -> Value:
        """Queries (0), keys (1) or values (2) of stacked weights."""
        width = self._config.width
        part = self._arrays[name][number * width : (number + 1) * width]
        shape = (self._config.n_heads, self._head_width, width) if by_head else part.shape
        return self._held(part.reshape(shape)) if by_head else self._shared(part)

    def _add(self, values: Value, name: str, number: int) -> Value:
        width = self._config.width
        return ops.add(values, self._held(self._arrays[name][number * width : (number + 1) * width]))

    def _constant(self, name: str) -> Value:
        array = self._arrays[name]
        return self._shared(array) if array.ndim > 1 else self._held(array)

    def _number(self, value: float) -> Value:
        return ops.convert(ops.constant(np.float32(value)), self._element.get_type_name())

    def _held(self, array: np.ndarray) -> Value:
        """Weights that the runtime reads as they are, never packed: in memory of its own.

        Mapped pages that are idle for seconds may be taken back by the kernel, and a later batch would wait for them.
        """
        return ops.constant(ov.Tensor(array, list(array.shape), _ELEMENTS[array.dtype.name]), shared_memory=False)

    def _shared(self, array: np.ndarray) -> Value:
        element = _ELEMENTS[array.dtype.name]
        return ops.constant(ov.Tensor(array, list(array.shape), element), shared_memory=True)


def quantized_weights(arrays: Mapping[str, np.ndarray], ranges: Mapping[str, Range]) -> dict[str, np.ndarray]:
    """Weights of dense layers as int8 with their scales: ``<name>.weight`` and ``<name>.weight.scales``.

    Args:
        arrays: Canonical name to float32, as `Graph` takes them.
        ranges: Of which dense layers; those that the arrays lack are left out.
    """
    found: dict[str, np.ndarray] = {}
    for name, known in ranges.items():
        weights = arrays.get(f"{name}.weight")
        if weights is not None:
            scaled = weights if known.divisors is None else weights * known.divisors
            found[f"{name}.weight"], found[f"{name}.weight.scales"] = to_int8(scaled)
    return found


def _converted(values: Value, given: ov.Type, wanted: ov.Type) -> Value:
    return values if given == wanted else ops.convert(values, wanted.get_type_name())


def _times(left: Value, right: Value) -> Value:
    return ops.matmul(left, right, transpose_a=False, transpose_b=False)


def _times_transposed(left: Value, right: Value) -> Value:
    return ops.matmul(left, right, transpose_a=False, transpose_b=True)


def _reshape(values: Value, shape: np.ndarray) -> Value:
    """-1 is what is left over, 0 what it was."""
    return ops.reshape(values, shape, special_zero=True)


def _ints(*values: int) -> np.ndarray:
    return np.array(values, _I32)
