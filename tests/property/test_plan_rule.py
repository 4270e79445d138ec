"""What holds for every choice and every plan."""

from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_plans import rule_plan
from tests.tiny_records import run_record
from trunkline.train.candidates import Candidate, candidates_of
from trunkline.train.plan import choose_by_gain

points = st.integers(0, 1000).map(lambda tenths: tenths / 10)
layers = st.tuples(st.integers(0, 11), st.integers(0, 12)).filter(lambda pair: sum(pair) <= 12)
options = st.tuples(st.sampled_from(["a", "b", "c"]), layers, points)
min_gains = st.floats(0, 5)


def candidates(described: list[tuple[str, tuple[int, int], float]]) -> list[Candidate]:
    return candidates_of([
        run_record(reached, task=task, exit_layer=exit_layer, own_layers=own_layers)
        for task, (exit_layer, own_layers), reached in described
    ])  # fmt: skip


@given(described=st.lists(options, min_size=1, max_size=12), min_gain=min_gains)
def test_the_choice_is_one_of_the_given_and_never_worse_than_the_best_of_the_shortest(
    described: list[tuple[str, tuple[int, int], float]], min_gain: float
) -> None:
    given_ones = candidates(described)
    chosen, _ = choose_by_gain(given_ones, min_gain=min_gain)
    assert chosen in given_ones
    shortest = min(c.own_layers for c in given_ones)
    start = max(c.selection_mean for c in given_ones if c.own_layers == shortest)
    paid = min_gain * (chosen.own_layers - shortest)
    assert chosen.selection_mean >= start + paid - 1e-6


@given(described=st.lists(options, min_size=1, max_size=12), min_gain=min_gains)
def test_the_order_of_candidates_does_not_change_the_metric_or_the_cost(
    described: list[tuple[str, tuple[int, int], float]], min_gain: float
) -> None:
    given_ones = candidates(described)
    forth, _ = choose_by_gain(given_ones, min_gain=min_gain)
    back, _ = choose_by_gain(given_ones[::-1], min_gain=min_gain)
    assert (forth.own_layers, forth.selection_mean) == (back.own_layers, back.selection_mean)


@given(described=st.lists(options, min_size=1, max_size=12), min_gain=min_gains)
def test_a_plan_costs_its_deepest_exit_plus_the_sum_of_own_layers(
    described: list[tuple[str, tuple[int, int], float]], min_gain: float
) -> None:
    given_ones = candidates(described)
    plan = rule_plan(given_ones, min_gain=min_gain, n_layers=12)
    assert {task.task for task in plan.tasks} == {c.task for c in given_ones}
    assert plan.layer_cost == max(t.exit_layer for t in plan.tasks) + sum(t.own_layers for t in plan.tasks)
    assert plan.single_task_layers == 12 * len(plan.tasks)


@given(described=st.lists(options, min_size=1, max_size=12), low=min_gains, high=min_gains)
def test_when_every_added_layer_must_pay_more_a_single_step_is_never_longer(
    described: list[tuple[str, tuple[int, int], float]], low: float, high: float
) -> None:
    # True of two lengths; with more, a skipped one changes what the next is compared with.
    lengths = sorted({pair[1] for _, pair, _ in described})[:2]
    two = [one for one in candidates(described) if one.own_layers in lengths]
    low, high = min(low, high), max(low, high)
    assert choose_by_gain(two, min_gain=high)[0].own_layers <= choose_by_gain(two, min_gain=low)[0].own_layers
