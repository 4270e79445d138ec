"""The reference forward pass, in torch: up the trunk once, answers at every exit as soon as they are there."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from trunkline.core.errors import SpecError, UnknownNameError, nearest_hint
from trunkline.core.types import Batch
from trunkline.model.branch import Branch
from trunkline.model.trunk import Trunk


class Runner:
    """Runs a trunk and its branches on batches.

    Every layer that is executed is a call of an `EncoderLayer` module, so forward hooks count them.
    """

    def __init__(self, trunk: Trunk, branches: Mapping[str, Branch], device: str = "cpu") -> None:
        """Move the modules to a device.

        Args:
            trunk: At least as deep as the deepest exit of the branches.
            branches: Task name to its branch.
            device: As torch names it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

        Raises:
            SpecError: The machine has no such device.
        """
        self.device = usable_device(device)
        self.trunk = trunk.to(self.device).eval()
        self.branches = {task: branch.to(self.device).eval() for task, branch in branches.items()}

    @torch.inference_mode()
    def run(self, batch: Batch, asked: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Run one batch.

        The trunk runs only up to the deepest exit that is asked for, and rows that nobody asks for deeper drop out.

        Args:
            batch: Padded rows.
            asked: Task name to the indices of the rows it answers, ascending int64.

        Yields:
            Task name and its logits, in the order of the exits: (rows asked, n_outputs) float32, or
            (rows asked, tokens, n_outputs) for tagging.

        Raises:
            UnknownNameError: A task has no branch.
        """
        exits = self._exits(asked)
        rows = np.zeros(0, dtype=np.int64)
        depth, hidden, mask, bias = 0, torch.empty(0), torch.empty(0), torch.empty(0)
        for exit_layer in sorted(exits):
            needed = _union(asked, [task for other in exits if other >= exit_layer for task in exits[other]])
            if not len(rows):
                rows, mask = needed, self._move(batch.mask[needed])
                hidden = self.trunk.embeddings(self._move(batch.token_ids[needed]), self._move(batch.type_ids[needed]))
                bias = self.trunk.bias(mask)
            elif len(needed) < len(rows):
                kept = self._move(np.searchsorted(rows, needed))
                rows, hidden, mask, bias = needed, hidden[kept], mask[kept], bias[kept]
            for layer in range(depth, exit_layer):
                hidden = self.trunk.layers[layer](hidden, bias)
            depth = exit_layer
            for task in exits[exit_layer]:
                yield task, self._branch_logits(task, (hidden, bias, mask), np.searchsorted(rows, asked[task]))

    def _exits(self, asked: Mapping[str, np.ndarray]) -> dict[int, list[str]]:
        exits: dict[int, list[str]] = {}
        for task, rows in asked.items():
            if task not in self.branches:
                raise UnknownNameError(f"task {task!r}: has no branch; {nearest_hint(task, self.branches)}")
            if len(rows):
                exits.setdefault(self.branches[task].exit_layer, []).append(task)
        return exits

    def _branch_logits(self, task: str, states: tuple[Tensor, Tensor, Tensor], rows: np.ndarray) -> np.ndarray:
        hidden, bias, mask = states
        if len(rows) < len(hidden):
            picked = self._move(rows)
            hidden, bias, mask = hidden[picked], bias[picked], mask[picked]
        logits: Tensor = self.branches[task](hidden, bias, mask)
        return logits.to("cpu", torch.float32).numpy()

    def _move(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)


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


def _union(asked: Mapping[str, np.ndarray], tasks: list[str]) -> np.ndarray:
    return np.unique(np.concatenate([asked[task] for task in tasks]))
