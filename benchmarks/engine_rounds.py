"""Rounds in which contestants alternate, and what is made of their seconds."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

Run: TypeAlias = Callable[[], tuple[float, float] | None]
"""Runs once; returns None, or its own seconds on the wall and of the processor where they were taken elsewhere."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of each round, by name.

    Attributes:
        wall: What a user waits.
        processor: Of all threads together; hardly touched by what else the machine does.
    """

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]


def alternate(
    contestants: Mapping[str, Run],
    n_rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    processor: Callable[[], float] = time.process_time,
) -> Taken:
    """Let everyone run once a round; who begins changes from round to round, so that nobody always follows the same.

    Args:
        contestants: Name to a run, warm already.
        n_rounds: Rounds.
        clock: Seconds on the wall.
        processor: Seconds of the processor.
    """
    names = list(contestants)
    taken = Taken({name: [] for name in names}, {name: [] for name in names})
    for turn in range(n_rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            began, worked = clock(), processor()
            told = contestants[name]() or (clock() - began, processor() - worked)
            taken.wall[name].append(told[0])
            taken.processor[name].append(told[1])
    return taken


def scaled(seconds: Sequence[float], n_measured: int, n_tasks: int) -> list[float]:
    """Seconds of `n_tasks` models out of those of `n_measured` alike, which run one after the other."""
    return [each * n_tasks / n_measured for each in seconds]


def spread(seconds: Sequence[float]) -> dict[str, float | list[float]]:
    """Median, fastest and slowest in milliseconds, and every round."""
    rounds = [round(1e3 * each, 3) for each in seconds]
    return {"median_ms": median(rounds), "fastest_ms": min(rounds), "slowest_ms": max(rounds), "rounds_ms": rounds}


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Median over median."""
    return median(of) / median(to)


def ratio_range(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Least and largest ratio within one round."""
    ratios = [one / other for one, other in zip(of, to, strict=True)]
    return [round(min(ratios), 3), round(max(ratios), 3)]


def fastest(taken: Mapping[str, Sequence[float]]) -> str:
    """Who has the least median."""
    return min(taken, key=lambda name: median(taken[name]))


def slope(points: Mapping[float, float]) -> float:
    """Of the straight line through points, by least squares."""
    mean_x = sum(points) / len(points)
    mean_y = sum(points.values()) / len(points)
    square = sum((x - mean_x) ** 2 for x in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points.items()) / square
