"""Pure pieces of the engine's benchmarks: cuts, rounds, scaling, figures, shapes, tables."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import engine_report
from benchmarks.engine_peers import standing_for
from benchmarks.engine_race import Race
from benchmarks.engine_rounds import alternate, fastest, ratio, ratio_range, scaled, slope, spread
from benchmarks.engine_shapes import GLUE8, XIAOAI21, n_whole_layers
from benchmarks.engine_swaps import SHIFT, _Swapper
from benchmarks.engine_sweeps import _mixed, _of_length
from benchmarks.peers.batching import CallCost, sub_batches


def covered(cuts: list[slice]) -> list[int]:
    return [place for cut in cuts for place in range(cut.start, cut.stop)]


def test_sub_batches_cover_every_text_once_and_in_order() -> None:
    assert covered(sub_batches([3, 5, 5, 9, 30], 4.0)) == [0, 1, 2, 3, 4]


def test_a_call_that_costs_nothing_gives_each_length_its_own() -> None:
    assert [cut.stop - cut.start for cut in sub_batches([3, 5, 9], 0.0)] == [1, 1, 1]


def test_a_call_that_costs_much_takes_all_texts() -> None:
    assert sub_batches([3, 5, 9, 30], 1e9) == [slice(0, 4)]


def test_sub_batches_are_the_cheapest_of_all_cuts() -> None:
    lengths, fixed = sorted(np.random.default_rng(0).integers(4, 40, size=9).tolist()), 17.0

    def cost(cuts: list[slice]) -> float:
        return sum(fixed + lengths[cut.stop - 1] * (cut.stop - cut.start) for cut in cuts)

    def every(start: int) -> list[list[slice]]:
        if start == len(lengths):
            return [[]]
        return [[slice(start, stop), *rest] for stop in range(start + 1, len(lengths) + 1) for rest in every(stop)]

    assert math.isclose(cost(sub_batches(lengths, fixed)), min(map(cost, every(0))))


def test_texts_that_are_not_sorted_are_refused() -> None:
    with pytest.raises(ValueError, match="not ascending"):
        sub_batches([5, 3], 1.0)


def test_the_fixed_part_of_a_call_is_told_in_tokens() -> None:
    assert CallCost(fixed_s=0.02, token_s=0.001).fixed_tokens == pytest.approx(20.0)


def ticking(step: float) -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def test_everyone_runs_once_a_round_and_another_one_begins_each_time() -> None:
    ran: list[str] = []
    taken = alternate(
        {name: lambda name=name: ran.append(name) for name in "abc"}, 3, clock=ticking(1.0), processor=ticking(2.0)
    )
    assert "".join(ran) == "abcbcacab"
    assert taken.wall == {name: [1.0] * 3 for name in "abc"}
    assert taken.processor == {name: [2.0] * 3 for name in "abc"}


def test_seconds_that_were_taken_elsewhere_count() -> None:
    assert alternate({"other": lambda: (0.5, 0.75)}, 2).wall == {"other": [0.5, 0.5]}


def test_few_models_stand_for_many() -> None:
    assert scaled([0.2, 0.4], 2, 21) == pytest.approx([2.1, 4.2])


def test_a_spread_is_in_milliseconds_and_keeps_every_round() -> None:
    assert spread([0.003, 0.001, 0.002]) == {
        "median_ms": 2.0, "fastest_ms": 1.0, "slowest_ms": 3.0, "rounds_ms": [3.0, 1.0, 2.0],
    }  # fmt: skip


def test_a_ratio_is_of_medians_and_its_range_is_within_rounds() -> None:
    assert ratio([2.0, 4.0, 9.0], [1.0, 2.0, 2.0]) == 2.0
    assert ratio_range([2.0, 4.0, 9.0], [1.0, 2.0, 2.0]) == [2.0, 4.5]


def test_the_fastest_has_the_least_median() -> None:
    assert fastest({"steady": [2.0, 2.0, 2.0], "lucky": [0.1, 3.0, 3.0]}) == "steady"


def test_a_slope_is_that_of_the_line() -> None:
    assert slope({0: 1.0, 5: 2.0, 10: 3.0}) == pytest.approx(0.2)


def test_the_shape_of_appendix_e_has_its_layers() -> None:
    assert len(XIAOAI21) == 21
    assert sum(task.own_layers for task in XIAOAI21) == 32
    assert n_whole_layers(XIAOAI21) == 23


def test_the_mixed_plan_has_its_layers() -> None:
    assert (max(task.exit_layer for task in GLUE8), sum(task.own_layers for task in GLUE8)) == (7, 26)
    assert n_whole_layers(GLUE8) == 25


def test_those_who_stand_for_all_are_of_mixed_kinds() -> None:
    assert [task.kind for task in standing_for(XIAOAI21, 3)] == ["classification", "classification", "tagging"]


def test_every_beginning_of_a_mixed_order_is_mixed() -> None:
    order = _mixed([task.name for task in XIAOAI21])
    assert sorted(order) == sorted(task.name for task in XIAOAI21)
    assert len({name.rstrip("0123456789") for name in order[:5]}) == 3


def test_texts_of_a_length_have_so_many_words_between_the_special_tokens() -> None:
    assert {len(text.split()) for text in _of_length(16)} == {14}


def test_versions_follow_the_swaps() -> None:
    swapper: Any = _Swapper(None, None, dict.fromkeys("abc"))  # type: ignore[arg-type]
    states = ["".join(str(swapper.version(task, n)) for task in "abc") for n in range(7)]
    assert states == ["000", "100", "110", "111", "011", "001", "000"]
    assert SHIFT > 0


def race() -> Any:
    from benchmarks.engine_peers import SINGLES, Peer

    made = Race(XIAOAI21, None, None, 3)  # type: ignore[arg-type]
    for name, what, precision, scales in (
        ("slow", SINGLES, "bf16", True),
        ("fast", SINGLES, "bf16", True),
        ("narrow", SINGLES, "int8", True),
        ("joint", "one", "bf16", False),
    ):
        made.peers[name] = Peer(name, what, precision, None, scales)  # type: ignore[arg-type]
    return made


def test_single_models_are_scaled_and_others_are_not() -> None:
    assert race().models({"trunkline": [1.0], "fast": [1.0], "fast+shared": [2.0], "joint": [0.5]}) == {
        "trunkline": [1.0], "fast": [7.0], "fast+shared": [14.0], "joint": [0.5],
    }  # fmt: skip


def test_a_speedup_is_over_the_fastest_of_the_same_precision() -> None:
    taken = {"trunkline": [1.0], "slow": [9.0], "fast": [8.0], "narrow": [3.0], "joint": [0.5]}
    assert race().speedups(taken, "32") == {"speedup_bf16_32": 8.0}


def result() -> dict[str, Any]:
    row = {"median_ms": 400.0, "fastest_ms": 390.0, "slowest_ms": 410.0, "over_ours": 1.0, "processor_ms": 395.0}
    return {
        "name": "engine-xiaoai21",
        "command": "python -m benchmarks engine-xiaoai21",
        "commit": "0123456789abcdef",
        "started_at": "2026-01-02T03:04:05+00:00",
        "machine": {"n_cpus": 2, "cpu": "A processor"},
        "figures": {"speedup_bf16_32": 9.0, "one_task_ratio": 1.2, "unknown": 3.0},
        "details": {
            "n_tasks": 21,
            "by_processor_time": {"speedup_bf16_32": 9.5},
            "in_flight_32": {"trunkline": row},
            "in_flight_1": {"n_texts": 8, "trunkline": row},
            "profile": {"ms": {"masks": 0.4}, "share": {"masks": 0.001}},
            "sweeps": {"in flight": [{"value": 4, "ours_ms": 100.0, "theirs_ms": 900.0}]},
        },
    }


def test_the_table_says_what_is_met() -> None:
    table = engine_report.markdown_table(result())
    assert "| `speedup_bf16_32` | 9 | 9.5 | at least 8.5 | met |" in table
    assert "| `one_task_ratio` | 1.2 |  | at most 1.1 | not met |" in table
    assert "| the engine, all tasks | 400 (390 to 410) | 1.00 | 395 | 50.0 |" in table
    assert "| masks | 0.4 | 0.1% |" in table
    assert "| times | 9.0 |" in table
