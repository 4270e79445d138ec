"""Which contestants run beside the engine, how many of their models, and what is made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from benchmarks.engine_shapes import OwnLayers
from benchmarks.peers.adapters_peer import AdaptersService
from benchmarks.peers.onnx_peer import onnx_singles
from benchmarks.peers.openvino_peer import openvino_int8_singles, openvino_joint, openvino_singles
from benchmarks.peers.service import Contestant
from benchmarks.peers.shapes import SHAPES, ServedTask
from benchmarks.peers.torch_peer import torch_singles

SHAPE = SHAPES["bert-base"]
SINGLES = "single-task 12-layer models"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who runs beside the engine.

    Attributes:
        name: As it is printed.
        what: What it is.
        precision: Of its products; speedups compare equal ones.
        build: Makes it for some tasks.
        scales: Whether it is one model for each task, one after the other, so that few stand for all.
    """

    name: str
    what: str
    precision: str
    build: Callable[[Sequence[ServedTask]], Contestant]
    scales: bool = True


def peers(tokenizer: Tokenizer, calibration: Sequence[str]) -> tuple[Peer, ...]:
    """All of them; nothing is built until `Peer.build` is called."""
    half = SHAPE.with_layers(SHAPE.n_layers // 2)

    def singles(build: Callable[..., Contestant], **more: Any) -> Callable[[Sequence[ServedTask]], Contestant]:
        return lambda tasks: build(SHAPE, tasks, tokenizer, **more)

    return (
        Peer("openvino-bf16", SINGLES, "bf16", singles(openvino_singles)),
        Peer("openvino-bf16-lanes", SINGLES, "bf16", singles(openvino_singles, lanes=2)),
        Peer("torch-bf16", SINGLES, "bf16", singles(torch_singles)),
        Peer("onnxruntime-f32", SINGLES, "f32", singles(onnx_singles)),
        Peer("onnxruntime-int8", SINGLES, "int8", singles(onnx_singles, precision="int8")),
        Peer("onnxruntime-int8-lanes", SINGLES, "int8", singles(onnx_singles, precision="int8", lanes=2)),
        Peer("openvino-int8", SINGLES, "int8", singles(openvino_int8_singles, texts=calibration)),
        Peer(
            "students-bf16",
            "6-layer students",
            "bf16",
            lambda tasks: openvino_singles(half, tasks, tokenizer, name="students"),
        ),
        Peer(
            "adapters-bf16",
            "AdapterHub, Parallel and AdapterDrop (5 of 12)",
            "bf16",
            partial(AdaptersService, SHAPE),
            scales=False,
        ),
        Peer(
            "joint-bf16",
            "one jointly trained trunk, a linear head a task",
            "bf16",
            lambda tasks: openvino_joint(SHAPE, tasks, tokenizer),
            scales=False,
        ),
    )


def served(tasks: Sequence[OwnLayers]) -> tuple[ServedTask, ...]:
    """The tasks of a shape as contestants know them."""
    return tuple(ServedTask(task.name, task.kind, task.n_outputs) for task in tasks)  # type: ignore[arg-type]


def standing_for(tasks: Sequence[OwnLayers], n: int) -> tuple[ServedTask, ...]:
    """`n` of the tasks that stand for all: evenly out of them, so that kinds are mixed as they are.

    Args:
        tasks: All.
        n: How many.
    """
    step = len(tasks) / n
    return served([tasks[int(step * (place + 0.5))] for place in range(n)])


def is_single(peer: Peer) -> bool:
    """Whether it counts among the single-task models that speedups are over."""
    return peer.what == SINGLES


def of_precision(names: Mapping[str, Peer], precision: str) -> list[str]:
    """Names of the single-task models in a precision."""
    return [name for name, peer in names.items() if is_single(peer) and peer.precision == precision]
