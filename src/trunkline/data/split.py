"""Seeded samples, and the selection slice: the part of train that choices are made on (design.md, Selection)."""

from collections.abc import Sequence

import numpy as np

from trunkline.core.types import Example

MIN_SELECTION_ROWS = 300
SELECTION_SHARE = 0.1


def selection_slice(train: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split train into rows to learn from and rows to choose on.

    The slice is a seeded tenth of the labelled rows, at least 300 and at most half of them. Which rows are drawn
    depends on their number alone, so that all runs of a task, and its calibration, see the same slice, and a corrected
    row moves no other. Repeats of a drawn input join it, as far as the half allows: what is chosen on was not learned.

    Args:
        train: At least 2 labelled examples; those without a label are learned from.

    Returns:
        Rows to learn from and rows to choose on, each in the order of train.
    """
    labelled = [i for i, example in enumerate(train) if example.target is not None]
    half = len(labelled) // 2
    n_slice = min(max(MIN_SELECTION_ROWS, round(SELECTION_SHARE * len(labelled))), half)
    chosen = {labelled[i] for i in sample_indices(len(labelled), n_slice)}
    inputs = {(train[i].text, train[i].text_pair) for i in chosen}
    repeats = [i for i in labelled if i not in chosen and (train[i].text, train[i].text_pair) in inputs]
    chosen.update(repeats[: half - n_slice])
    return (
        [example for i, example in enumerate(train) if i not in chosen],
        [example for i, example in enumerate(train) if i in chosen],
    )


def sample_indices(n_rows: int, count: int | None) -> list[int]:
    """A seeded sample of rows by their number alone, ascending; a larger one contains the smaller ones.

    Args:
        n_rows: Of how many.
        count: How many; None takes all, as does a count that is no less than there are.
    """
    if count is None or count >= n_rows:
        return list(range(n_rows))
    return sorted(np.random.default_rng(0).permutation(n_rows)[:count].tolist())
