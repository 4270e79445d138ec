"""Measured costs: the engine writes them, the planner reads them, and the two never meet."""

from trunkline.core.errors import SpecError
from trunkline.core.specs import Spec

LONGEST_MS = 1_000_000  # Sums of many such costs in nanoseconds still fit 64 bits.


class CostTable(Spec, frozen=True, kw_only=True):
    """Measured marginal costs of one row, in milliseconds; what the planner knows of a machine.

    Attributes:
        trunk_layer_ms: Each layer of the trunk.
        own_layer_ms: Each whole layer of a branch.
        folded_layer_ms: The last layer of a branch that reads the first token alone.
        branch_ms: Each branch besides its layers: its head and what is done around it.
        request_ms: Once, besides trunk and branches.
        measured_on: Machine, precision, batch and row length; for people.
    """

    trunk_layer_ms: float
    own_layer_ms: float
    folded_layer_ms: float
    branch_ms: float = 0.0
    request_ms: float = 0.0
    measured_on: str = ""

    def __post_init__(self) -> None:
        """Refuse costs that are no times."""
        for name in ("trunk_layer_ms", "own_layer_ms", "folded_layer_ms", "branch_ms", "request_ms"):
            if not 0 <= getattr(self, name) <= LONGEST_MS:
                raise SpecError(f"cost table: {name} is {getattr(self, name)}; give milliseconds, 0 to {LONGEST_MS}")
