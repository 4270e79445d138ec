"""Constrained decoding: always allowed, and the best of all that is allowed."""

from itertools import pairwise, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trunkline.model.decode import decode_tags, word_tags

LABELS = ("O", "B-x", "I-x", "B-y", "I-y")
LOGITS = arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.just(len(LABELS))),
    elements=st.floats(-8, 8, width=16),
)


def is_allowed(tags: tuple[str, ...] | list[str]) -> bool:
    return all(
        not after.startswith("I-") or (before != "O" and before[2:] == after[2:])
        for before, after in pairwise(("O", *tags))
    )


def total(logits: np.ndarray, tags: tuple[str, ...] | list[str]) -> float:
    return float(sum(line[LABELS.index(tag)] for line, tag in zip(logits.astype(float), tags, strict=True)))


@given(LOGITS)
def test_decoded_tags_are_always_allowed(logits: np.ndarray) -> None:
    assert is_allowed(decode_tags(logits, LABELS))


@given(LOGITS)
def test_no_allowed_sequence_scores_higher_than_the_decoded_one(logits: np.ndarray) -> None:
    best = max(total(logits, tags) for tags in product(LABELS, repeat=len(logits)) if is_allowed(tags))
    assert abs(total(logits, decode_tags(logits, LABELS)) - best) < 1e-6


@given(LOGITS, st.floats(0.25, 4.0))
def test_a_temperature_does_not_change_how_good_the_decoded_tags_are(logits: np.ndarray, temperature: float) -> None:
    warm = decode_tags((logits / temperature).astype(np.float32), LABELS)
    assert abs(total(logits, warm) - total(logits, decode_tags(logits, LABELS))) < 1e-4


@given(LOGITS, st.data())
def test_words_inside_the_token_before_change_nothing_for_the_others(logits: np.ndarray, data: st.DataObject) -> None:
    n_more = [data.draw(st.integers(0, 2)) for _ in logits]
    places = [place for number, more in enumerate(n_more) for place in (number, *[-2] * more)]
    tags = word_tags(logits, LABELS, np.array(places, dtype=np.int32))
    assert [tag for tag, place in zip(tags, places, strict=True) if place >= 0] == decode_tags(logits, LABELS)
    assert is_allowed(tags)
    assert all(tag[0] in "OI" for tag, place in zip(tags, places, strict=True) if place == -2)
