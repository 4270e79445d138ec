"""torch: single-task models in bf16 or fp32, SDPA, under ``inference_mode``."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.peers.models import Attention, Lean, Reference, reference, seed_of
from benchmarks.peers.service import Service
from benchmarks.peers.shapes import ServedTask, Shape


class TorchRunner:
    """A torch module that takes ids and mask and returns logits for each task."""

    def __init__(self, module: Lean | Reference) -> None:
        self.tasks = module.tasks
        self._module = module

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        """Logits for each task, as float32."""
        with torch.inference_mode():
            return [out.float().numpy() for out in self._module(torch.from_numpy(ids), torch.from_numpy(mask))]


def torch_singles(
    shape: Shape,
    tasks: Sequence[ServedTask],
    tokenizer: Tokenizer,
    *,
    precision: str = "bf16",
    attention: Attention = "fused-sdpa",
) -> Service:
    """One full model for each task, on torch's own threads (set them with ``torch.set_num_threads``)."""
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[precision]
    runners = [
        TorchRunner(Lean(reference(shape, (task,), seed_of(place)), attention).to(kind).eval())
        for place, task in enumerate(tasks)
    ]
    return Service("torch", precision, tokenizer, runners)


def reference_runner(shape: Shape, tasks: Sequence[ServedTask], place: int) -> TorchRunner:
    """The transformers model that contestants are checked against; a joint model has all tasks and the place 0."""
    return TorchRunner(reference(shape, tuple(tasks), seed_of(place)))
