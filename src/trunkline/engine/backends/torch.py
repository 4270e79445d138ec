"""The reference backend: the modules that training uses, on any device that torch has.

On CUDA it computes in fp16 or bf16 as asked; that path was written without a GPU at hand and has not been run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.core.errors import SpecError
from trunkline.engine.backends.base import BackendName, BranchPrograms, Floats, Precision, Program, Reading
from trunkline.model.branch import Branch, load_branch
from trunkline.model.config import EncoderConfig
from trunkline.model.heads import ClsHead, TokenHead
from trunkline.model.trunk import Trunk, load_layers

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """A function on modules, which keeps nothing between two runs."""

    run: Callable[..., Any]

    def __call__(self, *inputs: Any) -> Any:
        with torch.inference_mode():
            return self.run(*inputs)

    def twin(self) -> "_Program":
        return self


ModuleT = TypeVar("ModuleT", bound=nn.Module)


class TorchBackend:
    """Runs modules; every layer that is executed is a call of an `EncoderLayer`, so forward hooks count them.

    Attributes:
        name: ``"torch"``.
        precision: What is computed in.
        as_gated: Never: it is the reference.
        device: Where.
    """

    name: BackendName = "torch"
    as_gated: bool = False

    def __init__(self, *, precision: Precision = "fp32", device: str = "cpu") -> None:
        """Choose precision and device.

        Args:
            precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
            device: As torch names it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

        Raises:
            SpecError: The machine has no such device, or the precision is another.
        """
        if precision not in DTYPES:
            raise SpecError(f"precision {precision!r}: the torch backend has {', '.join(DTYPES)}; choose one of them")
        self.precision: Precision = precision
        self.device = usable_device(device)
        self._dtype = DTYPES[precision]

    def embeddings(self, trunk: StoredTrunk) -> Program:
        """See `trunkline.engine.backends.base.Backend`."""
        module = self._ready(Trunk.build(trunk.config, trunk.tensors, depth=0)).embeddings

        def run(token_ids: np.ndarray, type_ids: np.ndarray, positions: np.ndarray) -> Tensor:
            states: Tensor = module(self._ids(token_ids), self._ids(type_ids), self._ids(positions))
            return states

        return _Program(run)

    def layers(self, trunk: StoredTrunk, layers: range) -> Program:
        """See `trunkline.engine.backends.base.Backend`."""
        return self._whole(list(self._ready(load_layers(trunk.config, trunk.tensors, layers))))

    def branch(self, branch: StoredBranch, config: EncoderConfig) -> BranchPrograms:
        """See `trunkline.engine.backends.base.Backend`."""
        module = self._ready(load_branch(branch.spec, config, branch.tensors))
        layers = list(module.layers.values())
        if not isinstance(module.head, ClsHead):
            reads: Reading = "tokens" if isinstance(module.head, TokenHead) else "mean"
            return BranchPrograms(reads, None, self._on_lines(module))
        before = self._whole(layers[:-1]) if len(layers) > 1 else None
        return BranchPrograms("first", before, self._on_rows(layers[-1:], module.head))

    @torch.inference_mode()
    def take(self, states: Tensor, index: np.ndarray) -> Tensor:
        """See `trunkline.engine.backends.base.Backend`."""
        return states.flatten(0, 1)[self._ids(index)]

    def encode(self, values: np.ndarray) -> Floats:
        """See `trunkline.engine.backends.base.Backend`; narrow types are made on the device."""
        return values.astype(np.float32, copy=False)

    def settle(self) -> None:
        """See `trunkline.engine.backends.base.Backend`; there is nothing to let go."""

    def _whole(self, layers: Sequence[nn.Module]) -> Program:
        def run(states: Tensor, bias: Floats) -> Tensor:
            moved = self._floats(bias)
            for layer in layers:
                states = layer(states, moved)
            return states

        return _Program(run)

    def _on_rows(self, last: Sequence[nn.Module], head: ClsHead) -> Program:
        def run(states: Tensor, *bias: Floats) -> np.ndarray:
            for layer, values in zip(last, bias, strict=True):
                states = layer(states, self._floats(values)[:, :, None], first_only=True)
            return _logits(head(states[:, 0]))

        return _Program(run)

    def _on_lines(self, branch: Branch) -> Program:
        layers, head = self._whole(list(branch.layers.values())), branch.head

        def run(states: Tensor, bias: Floats, *reading: np.ndarray) -> np.ndarray:
            states = layers(states, bias)
            if reading:
                pooling, lengths = (self._floats(values) for values in reading)
                states = (pooling @ states.flatten(0, 1)) / lengths[:, None]
            return _logits(head(states))

        return _Program(run)

    def _ready(self, module: ModuleT) -> ModuleT:
        return module.to(self.device, self._dtype).requires_grad_(requires_grad=False).eval()

    def _ids(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, torch.int64)

    def _floats(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, self._dtype)


def usable_device(name: str) -> torch.device:
    """A device of this machine.

    Raises:
        SpecError: There is none of that name.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {name!r}: cannot be used ({reason}); 'cpu' always can; choose another") from error
    return device


def _logits(values: Tensor) -> np.ndarray:
    logits = values.to("cpu", torch.float32).numpy()
    logits.setflags(write=False)  # Callers with equal rows get the same arrays.
    return logits
