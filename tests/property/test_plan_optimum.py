"""The optimum for a budget and the front are what trying every combination gives."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import TypeAlias

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from tests.tiny_records import run_record
from trunkline.core.costs import CostTable
from trunkline.core.errors import SpecError
from trunkline.model.cost import branch_flops, layer_flops
from trunkline.train.candidates import Candidate, candidates_of
from trunkline.train.contest import Contest, KeptBranch, PlanRequest, contest_of
from trunkline.train.optimum import Choice, pareto_front
from trunkline.train.pareto import pareto_of
from trunkline.train.plan import Plan, plan_contest
from trunkline.train.price import STEPS_OF_UNIT, Budget, Unit

Described: TypeAlias = dict[str, list[tuple[int, int, int, str]]]
"""Task -> tenths of a point, exit layer, own layers, pooling of each candidate."""

TABLE = CostTable(trunk_layer_ms=0.9, own_layer_ms=1.0, folded_layer_ms=0.07, branch_ms=0.02, request_ms=0.5)
UNITS: tuple[Unit, ...] = ("layers", "flops", "ms")
TAGGING = "c"
# Few different values, so that ties are frequent. Places are unique: a run that is recorded again replaces the former.
options = st.tuples(
    st.integers(0, 30).map(lambda n: 10 * n + 500),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(["cls", "mean"]),
)
instances: st.SearchStrategy[Described] = st.dictionaries(
    st.sampled_from(["a", "b", TAGGING, "d"]),
    st.lists(options, min_size=1, max_size=5, unique_by=lambda o: o[1:]),
    min_size=1,
    max_size=4,
)


def contest(described: Described) -> Contest:
    records = [
        run_record(tenths / 10, task=task, exit_layer=exit_layer, own_layers=own_layers, pooling=pooling)
        for task, given_ones in described.items()
        for tenths, exit_layer, own_layers, pooling in given_ones
    ]
    records = [msgspec.structs.replace(r, metric="span_f1") if r.spec.task == TAGGING else r for r in records]
    candidates = candidates_of(records)
    folders = {c.run_id: "" for c in candidates}
    return contest_of(candidates, backbone="b", n_layers=12, branch_folders=folders)


def cost(unit: Unit, chosen: Mapping[str, Candidate]) -> float:
    """From the formulas, not from the planner's prices; in the unit's smallest steps."""
    depth = max(c.exit_layer for c in chosen.values())
    if unit == "layers":
        return depth + sum(c.own_layers for c in chosen.values())
    total = 0.0
    for task, c in chosen.items():
        folded = task != TAGGING and c.pooling == "cls"
        if unit == "flops":
            total += branch_flops(c.sizes, [c.mean_tokens], own_layers=c.own_layers, folded=folded)
        else:
            layers = [TABLE.own_layer_ms] * c.own_layers
            if layers and folded:
                layers[-1] = TABLE.folded_layer_ms
            total += TABLE.branch_ms + sum(layers)
    if unit == "flops":
        first = next(iter(chosen.values()))
        return round(total + depth * layer_flops(first.sizes, [first.mean_tokens]))
    return round((total + TABLE.request_ms + depth * TABLE.trunk_layer_ms) * STEPS_OF_UNIT["ms"])


def tenths(chosen: Mapping[str, Candidate]) -> int:
    return round(sum(c.selection_mean for c in chosen.values()) * 10)


def every_choice(what: Contest) -> Iterator[dict[str, Candidate]]:
    for picked in product(*what.options.values()):
        yield dict(zip(what.options, picked, strict=True))


def brute_force_front(what: Contest, unit: Unit) -> list[tuple[float, int]]:
    front: list[tuple[float, int]] = []
    for at, reached in sorted(((cost(unit, c), tenths(c)) for c in every_choice(what)), key=lambda p: (p[0], -p[1])):
        if not front or reached > front[-1][1]:
            front.append((at, reached))
    return front


def figures(plan: Plan, unit: Unit) -> tuple[float, int]:
    at = {"layers": plan.layer_cost, "flops": plan.flops, "ms": round((plan.ms or 0) * STEPS_OF_UNIT["ms"])}[unit]
    return at, round(plan.mean_points * len(plan.tasks) * 10)


def optimum(what: Contest, unit: Unit, steps: float, **more: dict[str, float]) -> Plan:
    budget = Budget(amount=steps / STEPS_OF_UNIT[unit], unit=unit)
    return plan_contest(what, PlanRequest(budget=budget, cost_table=TABLE, **more))


@pytest.mark.parametrize("unit", UNITS)
@given(described=instances, data=st.data())
def test_the_optimum_is_the_best_of_every_combination(unit: Unit, described: Described, data: st.DataObject) -> None:
    what = contest(described)
    costs = sorted({cost(unit, c) for c in every_choice(what)})
    budget = data.draw(st.sampled_from(costs)) + data.draw(st.sampled_from([0, 1]))
    affordable = [c for c in every_choice(what) if cost(unit, c) <= budget]
    most = max(tenths(c) for c in affordable)
    cheapest = min(cost(unit, c) for c in affordable if tenths(c) == most)
    assert figures(optimum(what, unit, budget), unit) == (cheapest, most)


@pytest.mark.parametrize("unit", UNITS)
@given(described=instances)
def test_the_front_is_that_of_every_combination(unit: Unit, described: Described) -> None:
    what = contest(described)
    request = PlanRequest(min_gain=1.0, cost_table=TABLE)
    front = pareto_of(what, request, plan_contest(what, request)).front(unit)
    amounts = {"layers": [p.layer_cost for p in front], "flops": [p.flops for p in front]}
    amounts["ms"] = [round((p.ms or 0) * STEPS_OF_UNIT["ms"]) for p in front]
    shown = [(at, round(p.mean_points * len(p.tasks) * 10)) for at, p in zip(amounts[unit], front, strict=True)]
    assert shown == brute_force_front(what, unit)


@given(described=instances, budget=st.integers(0, 24), more=st.integers(0, 8))
def test_a_larger_budget_never_lowers_points(described: Described, budget: int, more: int) -> None:
    what = contest(described)
    assume(budget >= min(cost("layers", c) for c in every_choice(what)))
    assert optimum(what, "layers", budget + more).mean_points >= optimum(what, "layers", budget).mean_points - 1e-9


@given(described=instances)
def test_a_budget_below_the_cheapest_combination_is_refused(described: Described) -> None:
    what = contest(described)
    cheapest = min(cost("layers", c) for c in every_choice(what))
    assume(cheapest > 0)
    with pytest.raises(SpecError, match=rf"the cheapest plan takes {cheapest:.0f} layer"):
        optimum(what, "layers", cheapest - 1)


@given(described=instances, data=st.data())
def test_floors_hold_and_cost_nothing_else(described: Described, data: st.DataObject) -> None:
    what = contest(described)
    reachable = {task: sorted({c.selection_mean for c in each}) for task, each in what.options.items()}
    floors = {task: data.draw(st.sampled_from(points)) for task, points in reachable.items()}
    kept = [c for c in every_choice(what) if all(c[task].selection_mean >= floors[task] for task in c)]
    budget = data.draw(st.sampled_from([cost("layers", c) for c in kept]))
    plan = optimum(what, "layers", budget, floors=floors)
    assert all(task.selection_metric >= floors[task.task] for task in plan.tasks)
    assert figures(plan, "layers")[1] == max(tenths(c) for c in kept if cost("layers", c) <= budget)


@given(described=instances, min_gain=st.floats(0, 3))
def test_for_what_the_rule_pays_the_optimum_is_never_worse(described: Described, min_gain: float) -> None:
    what = contest(described)
    by_rule = plan_contest(what, PlanRequest(min_gain=min_gain))
    assert optimum(what, "layers", by_rule.layer_cost).mean_points >= by_rule.mean_points - 1e-9


@given(described=instances, weights=st.lists(st.integers(1, 4), min_size=4, max_size=4), budget=st.integers(0, 20))
def test_weights_are_those_of_the_mean(described: Described, weights: list[int], budget: int) -> None:
    what = contest(described)
    of_task = dict(zip(what.options, map(float, weights), strict=False))
    affordable = [c for c in every_choice(what) if cost("layers", c) <= budget]
    assume(affordable)
    best = max(sum(of_task[t] * c.selection_mean for t, c in chosen.items()) for chosen in affordable)
    plan = optimum(what, "layers", budget, weights=of_task)
    assert plan.mean_points == pytest.approx(best / sum(of_task.values()))


@pytest.mark.parametrize("unit", UNITS)
@given(described=instances, data=st.data())
def test_beside_kept_branches_the_optimum_is_the_best_of_what_is_left(
    unit: Unit, described: Described, data: st.DataObject
) -> None:
    whole = contest(described)
    stay = data.draw(st.sets(st.sampled_from(sorted(whole.options)), max_size=len(whole.options) - 1))
    kept = {task: data.draw(st.sampled_from(whole.options[task])) for task in sorted(stay)}
    possible = [c for c in every_choice(whole) if all(c[task] == kept[task] for task in kept)]
    budget = data.draw(st.sampled_from([cost(unit, c) for c in possible]))
    best = min((-tenths(c), cost(unit, c)) for c in possible if cost(unit, c) <= budget)
    branches = {
        task: KeptBranch(c.exit_layer, c.own_layers, c.folded, c.selection_mean, c.run_id, c.mean_tokens)
        for task, c in kept.items()
    }
    options = {task: each for task, each in whole.options.items() if task not in kept}
    plan = optimum(replace(whole, options=options, kept=branches), unit, budget)
    chosen = {t.task: next(c for c in options[t.task] if c.run_id == t.run_id) for t in plan.tasks}
    assert (-tenths(chosen | kept), cost(unit, chosen | kept)) == best
    assert plan.layer_cost == cost("layers", chosen | kept)


@given(described=instances)
def test_the_order_of_candidates_changes_no_choice(described: Described) -> None:
    what = contest(described)
    turned = contest({task: given_ones[::-1] for task, given_ones in reversed(described.items())})
    budget = max(cost("layers", c) for c in every_choice(what))
    chosen = [
        [(t.task, t.exit_layer, t.own_layers) for t in optimum(w, "layers", budget).tasks] for w in (what, turned)
    ]
    assert chosen[0] == chosen[1]


choices = st.builds(Choice, value=st.integers(-50, 1000), exit_layer=st.integers(0, 6), cost=st.integers(0, 40))


@given(
    tasks=st.lists(st.lists(choices, min_size=1, max_size=6), min_size=1, max_size=7),
    layer=st.integers(0, 10),
    spare=st.integers(0, 60),
)
def test_a_solver_of_integer_programs_finds_nothing_better(tasks: list[list[Choice]], layer: int, spare: int) -> None:
    front = pareto_front(tasks, [layer * depth for depth in range(7)])
    budget = front[0].cost + spare
    mine = max(pick.value for pick in front if pick.cost <= budget)
    found = [value for depth in range(7) if (value := _solved(tasks, depth, budget - layer * depth)) is not None]
    assert mine == max(found)


def _solved(tasks: list[list[Choice]], depth: int, left: int) -> int | None:
    """A multiple-choice knapsack over the choices that read at ``depth`` or above."""
    flat = [(number, choice) for number, each in enumerate(tasks) for choice in each]
    one_each = np.array([[float(of == number) for of, _ in flat] for number in range(len(tasks))])
    result = milp(
        c=[-choice.value for _, choice in flat],
        integrality=np.ones(len(flat), dtype=np.int64),
        bounds=Bounds(0.0, np.array([float(choice.exit_layer <= depth) for _, choice in flat])),
        constraints=[
            LinearConstraint(one_each, 1.0, 1.0),
            LinearConstraint(np.array([[float(choice.cost) for _, choice in flat]]), -np.inf, float(left)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else round(-result.fun)
