"""From logits to answers."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.tiny_bundles import provenance_of
from trunkline.core.errors import DataError, NonFiniteError
from trunkline.core.specs import BranchSpec, Calibration
from trunkline.core.types import (
    Example,
    LabelPrediction,
    LabelsPrediction,
    ScorePrediction,
    Span,
    SpansPrediction,
)
from trunkline.model.decode import decode, decode_tags, probabilities, tags_to_spans, word_tags

TAGS = ("O", "B-city", "I-city", "B-day", "I-day")
EXAMPLE = Example("rain in new york today", word_spans=((0, 4), (5, 7), (8, 11), (12, 16), (17, 22)))
FAR = -9.0


def branch_of(**changes: Any) -> BranchSpec:
    facts: dict[str, Any] = {
        "task": "demo",
        "kind": "classification",
        "input": "text",
        "labels": ("a", "b", "c"),
        "metric": "accuracy",
        "max_length": 32,
        "pooling": "cls",
        "exit_layer": 1,
        "own_layers": 1,
        "trunk_digest": "0" * 64,
        "provenance": provenance_of("demo"),
    }
    return BranchSpec(**(facts | changes))


def tag_logits(*tags: str, sure: float = 3.0) -> np.ndarray:
    logits = np.zeros((len(tags), len(TAGS)), dtype=np.float32)
    logits[np.arange(len(tags)), [TAGS.index(tag) for tag in tags]] = sure
    return logits


def tagger() -> BranchSpec:
    return branch_of(kind="tagging", labels=TAGS, metric="span_f1")


def test_classification_names_the_most_probable_label() -> None:
    answer = decode(np.log(np.array([0.2, 0.7, 0.1], dtype=np.float32)), branch_of(), EXAMPLE, None)
    assert isinstance(answer, LabelPrediction)
    assert answer.label == "b"
    assert answer.confidence == pytest.approx(0.7)
    assert answer.probabilities == pytest.approx({"a": 0.2, "b": 0.7, "c": 0.1})


@pytest.mark.parametrize(("floor", "label"), [(0.69, "b"), (0.71, None)])
def test_a_branch_abstains_below_its_floor(floor: float, label: str | None) -> None:
    branch = branch_of(calibration=Calibration(abstain_below=floor))
    answer = decode(np.log(np.array([0.2, 0.7, 0.1], dtype=np.float32)), branch, EXAMPLE, None)
    assert isinstance(answer, LabelPrediction)
    assert answer.label == label
    assert answer.confidence == pytest.approx(0.7)


def test_a_higher_temperature_is_less_sure() -> None:
    logits = np.array([2.0, 0.0, 0.0], dtype=np.float32)
    warm = branch_of(calibration=Calibration(temperature=2.0))
    np.testing.assert_allclose(probabilities(logits, warm), probabilities(logits / 2, branch_of()))


@given(
    arrays(np.float32, 3, elements=st.integers(-80, 80)),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([None, 0.4, 0.8]),
)
def test_the_best_label_alone_is_the_best_of_all(logits: np.ndarray, temperature: float, floor: float | None) -> None:
    branch = branch_of(calibration=Calibration(temperature=temperature, abstain_below=floor))
    whole, best = (decode(logits, branch, EXAMPLE, None, best_only=best_only) for best_only in (False, True))
    assert isinstance(whole, LabelPrediction)
    assert isinstance(best, LabelPrediction)
    assert (best.label, best.confidence) == (whole.label, whole.confidence)
    assert best.probabilities == {label: whole.probabilities[label] for label in best.probabilities}
    assert len(best.probabilities) == 1


def test_probabilities_of_extreme_logits_are_finite() -> None:
    logits = np.array([1e4, -1e4, 0.0], dtype=np.float32)
    assert probabilities(logits, branch_of()).tolist() == [1.0, 0.0, 0.0]
    assert probabilities(logits, branch_of(kind="multilabel", metric="f1_micro")).tolist() == [1.0, 0.0, 0.5]


def test_multilabel_gives_every_label_that_reaches_one_half() -> None:
    branch = branch_of(kind="multilabel", metric="f1_micro")
    answer = decode(np.array([0.0, -0.1, 2.0], dtype=np.float32), branch, EXAMPLE, None)
    assert isinstance(answer, LabelsPrediction)
    assert answer.labels == ("a", "c")
    assert answer.probabilities["c"] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_multilabel_thresholds_are_one_for_each_label() -> None:
    calibration = Calibration(thresholds=(0.6, 0.1, 0.95))
    branch = branch_of(kind="multilabel", metric="f1_micro", calibration=calibration)
    answer = decode(np.array([0.0, -0.1, 2.0], dtype=np.float32), branch, EXAMPLE, None)
    assert isinstance(answer, LabelsPrediction)
    assert answer.labels == ("b",)


def test_a_score_is_given_in_the_unit_of_the_data() -> None:
    branch = branch_of(kind="regression", labels=(), metric="pearson", score_mean=2.5, score_std=1.5)
    assert decode(np.array([2.0], dtype=np.float32), branch, EXAMPLE, None) == ScorePrediction(score=5.5)


def test_a_score_has_no_probabilities() -> None:
    branch = branch_of(kind="regression", labels=(), metric="pearson")
    with pytest.raises(DataError, match="a score has no probabilities"):
        probabilities(np.zeros(1, dtype=np.float32), branch)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_logits_that_are_not_finite_are_refused(kind: str, value: float) -> None:
    branch = branch_of(kind=kind, metric="f1_micro")
    with pytest.raises(NonFiniteError, match="task 'demo': 1 of 3 logits are NaN or infinite"):
        decode(np.array([0.0, value, 0.0], dtype=np.float32), branch, EXAMPLE, None)


def test_nan_tags_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="a logit is NaN or infinite"):
        decode_tags(tag_logits("O", "B-day") * np.nan, TAGS)


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 1, 3)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="1 axes are needed, the last of 3"):
        decode(np.zeros(shape, dtype=np.float32), branch_of(), EXAMPLE, None)


def test_spans_carry_character_offsets_and_the_least_sure_words_confidence() -> None:
    logits = tag_logits("O", "O", "B-city", "I-city", "B-day")
    logits[3] *= 0.5
    answer = decode(logits, tagger(), EXAMPLE, np.arange(1, 6))
    assert isinstance(answer, SpansPrediction)
    assert [(span.label, span.start, span.end, span.text) for span in answer.spans] == [
        ("city", 8, 16, "new york"),
        ("day", 17, 22, "today"),
    ]
    least = probabilities(logits, tagger())[3, 2]
    assert answer.spans[0].confidence == pytest.approx(least)


def test_a_word_without_a_token_is_outside_and_ends_a_span() -> None:
    logits = tag_logits("O", "O", "B-city", "I-city")
    assert word_tags(logits, TAGS, np.array([1, 2, 3, -1, 4])) == ["O", "O", "B-city", "O", "O"]


def test_a_word_inside_the_token_before_goes_on_as_that_word_does() -> None:
    logits = tag_logits("O", "B-city", "I-city", "O")
    places = np.array([1, -2, 2, -2, -2, 3, 4, -2])
    tags = ["O", "O", "B-city", "I-city", "I-city", "I-city", "O", "O"]
    assert word_tags(logits, TAGS, places) == tags


def test_a_word_inside_the_token_before_does_not_break_the_sequence() -> None:
    # Alone, as behind a word without a token, the second line would begin nothing.
    logits = tag_logits("B-city", "I-city")
    assert word_tags(logits, TAGS, np.array([1, -2, 2])) == ["B-city", "I-city", "I-city"]
    assert word_tags(logits, TAGS, np.array([1, -2, -1, 2])) == ["B-city", "I-city", "O", "O"]


def test_a_span_over_words_that_share_a_token_is_whole() -> None:
    example = Example("去北京大学吧", word_spans=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)))
    logits = tag_logits("O", "B-city", "I-city", "O")
    answer = decode(logits, tagger(), example, np.array([1, 2, -2, 3, -2, 4]))
    assert isinstance(answer, SpansPrediction)
    assert [(span.start, span.end, span.text) for span in answer.spans] == [(1, 5, "北京大学")]
    assert answer.spans[0].confidence == pytest.approx(probabilities(logits, tagger())[1, 1])


def test_a_word_that_continues_takes_the_type_even_if_the_labels_have_no_inside_tag() -> None:
    logits = np.array([[0.0, 5.0]], dtype=np.float32)
    assert word_tags(logits, ("O", "B-x"), np.array([1, -2])) == ["B-x", "I-x"]


def test_words_that_were_cut_away_have_no_spans() -> None:
    answer = decode(tag_logits("O", "O", "B-city"), tagger(), EXAMPLE, np.array([1, 2, 3, -1, -1]))
    assert isinstance(answer, SpansPrediction)
    assert [span.text for span in answer.spans] == ["new"]


def test_a_text_without_any_token_has_no_spans() -> None:
    answer = decode(np.zeros((0, 5), dtype=np.float32), tagger(), EXAMPLE, np.full(5, -1))
    assert answer == SpansPrediction(spans=())


def test_an_empty_text_has_no_spans() -> None:
    empty = Example("", word_spans=())
    answer = decode(np.zeros((0, 5), dtype=np.float32), tagger(), empty, np.zeros(0, dtype=np.int32))
    assert answer == SpansPrediction(spans=())


def test_tagging_without_word_spans_is_refused() -> None:
    with pytest.raises(DataError, match="the row has no word spans"):
        decode(tag_logits("O"), tagger(), Example("rain"), np.array([1]))


def test_tagging_without_positions_is_refused() -> None:
    with pytest.raises(DataError, match="the row has no word positions"):
        decode(tag_logits("O"), tagger(), EXAMPLE, None)


def test_lines_and_positions_that_do_not_agree_are_refused() -> None:
    with pytest.raises(DataError, match="2 lines of logits; 1 words have a position"):
        word_tags(tag_logits("O", "O"), TAGS, np.array([1, -1]))


def test_tags_that_are_allowed_are_taken_word_by_word() -> None:
    tags = ["B-city", "I-city", "O", "B-day", "B-day"]
    assert decode_tags(tag_logits(*tags), TAGS) == tags


def test_an_inside_tag_never_stands_first() -> None:
    logits = np.array([[0.0, 1.0, 2.0, FAR, FAR]], dtype=np.float32)
    assert decode_tags(logits, TAGS) == ["B-city"]


def test_an_inside_tag_never_follows_another_type() -> None:
    logits = np.array([[FAR, 5.0, FAR, FAR, FAR], [FAR, FAR, 1.0, FAR, 1.5]], dtype=np.float32)
    assert decode_tags(logits, TAGS) == ["B-city", "I-city"]


def test_a_sure_inside_tag_pulls_its_beginning_with_it() -> None:
    logits = np.array([[1.0, 0.9, FAR, FAR, FAR], [0.0, FAR, 4.0, FAR, FAR]], dtype=np.float32)
    assert decode_tags(logits, TAGS) == ["B-city", "I-city"]


def test_a_confident_outside_breaks_a_span_rather_than_be_changed() -> None:
    logits = np.array([[8.0, FAR, FAR, FAR, FAR], [1.0, FAR, 1.5, FAR, FAR]], dtype=np.float32)
    assert decode_tags(logits, TAGS) == ["O", "O"]


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.just(5)), elements=st.integers(-2, 2).map(float)))
def test_tags_are_the_best_of_all_sequences_that_are_allowed(logits: np.ndarray) -> None:
    def is_allowed(path: tuple[int, ...]) -> bool:
        tags = ["O", *(TAGS[column] for column in path)]
        return all(not tag.startswith("I-") or tag[2:] == before[2:] for before, tag in pairwise(tags))

    paths = [path for path in product(range(len(TAGS)), repeat=len(logits)) if is_allowed(path)]
    lines = logits.tolist()
    # Small whole numbers, so that many are equally good: of those the first labels win, from the last word on.
    best = min(
        paths, key=lambda path: (-sum(line[column] for line, column in zip(lines, path, strict=True)), path[::-1])
    )
    assert decode_tags(logits, TAGS) == [TAGS[column] for column in best]


def test_two_beginnings_are_two_spans() -> None:
    spans = tags_to_spans(["B-x", "B-x"], [0.5, 0.6], [(0, 1), (2, 3)], "a b")
    assert spans == (
        Span(label="x", start=0, end=1, text="a", confidence=0.5),
        Span(label="x", start=2, end=3, text="b", confidence=0.6),
    )


def test_a_label_may_hold_a_hyphen() -> None:
    spans = tags_to_spans(["B-a-b", "I-a-b"], [0.5, 0.4], [(0, 1), (2, 3)], "x y")
    assert spans == (Span(label="a-b", start=0, end=3, text="x y", confidence=0.4),)


def test_a_stray_inside_tag_opens_a_span_as_in_conlleval() -> None:
    spans = tags_to_spans(["B-x", "I-y", "O", "I-y"], [1.0] * 4, [(0, 1), (2, 3), (4, 5), (6, 7)], "a b c d")
    assert [(span.label, span.start, span.end) for span in spans] == [("x", 0, 1), ("y", 2, 3), ("y", 6, 7)]


def test_tags_and_words_that_do_not_agree_are_refused() -> None:
    with pytest.raises(DataError, match="2 tags, 2 probabilities and 1 words"):
        tags_to_spans(["O", "O"], [1.0, 1.0], [(0, 1)], "a")
