"""What a backend must do, and which one a machine gets. A further backend is one file with one class."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from trunkline.bundle.store import StoredBranch, StoredTrunk
from trunkline.model.config import EncoderConfig

Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
BackendName: TypeAlias = Literal["openvino", "torch"]

States: TypeAlias = Any
"""Hidden states in a backend's own form, (lines, line_tokens, width)."""
Floats: TypeAlias = np.ndarray
"""Numbers in a backend's element type: float32, or bfloat16 as the uint16 of its bits."""
Reading: TypeAlias = Literal["first", "mean", "tokens"]


@runtime_checkable
class Program(Protocol):
    """Something compiled, run by one thread at a time.

    What it returns may be overwritten when it runs again, unless it is logits.
    """

    def __call__(self, *inputs: Any) -> Any:
        """Run."""
        ...

    def twin(self) -> "Program":
        """The same with memory of its own for what it computes, for another thread; weights are shared."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BranchPrograms:
    """One branch, ready to run; which inputs `top` takes follows from what its head reads.

    - ``first``: `before` is run if there is one; then ``top(states, bias)`` on rows one by one
      (`Layout.padded`, `Masks.first`), its last layer folded; without own layers ``top(first tokens)``;
    - ``mean``: ``top(states, bias, pooling, lengths)`` on lines;
    - ``tokens``: ``top(states, bias)`` on lines.

    Attributes:
        reads: What the head reads.
        before: Whole layers under a folded one: states and bias of lines to states.
        top: The remaining layers and the head; gives float32 logits, (rows, n_outputs) or (lines, tokens, n_outputs).
    """

    reads: Reading
    before: Program | None
    top: Program

    def twin(self) -> "BranchPrograms":
        """See `Program.twin`."""
        return BranchPrograms(self.reads, self.before and self.before.twin(), self.top.twin())


@runtime_checkable
class Backend(Protocol):
    """Builds programs out of verified weights.

    Attributes:
        name: Its name.
        precision: What programs compute in.
        as_gated: Whether they compute, instead, in what a bundle's gate accepted where it accepted something.
    """

    name: BackendName
    precision: Precision
    as_gated: bool

    def embeddings(self, trunk: StoredTrunk) -> Program:
        """Token ids, type ids and positions, each (lines, line_tokens) int32, to states."""
        ...

    def layers(self, trunk: StoredTrunk, layers: range) -> Program:
        """Whole layers of the trunk: states and bias, as of `Masks.lines`, to states."""
        ...

    def branch(self, branch: StoredBranch, config: EncoderConfig) -> BranchPrograms:
        """A branch's own layers and head."""
        ...

    def take(self, states: States, index: np.ndarray) -> States:
        """Tokens by their place over all lines, copied.

        Args:
            states: (lines, line_tokens, width).
            index: (lines or rows, tokens) int64.
        """
        ...

    def encode(self, values: np.ndarray) -> Floats:
        """From float32 to the backend's element type."""
        ...

    def settle(self) -> None:
        """Let go what only compiling and first runs needed."""
        ...
