"""What plans cost: in layers, floating-point operations or milliseconds; budgets in these units. No torch.

A cost is a whole number of its unit's smallest step (a layer, an operation, a nanosecond), so that sums are exact and
equal costs are equal.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from trunkline.core.costs import CostTable
from trunkline.core.errors import SpecError
from trunkline.core.specs import Spec, decode_spec
from trunkline.model.cost import EncoderSizes, folded_layer_flops, layer_flops

Unit: TypeAlias = Literal["layers", "flops", "ms"]

STEPS_OF_UNIT: dict[Unit, int] = {"layers": 1, "flops": 1, "ms": 1_000_000}
"""How many of the smallest steps make one unit."""

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_DIGITS = 4  # Of a cost in print.
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:(layers?)|([KMGT]?)FLOPs?|(ms))\s*", re.IGNORECASE)


class Sized(Protocol):
    """A branch at its place: what its cost follows from."""

    @property
    def exit_layer(self) -> int:
        """Trunk layers below."""

    @property
    def own_layers(self) -> int:
        """Layers of its own."""

    @property
    def folded(self) -> bool:
        """Whether its last layer makes the first token alone."""


class Placed(Sized, Protocol):
    """A branch at its place, and what it reaches."""

    @property
    def selection_mean(self) -> float:
        """What it reaches, points."""

    @property
    def run_id(self) -> str:
        """The run that it came of."""


@dataclass(frozen=True, slots=True)
class Part:
    """A branch at its place, as values; attributes as of `Sized`."""

    exit_layer: int
    own_layers: int
    folded: bool


class Budget(Spec, frozen=True, kw_only=True):
    """The most that a plan may cost for one row when every task is asked.

    Attributes:
        amount: How much.
        unit: Of what: layers, floating-point operations or milliseconds.
    """

    amount: float
    unit: Unit

    def __post_init__(self) -> None:
        """Refuse what is no amount."""
        if not 0 <= self.amount < math.inf:
            raise SpecError(f"budget: {self.amount} {self.unit} is no amount; give a number of 0 or more")

    @property
    def steps(self) -> int:
        """In the unit's smallest steps, rounded down; the amount is taken as it is printed."""
        return math.floor(Decimal(repr(self.amount)) * STEPS_OF_UNIT[self.unit])

    @property
    def text(self) -> str:
        """For people, exact."""
        return cost_text(self.steps, self.unit, rounding=None)


@dataclass(frozen=True, slots=True)
class Prices:
    """What the parts of a plan cost in one unit, each in the unit's smallest steps.

    Attributes:
        unit: Of what.
        trunk_layer: Each layer of the trunk.
        own_layer: Each whole layer of a branch.
        folded_layer: The last layer of a branch that is folded.
        branch: Each branch besides.
        request: Once.
    """

    unit: Unit
    trunk_layer: int
    own_layer: int
    folded_layer: int
    branch: int = 0
    request: int = 0

    def trunk(self, depth: int) -> int:
        """Cost of all that is paid once, for a trunk of so many layers."""
        return self.request + depth * self.trunk_layer

    def own(self, placed: Sized) -> int:
        """Cost of one branch."""
        if placed.own_layers == 0:
            return self.branch
        last = self.folded_layer if placed.folded else self.own_layer
        return self.branch + (placed.own_layers - 1) * self.own_layer + last

    def total(self, branches: Iterable[Sized]) -> int:
        """Cost of a plan: the trunk down to the deepest exit, once, and every branch."""
        every = list(branches)
        return self.trunk(max((b.exit_layer for b in every), default=0)) + sum(self.own(b) for b in every)

    def share(self, branches: Iterable[Sized], n_layers: int) -> float:
        """Cost of a plan as a share of what single models would cost: one whole backbone a task.

        The last layer of a single model is folded where the task's branch folds, as an engine would run it.

        Args:
            branches: One a task, at least one.
            n_layers: Of the backbone.
        """
        every = list(branches)
        return self.total(every) / sum(self.own(Part(0, n_layers, branch.folded)) for branch in every)


LAYER_PRICES = Prices("layers", trunk_layer=1, own_layer=1, folded_layer=1)
"""The paper's overhead (section 4.1): a layer is a layer, folded or not."""


def flop_prices(sizes: EncoderSizes, tokens: float) -> Prices:
    """Operations of one row (`trunkline.model.cost`).

    Args:
        sizes: Of the backbone.
        tokens: The row's length.
    """
    whole, folded = round(layer_flops(sizes, [tokens])), round(folded_layer_flops(sizes, [tokens]))
    return Prices("flops", trunk_layer=whole, own_layer=whole, folded_layer=folded)


def ms_prices(table: CostTable) -> Prices:
    """Milliseconds of one row by a measured table."""
    steps = STEPS_OF_UNIT["ms"]
    return Prices(
        "ms",
        trunk_layer=round(table.trunk_layer_ms * steps),
        own_layer=round(table.own_layer_ms * steps),
        folded_layer=round(table.folded_layer_ms * steps),
        branch=round(table.branch_ms * steps),
        request=round(table.request_ms * steps),
    )


def cost_text(steps: int, unit: Unit, *, rounding: str | None = ROUND_HALF_EVEN) -> str:
    """A cost for people, which `parse_budget` can read: ``1 layer``, ``3.5 GFLOP`` or ``12 ms``.

    Args:
        steps: In the unit's smallest steps.
        unit: Of what.
        rounding: To four digits, as a mode of `decimal`: what somebody may take as a budget is rounded up
            (`decimal.ROUND_CEILING`). None for all digits.
    """
    if unit == "layers":
        return f"{steps} layer" if steps == 1 else f"{steps} layers"
    if unit == "ms":
        return f"{_number(steps, STEPS_OF_UNIT['ms'], rounding)} ms"
    prefix = next((name for name in "TGMK" if steps >= _FACTORS[name]), "")
    return f"{_number(steps, _FACTORS[prefix], rounding)} {prefix}FLOP"


def _number(steps: int, factor: int, rounding: str | None) -> str:
    """Steps by a power of ten, without an exponent."""
    amount = Decimal(steps) / factor
    if rounding is not None and amount:
        amount = amount.quantize(Decimal(1).scaleb(amount.adjusted() + 1 - _DIGITS), rounding=rounding)
    return f"{amount.normalize():f}"


def parse_budget(text: str) -> Budget:
    """A budget such as ``20layers``, ``3.5GFLOP`` or ``12 ms``.

    Raises:
        SpecError: It is none.
    """
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise SpecError(
            f"budget {text!r}: is not a budget; give a number and one of layers, FLOP, KFLOP, MFLOP, GFLOP, "
            "TFLOP, ms; for example 20layers"
        )
    if found[2]:
        return Budget(amount=float(found[1]), unit="layers")
    if found[4]:
        return Budget(amount=float(found[1]), unit="ms")
    # Whole operations: as a binary fraction 4.35 tera would lack one.
    return Budget(amount=float(math.floor(Decimal(found[1]) * _FACTORS[found[3].upper()])), unit="flops")


def read_cost_table(path: Path) -> CostTable:
    """Read a JSON file of measured costs.

    Raises:
        SpecError: The file is missing or is no such table.
    """
    subject = f"cost table {str(path)!r}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{subject}: cannot be read ({error.strerror}); check the path") from error
    return decode_spec(content, CostTable, subject)
