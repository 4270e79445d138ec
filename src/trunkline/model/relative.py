"""Relative position buckets, as in T5 and MPNet. No torch here."""

import math

import numpy as np

MAX_RELATIVE_DISTANCE = 128


def relative_buckets(n_tokens: int, n_buckets: int) -> np.ndarray:
    """Bucket of each (query, key) pair by signed distance.

    Half of the buckets are for keys behind the query; near distances have one each, far ones share by logarithm.

    Args:
        n_tokens: Tokens of a row.
        n_buckets: Lines of the bias table.

    Returns:
        (tokens, tokens) int64.
    """
    positions = np.arange(n_tokens)
    distance = positions[None, :] - positions[:, None]
    half = n_buckets // 2
    n_exact = half // 2
    far = np.abs(distance)
    # In float32, as the models were trained: where a distance falls between two buckets is decided by its rounding.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(n_exact))
    share = ratio / np.float32(math.log(MAX_RELATIVE_DISTANCE / n_exact))
    logarithmic = np.minimum(n_exact + (share * np.float32(half - n_exact)).astype(np.int64), half - 1)
    return np.asarray(np.where(far < n_exact, far, logarithmic) + (distance > 0) * half)
