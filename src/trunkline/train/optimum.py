"""The best choices for every budget at once, exactly: one choice a task, the trunk paid once. No torch.

For a trunk that is cut at depth D this is a multiple-choice knapsack over the choices that read at D or above. All
undominated sums of the first tasks are combined with the choices of the next one, and what costs as much and is worth
no more is dropped: no later choice could make up for it. So nothing is lost, and all budgets are answered together.
Values and costs are whole numbers: sums are exact, and a tie is a tie (decision 0012).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Whole: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to solve a task.

    Attributes:
        value: What it is worth.
        exit_layer: How deep the trunk must be.
        cost: What it adds to the cost of the trunk.
    """

    value: int
    exit_layer: int
    cost: int


@dataclass(frozen=True, slots=True)
class Pick:
    """One choice for each task.

    Attributes:
        value: Sum of the choices' values.
        cost: Of the trunk and all choices.
        choices: For each task the index of its choice.
    """

    value: int
    cost: int
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Undominated sums over some tasks; of equal ones the first is kept, so results do not depend on chance."""

    costs: _Whole
    values: _Whole
    steps: tuple[tuple[_Whole, _Whole], ...] = ()  # For each task: which sum before, and which choice.

    def plus(self, choices: Sequence[tuple[int, Choice]]) -> "_Sums":
        costs = np.add.outer(self.costs, np.array([c.cost for _, c in choices], dtype=np.int64)).ravel()
        values = np.add.outer(self.values, np.array([c.value for _, c in choices], dtype=np.int64)).ravel()
        kept = _undominated(costs, values)
        indices = np.array([index for index, _ in choices], dtype=np.int64)
        step = (kept // len(choices), indices[kept % len(choices)])
        return _Sums(costs[kept], values[kept], (*self.steps, step))

    def choices(self, position: int) -> tuple[int, ...]:
        chosen = []
        for before, choice in reversed(self.steps):
            chosen.append(int(choice[position]))
            position = int(before[position])
        return tuple(reversed(chosen))


def pareto_front(tasks: Sequence[Sequence[Choice]], trunk_costs: Sequence[int]) -> list[Pick]:
    """All picks that no other pick beats: none is cheaper and worth as much, none costs as much and is worth more.

    Args:
        tasks: The choices of each task, at least one; of equally good ones the first is taken.
        trunk_costs: At index D the cost of a trunk of D layers, up to the deepest exit; must not fall.

    Returns:
        By rising cost and rising value; empty only without tasks.
    """
    if not tasks:
        return []
    needed = max(min(choice.exit_layer for choice in choices) for choices in tasks)
    exits = {choice.exit_layer for choices in tasks for choice in choices}
    fronts: list[tuple[int, _Sums]] = []
    for depth in sorted(each for each in exits if each >= needed):
        sums = _Sums(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
        for choices in tasks:
            sums = sums.plus([(index, c) for index, c in enumerate(choices) if c.exit_layer <= depth])
        fronts.append((trunk_costs[depth], sums))
    costs = np.concatenate([sums.costs + trunk for trunk, sums in fronts])
    values = np.concatenate([sums.values for _, sums in fronts])
    places = [(sums, position) for _, sums in fronts for position in range(len(sums.costs))]
    kept = _undominated(costs, values)
    return [Pick(int(values[k]), int(costs[k]), places[k][0].choices(places[k][1])) for k in kept]


def _undominated(costs: _Whole, values: _Whole) -> _Whole:
    """Indices by rising cost of those that are worth more than all that cost no more."""
    order = np.lexsort((-values, costs))
    ordered = values[order]
    rises = np.concatenate([[True], ordered[1:] > np.maximum.accumulate(ordered)[:-1]])
    kept: _Whole = order[rises]
    return kept
