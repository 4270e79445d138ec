"""Sweeps: texts in flight, tasks asked, tasks on the trunk, lengths."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.engine_contestant import EngineContestant
from benchmarks.engine_race import Race
from benchmarks.engine_rounds import alternate
from benchmarks.engine_shapes import XIAOAI21, OwnLayers
from benchmarks.peers.service import Contestant
from benchmarks.peers.texts import texts

IN_FLIGHT = (1, 4, 16, 64)
ASKED = (1, 5, 10, 21)
ON_TRUNK = (1, 10, 21, 35, 50)
LENGTHS = (16, 32, 64, 128, 256)
N_ROWS_OF_LENGTH = 8
N_ROUNDS = 3
RIVAL = "openvino-bf16"


def sweeps(race: Race, tasks: Sequence[OwnLayers]) -> dict[str, list[dict[str, float]]]:
    """Medians in milliseconds: ours, and single models of OpenVINO in bf16, scaled to the tasks that are asked.

    Args:
        race: With `RIVAL` among its peers.
        tasks: All that the engine has loaded, in the order in which they are added to the trunk.
    """
    asked = texts(32, 0)
    names = [task.name for task in tasks]
    mixed = _mixed([task.name for task in XIAOAI21])
    return {
        "in flight": [_point(race, n, race.ours, texts(n, 3), len(XIAOAI21)) for n in IN_FLIGHT],
        "tasks asked of 21": [_point(race, n, race.ours.asking(mixed[:n]), asked, n) for n in ASKED],
        "tasks on the trunk": [_point(race, n, race.ours.asking(names[:n]), asked, n) for n in ON_TRUNK],
        "tokens of a text": [_point(race, n, race.ours, _of_length(n), len(XIAOAI21)) for n in LENGTHS],
    }


def _point(race: Race, value: int, ours: EngineContestant, asked: Sequence[str], n_tasks: int) -> dict[str, float]:
    rival = race.running[RIVAL]
    for contestant in (ours, rival):
        contestant.warm(asked)
    taken = alternate({"ours": _run(ours, asked), "theirs": _run(rival, asked)}, N_ROUNDS).wall
    theirs = median(taken["theirs"]) * n_tasks / race.n_models
    found = {"value": value, "ours_ms": 1e3 * median(taken["ours"]), "theirs_ms": 1e3 * theirs}
    print(f"sweep at {value}: ours {found['ours_ms']:.1f} ms, theirs {found['theirs_ms']:.1f} ms", flush=True)
    return found


def _run(contestant: Contestant, asked: Sequence[str]) -> Any:
    def run() -> None:
        contestant.answer(asked)

    return run


def _mixed(names: Sequence[str]) -> list[str]:
    """Names in an order in which every beginning has about the same mixture."""
    n = len(names)
    step = next(step for step in (13, 11, 8, 5, 1) if _coprime(step, n))
    return [names[(place * step) % n] for place in range(n)]


def _coprime(one: int, other: int) -> bool:
    while other:
        one, other = other, one % other
    return one == 1


def _of_length(n_tokens: int) -> list[str]:
    """Different texts of exactly so many tokens, the two around them included."""
    words = ("play", "music", "tomorrow", "weather", "time", "alarm", "call", "please")
    return [
        " ".join(words[(row + place) % len(words)] for place in range(n_tokens - 2)) for row in range(N_ROWS_OF_LENGTH)
    ]
