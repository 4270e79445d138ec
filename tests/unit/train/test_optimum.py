"""The front of all picks, on instances that can be worked out by hand."""

from trunkline.train.optimum import Choice, Pick, pareto_front


def test_the_trunk_is_paid_once_down_to_the_deepest_exit() -> None:
    tasks = [[Choice(value=10, exit_layer=2, cost=1)], [Choice(value=5, exit_layer=4, cost=2)]]
    assert pareto_front(tasks, range(5)) == [Pick(value=15, cost=4 + 1 + 2, choices=(0, 0))]


def test_a_deeper_trunk_is_on_the_front_only_where_it_is_worth_it() -> None:
    shallow, deep = Choice(value=10, exit_layer=1, cost=1), Choice(value=12, exit_layer=3, cost=1)
    assert [p.choices for p in pareto_front([[shallow, deep]], range(4))] == [(0,), (1,)]
    dear = Choice(value=12, exit_layer=1, cost=2)
    assert [p.choices for p in pareto_front([[shallow, deep, dear]], range(4))] == [(0,), (2,)]


def test_of_equal_choices_the_first_is_taken() -> None:
    same = Choice(value=10, exit_layer=1, cost=1)
    assert pareto_front([[same, same], [same]], range(2)) == [Pick(value=20, cost=3, choices=(0, 0))]


def test_of_equal_plans_the_one_with_the_shallower_trunk_is_taken() -> None:
    deep, shallow = Choice(value=10, exit_layer=3, cost=1), Choice(value=10, exit_layer=1, cost=3)
    assert pareto_front([[deep, shallow]], range(4)) == [Pick(value=10, cost=4, choices=(1,))]


def test_what_costs_more_and_is_worth_no_more_is_left_out() -> None:
    choices = [Choice(value=v, exit_layer=0, cost=c) for v, c in ((5, 1), (5, 2), (4, 3), (6, 4))]
    assert [p.choices for p in pareto_front([choices], [0])] == [(0,), (3,)]


def test_values_may_be_negative() -> None:
    choices = [Choice(value=v, exit_layer=0, cost=c) for v, c in ((-9, 1), (-5, 2))]
    assert [p.value for p in pareto_front([choices, choices], [0])] == [-18, -14, -10]


def test_without_tasks_there_is_nothing() -> None:
    assert pareto_front([], [0]) == []
