"""Metrics, against figures worked out by hand."""

import math

import pytest

from trunkline.core.errors import DataError, NonFiniteError, SpecError, UnknownNameError
from trunkline.core.metrics import classification_metric, multilabel_metric, regression_metric, span_f1

REFERENCES = ["a", "a", "a", "b", "b", "c"]
PREDICTIONS = ["a", "a", "b", "b", "a", "c"]
LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("metric", "points"),
    [
        ("accuracy", 100 * 4 / 6),
        ("f1_micro", 100 * 4 / 6),
        # a: 2 right of 3 given and 3 wanted; b: 1 of 2 and 2; c: 1 of 1 and 1.
        ("f1_macro", 100 * (2 / 3 + 1 / 2 + 1) / 3),
        # Gorodkin 2004: (c*s - sum p*t) / sqrt((s*s - sum p*p)(s*s - sum t*t)) with c=4, s=6 and p = t = (3, 2, 1).
        ("matthews", 100 * (4 * 6 - 14) / (36 - 14)),
    ],
)
def test_classification_metrics_are_in_points(metric: str, points: float) -> None:
    assert classification_metric(metric, PREDICTIONS, REFERENCES, labels=LABELS) == pytest.approx(points)


def test_binary_f1_is_about_the_positive_label() -> None:
    points = classification_metric("f1_binary", PREDICTIONS, REFERENCES, labels=LABELS, positive_label="b")
    assert points == pytest.approx(50)


def test_binary_f1_is_zero_when_its_label_is_never_given() -> None:
    points = classification_metric("f1_binary", ["a", "a"], ["a", "a"], labels=("a", "b"), positive_label="b")
    assert points == 0


def test_binary_f1_without_a_positive_label_is_refused() -> None:
    with pytest.raises(SpecError, match="positive_label is missing"):
        classification_metric("f1_binary", ["a"], ["a"], labels=LABELS)


def test_macro_f1_leaves_out_labels_that_occur_nowhere() -> None:
    assert classification_metric("f1_macro", ["a", "b"], ["a", "b"], labels=LABELS) == 100


def test_macro_f1_counts_reference_labels_that_the_branch_does_not_know() -> None:
    points = classification_metric("f1_macro", ["a", "b", "b"], ["a", "b", "new"], labels=LABELS)
    assert points == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize(
    ("predictions", "references"), [("aa", "ab"), ("ab", "aa"), ("aa", "aa"), ("aa", "bb"), ("a", "a")]
)
def test_matthews_is_zero_where_either_side_is_constant(predictions: str, references: str) -> None:
    assert classification_metric("matthews", list(predictions), list(references), labels=LABELS) == 0


@pytest.mark.parametrize(
    ("metric", "points"),
    # x: 1 right of 1 given and 2 wanted, y: 1 of 2 and 1; z occurs nowhere.
    [("f1_micro", 100 * 4 / 6), ("f1_macro", 100 * (2 / 3 + 2 / 3) / 2)],
)
def test_multilabel_metrics_are_in_points(metric: str, points: float) -> None:
    predictions = [("x", "y"), (), ("y",)]
    references = [("x",), ("x",), ("y",)]
    assert multilabel_metric(metric, predictions, references, labels=("x", "y", "z")) == pytest.approx(points)


@pytest.mark.parametrize("metric", ["f1_micro", "f1_macro"])
def test_a_single_multilabel_label_is_judged_by_its_presence_alone(metric: str) -> None:
    assert multilabel_metric(metric, [("x",), (), ("x",)], [("x",), (), ()], labels=("x",)) == pytest.approx(
        100 * 2 / 3
    )


def test_multilabel_references_that_the_branch_does_not_know_are_missed() -> None:
    assert multilabel_metric("f1_micro", [("x",)], [("x", "new")], labels=("x",)) == pytest.approx(100 * 2 / 3)


def test_multilabel_rows_without_any_label_give_zero() -> None:
    assert multilabel_metric("f1_micro", [()], [()], labels=("x",)) == 0


