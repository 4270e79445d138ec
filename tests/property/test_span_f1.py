"""Span F1 equals a count by the rules of the conlleval script, tag by tag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.core.metrics import span_f1

tags = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])
rows = st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=8), min_size=1, max_size=4)


def _spans(row: list[str]) -> set[tuple[int, int, str]]:
    """Where spans begin and end: conlleval's startOfChunk and endOfChunk, for tags B, I and O."""
    spans = set()
    start = 0
    for at, (before, tag) in enumerate(zip(["O", *row], [*row, "O"], strict=True)):
        breaks = tag == "O" or tag[0] == "B" or tag[2:] != before[2:]
        if before != "O" and breaks:
            spans.add((start, at, before[2:]))
        if tag != "O" and breaks:
            start = at
    return spans


@given(rows)
def test_span_f1_counts_as_conlleval_does(pairs: list[list[tuple[str, str]]]) -> None:
    predictions, references = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
    given_spans, wanted_spans = (
        {(number, *span) for number, row in enumerate(side) for span in _spans(row)}
        for side in (predictions, references)
    )
    n_right = len(given_spans & wanted_spans)
    score = span_f1(predictions, references)
    assert score.precision == pytest.approx(100 * n_right / max(len(given_spans), 1))
    assert score.recall == pytest.approx(100 * n_right / max(len(wanted_spans), 1))
    assert score.f1 == pytest.approx(200 * n_right / max(len(given_spans) + len(wanted_spans), 1))
