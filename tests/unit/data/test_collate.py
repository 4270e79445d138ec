"""Padding and batches."""

import numpy as np
import pytest

from trunkline.core.errors import SpecError
from trunkline.core.types import Encoded
from trunkline.data.collate import collate, length_batches


def _row(*ids: int) -> Encoded:
    tokens = np.array(ids, dtype=np.int32)
    return Encoded(
        token_ids=tokens,
        type_ids=np.ones_like(tokens),
        offsets=np.zeros((len(ids), 2), dtype=np.int32),
        sequence=np.zeros(len(ids), dtype=np.int8),
        truncated=False,
    )


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    batch = collate([_row(5, 6), _row(7, 8, 9)], 1)
    assert batch.token_ids.tolist() == [[5, 6, 1], [7, 8, 9]]
    assert batch.type_ids.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]


def test_batches_have_the_types_that_torch_takes() -> None:
    batch = collate([_row(5)], 0)
    assert (batch.token_ids.dtype, batch.type_ids.dtype, batch.mask.dtype) == (
        np.dtype("int64"),
        np.dtype("int64"),
        np.dtype("bool"),
    )


def test_no_rows_make_an_empty_batch() -> None:
    assert collate([], 0).token_ids.shape == (0, 0)


def test_batches_go_from_short_to_long_and_keep_the_order_of_equals() -> None:
    batches = length_batches([3, 1, 3, 2, 1], rows_per_batch=2)
    assert [batch.tolist() for batch in batches] == [[1, 4], [3, 0], [2]]


def test_no_lengths_make_no_batches() -> None:
    assert length_batches([], rows_per_batch=4) == []


def test_a_batch_without_rows_is_refused() -> None:
    with pytest.raises(SpecError, match="rows_per_batch: 0"):
        length_batches([1], rows_per_batch=0)