@pytest.mark.parametrize(("metric", "points"), [("pearson", 100 * 20 / math.sqrt(10 * 50)), ("spearman", 100.0)])
def test_correlations_are_in_points(metric: str, points: float) -> None:
    # Deviations from the means: (-2 -1 0 1 2) and (-3 -2 -1 0 6); products sum to 20, squares to 10 and 50.
    assert regression_metric(metric, [1, 2, 3, 4, 5], [1, 2, 3, 4, 10]) == pytest.approx(points)


def test_spearman_gives_equal_scores_equal_ranks() -> None:
    # Ranks (1.5, 1.5, 3) and (1, 2, 3): covariance 1.5, variances 1.5 and 2.
    assert regression_metric("spearman", [1, 1, 9], [1, 2, 3]) == pytest.approx(100 * 1.5 / math.sqrt(3))


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize(("predictions", "references"), [([2, 2], [1, 3]), ([1, 3], [2, 2]), ([1], [1])])
def test_constant_scores_give_zero(metric: str, predictions: list[float], references: list[float]) -> None:
    assert regression_metric(metric, predictions, references) == 0


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="metric 'pearson'"):
        regression_metric("pearson", [1.0, math.nan], [1.0, 2.0])


# What conlleval counts in such rows by its rules startOfChunk and endOfChunk: spans that are right, given and wanted.
@pytest.mark.parametrize(
    ("given", "wanted", "n_right", "n_given", "n_wanted"),
    [
        ("B-a I-a O", "B-a I-a O", 1, 1, 1),
        ("B-a O O", "B-a I-a O", 0, 1, 1),  # another end
        ("B-b I-b O", "B-a I-a O", 0, 1, 1),  # another type
        ("I-a I-a O", "B-a I-a O", 1, 1, 1),  # I without B begins a span
        ("O I-a", "O B-a", 1, 1, 1),
        ("B-a I-b", "B-a B-b", 2, 2, 2),  # a change of type begins a span
        ("I-a I-b I-a", "B-a O B-a", 2, 3, 2),
        ("B-a B-a", "B-a I-a", 0, 2, 1),  # B begins a span inside another
        ("B-a I-a", "B-a B-a", 0, 1, 2),
        ("B-x-y I-x-y", "B-x-y I-x-y", 1, 1, 1),  # hyphens belong to the type
        ("B-PER.NOM O", "B-PER.NAM O", 0, 1, 1),
        ("O O", "B-a O", 0, 0, 1),
        ("B-a O", "O O", 0, 1, 0),
        ("O", "O", 0, 0, 0),
    ],
)
def test_spans_count_as_in_conlleval(given: str, wanted: str, n_right: int, n_given: int, n_wanted: int) -> None:
    # Two sure spans in a row of their own keep the ratios apart from 0 / 0.
    sure = ["B-s", "O", "B-t"]
    score = span_f1([given.split(), sure], [wanted.split(), sure])
    precision, recall = 100 * (n_right + 2) / (n_given + 2), 100 * (n_right + 2) / (n_wanted + 2)
    assert score.precision == pytest.approx(precision)
    assert score.recall == pytest.approx(recall)
    assert score.f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_spans_never_reach_over_rows() -> None:
    assert span_f1([["O", "B-a"], ["I-a", "O"]], [["O", "B-a"], ["B-a", "O"]]).f1 == 100


def test_rows_without_spans_give_zero() -> None:
    assert span_f1([["O"]], [["O"]]).f1 == 0


def test_rows_with_other_numbers_of_tags_are_refused() -> None:
    with pytest.raises(DataError, match="row 1 has 1 tags for 2 words"):
        span_f1([["O"], ["O"]], [["O"], ["O", "O"]])


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        classification_metric("accuracy", ["a"], ["a", "b"], labels=LABELS)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        regression_metric("pearson", [], [])


def test_a_metric_of_another_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="metric 'pearson': does not fit kind 'classification'"):
        classification_metric("pearson", ["a"], ["a"], labels=LABELS)
