"""Rows of different lengths into batches with little padding."""

from collections.abc import Sequence

import numpy as np

from trunkline.core.errors import SpecError
from trunkline.core.types import Batch, Encoded


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad rows on the right to the longest of them.

    Args:
        rows: Encoded rows; none gives a batch of shape (0, 0).
        pad_id: The id that fills up ``token_ids``; ``type_ids`` are filled with 0.

    Returns:
        ids and types (rows, tokens) int64, mask (rows, tokens) bool.
    """
    lengths = np.fromiter((len(row.token_ids) for row in rows), dtype=np.int64, count=len(rows))
    n_tokens = int(lengths.max(initial=0))
    mask = np.arange(n_tokens)[None, :] < lengths[:, None]
    token_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    type_ids = np.zeros(mask.shape, dtype=np.int64)
    if rows:
        token_ids[mask] = np.concatenate([row.token_ids for row in rows])
        type_ids[mask] = np.concatenate([row.type_ids for row in rows])
    return Batch(token_ids=token_ids, type_ids=type_ids, mask=mask)


def length_batches(lengths: Sequence[int], *, rows_per_batch: int) -> list[np.ndarray]:
    """Sort rows by length and cut them into batches.

    Args:
        lengths: Tokens of each row.
        rows_per_batch: Rows in every batch but the last; at least 1.

    Returns:
        int64 indices into ``lengths``, shortest rows first; rows of equal length keep their order, so equal input
        gives equal batches. Together they hold every index once.

    Raises:
        SpecError: ``rows_per_batch`` is below 1.
    """
    if rows_per_batch < 1:
        raise SpecError(f"rows_per_batch: {rows_per_batch} is not allowed; choose 1 or more")
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[start : start + rows_per_batch] for start in range(0, len(order), rows_per_batch)]
