"""The selection slice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.core.types import Example
from trunkline.data.split import selection_slice


def examples(count: int) -> list[Example]:
    return [Example(text=str(number), target="x") for number in range(count)]


@pytest.mark.parametrize(("n_train", "n_slice"), [(2, 1), (5, 2), (100, 50), (600, 300), (2999, 300), (5000, 500)])
def test_the_slice_is_a_tenth_at_least_300_rows_and_at_most_half(n_train: int, n_slice: int) -> None:
    fit, chosen = selection_slice(examples(n_train))
    assert (len(fit), len(chosen)) == (n_train - n_slice, n_slice)


@given(n_train=st.integers(2, 2000))
def test_every_row_is_on_one_side_in_the_order_of_train(n_train: int) -> None:
    fit, chosen = (tuple(int(row.text) for row in part) for part in selection_slice(examples(n_train)))
    assert sorted((*fit, *chosen)) == list(range(n_train))
    assert list(fit) == sorted(fit)
    assert list(chosen) == sorted(chosen)


def test_the_slice_depends_on_the_number_of_rows_alone() -> None:
    # So training and calibration see the same slice.
    plain = [row.text for row in selection_slice(examples(700))[1]]
    changed = selection_slice([Example(text=row.text, target="y") for row in examples(700)])[1]
    assert [row.text for row in changed] == plain


def test_repeats_of_a_chosen_input_are_not_learned_from() -> None:
    rows = [Example(text=str(number % 650), target="x") for number in range(700)]
    fit, chosen = selection_slice(rows)
    assert 300 < len(chosen) < 350
    assert not {row.text for row in fit} & {row.text for row in chosen}


def test_the_slice_is_at_most_half_even_if_all_inputs_are_the_same() -> None:
    fit, chosen = selection_slice([Example(text="hello", target="x")] * 40)
    assert (len(fit), len(chosen)) == (20, 20)


def test_the_slice_is_spread_over_train() -> None:
    # Files are often sorted by label: the slice must not be their end.
    chosen = [int(row.text) for row in selection_slice(examples(3000))[1]]
    assert 1300 < sum(chosen) / len(chosen) < 1700


def test_rows_without_a_label_are_learned_from_and_never_chosen_on() -> None:
    rows = [Example(text=str(number), target="x" if number % 2 else None) for number in range(1000)]
    fit, chosen = selection_slice(rows)
    assert len(chosen) == 250
    assert all(row.target == "x" for row in chosen)
    assert sum(row.target is None for row in fit) == 500
