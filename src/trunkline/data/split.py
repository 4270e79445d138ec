"""The selection slice: the part of train that choices are made on (design.md, Selection)."""

from collections.abc import Sequence

import numpy as np

from trunkline.core.types import Example

MIN_SELECTION_ROWS = 300
SELECTION_SHARE = 0.1


def selection_slice(train: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split train into rows to learn from and rows to choose on.

    The slice is a seeded tenth, at least 300 rows and at most half. It depends on the number of rows alone, so
    that all runs of a task, and its calibration, see the same slice.

    Args:
        train: At least 2 examples.

    Returns:
        Rows to learn from and rows to choose on, each in the order of train.
    """
    n_slice = min(max(MIN_SELECTION_ROWS, round(SELECTION_SHARE * len(train))), len(train) // 2)
    chosen = set(np.random.default_rng(0).permutation(len(train))[:n_slice].tolist())
    return (
        [example for i, example in enumerate(train) if i not in chosen],
        [example for i, example in enumerate(train) if i in chosen],
    )
