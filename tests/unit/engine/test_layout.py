"""Packing rows into lines: where every token lies."""

import numpy as np
import pytest

from tests.tiny_engines import encoded
from trunkline.engine.layout import LINE_TOKENS, Layout, round_rows, round_tokens, spread_rows

LENGTHS = (
    [1],
    [64],
    [65, 3],
    [5, 9, 2],
    [30, 30, 30, 4, 4, 60, 64],
    [200, 3, 100, 90, 256],
    list(range(1, 40)),
    [7] * 130,
)


def random_lengths(seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return rng.integers(1, rng.choice([8, 64, 300]), rng.integers(1, 100)).tolist()  # type: ignore[no-any-return]


CASES = [*LENGTHS, *(random_lengths(seed) for seed in range(20))]


@pytest.mark.parametrize("lengths", CASES)
def test_every_token_has_a_place_of_its_own(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    assert len(layout.places) == sum(lengths)
    assert len(set(layout.places.tolist())) == sum(lengths)
    assert layout.places.min() >= 0
    assert layout.places.max() < layout.n_tokens == layout.n_lines * layout.line_tokens


@pytest.mark.parametrize("lengths", CASES)
def test_no_row_is_split_over_two_lines(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    first, last = layout.starts, layout.starts + layout.lengths - 1
    np.testing.assert_array_equal(first // layout.line_tokens, last // layout.line_tokens)


@pytest.mark.parametrize("lengths", CASES)
def test_tokens_are_owned_by_their_row_in_their_order_and_padding_by_none(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    owners, positions = layout.owners.reshape(-1), layout.positions.reshape(-1)
    assert (owners > 0).sum() == sum(lengths)
    for row, (start, length) in enumerate(zip(layout.starts.tolist(), lengths, strict=True)):
        assert set(owners[start : start + length].tolist()) == {row + 1}
        assert positions[start : start + length].tolist() == list(range(length))
    assert not positions[owners == 0].any()


@pytest.mark.parametrize("lengths", CASES)
def test_lines_are_as_long_as_said(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    if sum(lengths) <= LINE_TOKENS:
        assert (layout.n_lines, layout.line_tokens) == (1, round_tokens(sum(lengths)))
        return
    least = max(round_tokens(max(lengths)), LINE_TOKENS)
    tried = range(least, least + LINE_TOKENS, 16) if least < 2 * LINE_TOKENS else (least,)
    assert layout.line_tokens in tried
    sizes = np.asarray(lengths, dtype=np.int64)
    assert layout.n_tokens == min(Layout._in_lines(sizes, line_tokens).n_tokens for line_tokens in tried)


@pytest.mark.parametrize("lengths", CASES)
def test_no_line_is_begun_where_a_row_had_room_in_another(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    used = (layout.owners > 0).sum(axis=1)
    smallest = [min(layout.lengths[layout.starts // layout.line_tokens == line]) for line in range(layout.n_lines)]
    for line in range(1, layout.n_lines):
        assert (used[:line] + smallest[line] > layout.line_tokens).all()


def test_four_rows_of_sixteen_share_one_line() -> None:
    layout = Layout.pack([16, 16, 16, 16])
    assert (layout.n_lines, layout.line_tokens) == (1, 64)
    assert sorted(layout.starts.tolist()) == [0, 16, 32, 48]


def test_values_lie_at_their_tokens_places_and_the_filling_elsewhere() -> None:
    layout = Layout.pack([3, 20])
    values = [np.array([7, 8, 9]), np.arange(100, 120)]
    spread = layout.spread(values, fill=-5).reshape(-1)
    assert spread.dtype == np.int32
    np.testing.assert_array_equal(spread[layout.places], np.concatenate(values))
    assert set(np.delete(spread, layout.places).tolist()) == {-5}


def test_ids_types_and_positions_of_rows_are_laid_out_together() -> None:
    rows = encoded("play a song", "no")
    layout = Layout.pack([len(row.token_ids) for row in rows])
    token_ids, type_ids, positions = spread_rows(layout, rows, pad_id=77)
    assert token_ids.shape == type_ids.shape == positions.shape == (1, 16)
    np.testing.assert_array_equal(token_ids.reshape(-1)[layout.places], np.concatenate([r.token_ids for r in rows]))
    assert (token_ids == 77).sum() == 16 - sum(layout.lengths)
    assert not type_ids.any()


@pytest.mark.parametrize("lengths", CASES)
def test_the_index_of_a_subset_points_at_the_same_tokens(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    tokens = np.arange(layout.n_tokens)
    rows = np.arange(0, len(lengths), 2)
    chosen, index = layout.subset(rows)
    assert index.shape == (chosen.n_lines, chosen.line_tokens)
    picked = tokens[index].reshape(-1)
    for place, row in enumerate(rows.tolist()):
        here, there, length = chosen.starts[place], layout.starts[row], lengths[row]
        np.testing.assert_array_equal(picked[here : here + length], tokens[there : there + length])


@pytest.mark.parametrize("lengths", CASES)
def test_the_padded_index_points_at_each_rows_tokens_from_its_first(lengths: list[int]) -> None:
    layout = Layout.pack(lengths)
    rows = np.arange(len(lengths) // 3, len(lengths))
    index, padded_lengths = layout.padded(rows)
    assert index.shape == (round_rows(len(rows)), round_tokens(max(lengths[row] for row in rows)))
    for place, row in enumerate(rows.tolist()):
        start, length = layout.starts[row], lengths[row]
        assert padded_lengths[place] == length
        assert index[place, :length].tolist() == list(range(start, start + length))
        assert set(index[place, length:].tolist()) <= {start}


def test_rows_beyond_those_asked_repeat_the_first() -> None:
    layout = Layout.pack([4, 6, 8, 3, 5])
    index, lengths = layout.padded(np.array([1, 2, 3, 4]))
    assert len(index) == 4
    index, lengths = layout.padded(np.arange(5))
    assert len(index) == 6
    np.testing.assert_array_equal(index[5], index[0])
    assert lengths[5] == lengths[0] == 4


def test_pooling_marks_each_rows_tokens_and_no_token_of_rows_that_are_not_there() -> None:
    layout = Layout.pack([4, 6, 8, 3, 5])
    pooling = layout.pooling()
    assert pooling.shape == (6, layout.n_tokens)
    assert pooling.sum(axis=1).tolist() == [4, 6, 8, 3, 5, 0]
    for row, start in enumerate(layout.starts.tolist()):
        assert pooling[row, start : start + layout.lengths[row]].all()


def test_row_counts_are_rounded_up_by_less_than_half() -> None:
    assert [round_rows(n) for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    for count in range(3, 1000):
        assert count <= round_rows(count) < count * 1.5
        assert round_rows(round_rows(count)) == round_rows(count)


def test_token_counts_are_multiples_of_sixteen_up_to_a_line_and_few_sizes_above() -> None:
    assert [round_tokens(n) for n in (1, 16, 17, 48, 63, 64)] == [16, 16, 32, 48, 64, 64]
    assert [round_tokens(n) for n in (65, 96, 97, 129, 200, 257, 512)] == [96, 96, 128, 192, 256, 384, 512]
