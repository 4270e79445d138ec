"""ONNX Runtime: single-task models, fp32 or dynamically quantized to int8.

The graph is written in plain operators and left to the session's own fusions. The contrib operators that
``onnxruntime.transformers.optimizer`` puts in their place bring nothing here: on 4 layers of 768, one thread, processor
time within 3% either way at 8 x 16 and 32 x 16 tokens.
"""

import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.peers.models import Reference, reference, seed_of
from benchmarks.peers.service import Service
from benchmarks.peers.shapes import ServedTask, Shape

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

CONTRIB = "com.microsoft"


class OnnxRunner:
    """A session; safe to call from several threads.

    Args:
        model: The graph.
        tasks: In the order of its outputs.
        n_threads: Threads of a call.
    """

    def __init__(self, model: "onnx.ModelProto", tasks: tuple[ServedTask, ...], *, n_threads: int = 2) -> None:
        import onnxruntime

        self.tasks = tasks
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3
        # by file: what is loaded from bytes keeps the bytes too
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            # fused, the skip and its norm take longer than apart: 3% of a pass in fp32, 11 to 14% in int8 (as above)
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
            )

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        """Logits for each task."""
        feed = {"ids": ids.astype(np.int32), "mask": mask.astype(np.int32)}
        return list(self._session.run(None, feed))


def onnx_singles(
    shape: Shape, tasks: Sequence[ServedTask], tokenizer: Tokenizer, *, precision: str = "f32", lanes: int = 1
) -> Service:
    """One full model for each task.

    Args:
        shape: Of each model.
        tasks: One model each.
        tokenizer: Reads the texts.
        precision: ``f32``, or ``int8`` for dynamic quantization.
        lanes: 1 for a call on two threads at a time, 2 for two calls on a thread each.
    """
    runners = []
    for place, task in enumerate(tasks):
        graph = GraphWriter(shape).write(reference(shape, (task,), seed_of(place)))
        if precision == "int8":
            graph = quantized(graph)
        runners.append(OnnxRunner(graph, (task,), n_threads=2 // lanes))
        del graph
        gc.collect()
    return Service(f"onnxruntime{'-lanes' if lanes > 1 else ''}", precision, tokenizer, runners, lanes=lanes)


def quantized(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Dynamic int8: weights by channel ahead of time, inputs of products by tensor as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            # onnx infers no types through the contrib operators
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return onnx.load(path)


class GraphWriter:
    """Writes a model in the fused operators of ONNX Runtime."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def write(self, model: Reference) -> "onnx.ModelProto":
        """The graph: int32 ``ids`` and ``mask`` (B, S) to an output for each task."""
        from onnx import TensorProto, helper

        self._prepare()
        hidden = self._embed(model)
        for layer in model.bert.encoder.layer:
            hidden = self._layer(layer, hidden)
        pooled = self._pool(model, hidden) if model.bert.pooler is not None else ""
        outputs = []
        for task, head in zip(model.tasks, model.heads, strict=True):
            made = self._linear(hidden if task.kind == "tagging" else pooled, head)
            self._nodes.append(helper.make_node("Identity", [made], [f"logits.{task.name}"]))
            outputs.append(helper.make_tensor_value_info(f"logits.{task.name}", TensorProto.FLOAT, None))
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["B", "S"]) for name in ("ids", "mask")]
        graph = helper.make_graph(self._nodes, "bert", inputs, outputs, self._weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def _embed(self, model: Reference) -> str:
        part = model.bert.embeddings
        words = self._weight(part.word_embeddings.weight)
        # every token is of type 0: its row goes into the positions, and types are left out
        positions = self._weight(part.position_embeddings.weight + part.token_type_embeddings.weight[0])
        norm = [self._weight(part.LayerNorm.weight), self._weight(part.LayerNorm.bias)]
        inputs = ["ids", "", words, positions, "", *norm, "mask"]
        return self._op("EmbedLayerNormalization", inputs, domain=CONTRIB, epsilon=self._shape.norm_eps)

    def _prepare(self) -> None:
        """What every layer uses: the shapes of heads, and the mask as a bias on scores (B, 1, 1, S)."""
        shape = self._shape
        head_width = shape.width // shape.n_heads
        self._constant("by-head", np.asarray([0, 0, shape.n_heads, head_width]))
        self._constant("joined", np.asarray([0, 0, shape.width]))
        self._constant("root", np.asarray(head_width**0.5, dtype=np.float32))
        self._constant("one", np.asarray(1, dtype=np.float32))
        self._constant("far", np.asarray(-10000, dtype=np.float32))
        self._constant("middle", np.asarray([1, 2]))
        padding = self._op("Sub", ["one", self._op("Cast", ["mask"], to=1)])
        self._op("Unsqueeze", [self._op("Mul", [padding, "far"]), "middle"], output="bias")

    def _layer(self, layer: "nn.Module", hidden: str) -> str:
        own = layer.attention.self
        q, k, v = (
            self._op("Transpose", [self._op("Reshape", [self._linear(hidden, part), "by-head"])], perm=order)
            for part, order in ((own.query, (0, 2, 1, 3)), (own.key, (0, 2, 3, 1)), (own.value, (0, 2, 1, 3)))
        )
        scores = self._op("Add", [self._op("Div", [self._op("MatMul", [q, k]), "root"]), "bias"])
        mixed = self._op("MatMul", [self._op("Softmax", [scores], axis=-1), v])
        mixed = self._op("Reshape", [self._op("Transpose", [mixed], perm=(0, 2, 1, 3)), "joined"])
        hidden = self._add_norm(mixed, layer.attention.output, hidden)
        wide = self._op("Gelu", [self._linear(hidden, layer.intermediate.dense)], domain=CONTRIB)
        return self._add_norm(wide, layer.output, hidden)

    def _add_norm(self, value: str, part: "nn.Module", skip: str) -> str:
        total = self._op("Add", [self._linear(value, part.dense), skip])
        norm = [self._weight(part.LayerNorm.weight), self._weight(part.LayerNorm.bias)]
        return self._op("LayerNormalization", [total, *norm], epsilon=self._shape.norm_eps)

    def _pool(self, model: Reference, hidden: str) -> str:
        self._constant("first", np.asarray(0))
        return self._op("Tanh", [self._linear(self._op("Gather", [hidden, "first"], axis=1), model.bert.pooler.dense)])

    def _linear(self, value: str, part: "nn.Linear") -> str:
        return self._op("Add", [self._op("MatMul", [value, self._weight(part.weight.T)]), self._weight(part.bias)])

    def _weight(self, value: "Tensor") -> str:
        return self._constant(f"w{len(self._weights)}", value.detach().numpy())

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self._weights.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def _op(self, kind: str, inputs: list[str], *, domain: str = "", output: str = "", **fields: Any) -> str:
        """A node, of which the first result is used."""
        from onnx import helper

        output = output or f"n{len(self._nodes)}"
        # of the embeddings the mask index must be named too, though nobody reads it
        outputs = [output, f"{output}.index"] if kind == "EmbedLayerNormalization" else [output]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=output, domain=domain, **fields))
        return output
