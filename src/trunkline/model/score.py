"""From logits to judged answers: the trainer and the engine score a task with the same functions."""

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from trunkline.core.errors import DataError
from trunkline.core.metrics import classification_metric, multilabel_metric, regression_metric, span_f1
from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example, LabelsPrediction, ScorePrediction
from trunkline.model.decode import check_logits, decode, word_tags

Answer: TypeAlias = str | float | tuple[str, ...]
"""A class name; a score; the labels of a multi-label row, or one tag for each word."""

AnswerT = TypeVar("AnswerT")


def answer(logits: np.ndarray, branch: BranchSpec, positions: np.ndarray | None = None) -> Answer:
    """What a branch says about one row, in the form that metrics take.

    Abstention does not count here: a classification task is judged by its most probable label, so that
    ``abstain_below`` changes what clients see and not how good the branch is said to be.

    Args:
        logits: (n_outputs,) float32; for tagging (words, n_labels), one line for each word that has a position.
        branch: Labels, calibration, mean and spread of the score.
        positions: Tagging: (words,) index of each word's first token; -1 where it has none, such a word is "O"; -2
            where it begins inside the token of the word before, and continues that one.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
        DataError: The logits do not have the branch's shape, or tagging lacks ``positions``.
    """
    if branch.kind == "tagging":
        return _tags(logits, branch, positions)
    prediction = decode(logits, branch, Example(text=""), None)
    if isinstance(prediction, LabelsPrediction):
        return prediction.labels
    if isinstance(prediction, ScorePrediction):
        return prediction.score
    return branch.labels[int(np.argmax(logits))]


def score_predictions(branch: BranchSpec, predictions: Sequence[Answer], examples: Sequence[Example]) -> float:
    """Judge answers by the task's metric.

    Args:
        branch: Kind, metric, labels and positive label.
        predictions: One for each example, as from `answer`.
        examples: Labelled rows.

    Returns:
        Points, 0 to 100 (a correlation times 100, so -100 to 100).

    Raises:
        DataError: A row has no target, or one of another kind, or a prediction has the wrong kind.
    """
    if len(predictions) != len(examples):
        raise DataError(
            f"task {branch.task!r}: {len(predictions)} predictions for {len(examples)} rows; one for each is needed; "
            "predict the rows again"
        )
    targets = [example.target for example in examples]
    if branch.kind == "classification":
        return classification_metric(
            branch.metric,
            _all_of(str, predictions, branch),
            _all_of(str, targets, branch),
            labels=branch.labels,
            positive_label=branch.positive_label,
        )
    if branch.kind == "regression":
        return regression_metric(branch.metric, _all_of(float, predictions, branch), _all_of(float, targets, branch))
    given, wanted = _all_of(tuple, predictions, branch), _all_of(tuple, targets, branch)
    if branch.kind == "multilabel":
        return multilabel_metric(branch.metric, given, wanted, labels=branch.labels)
    return span_f1(given, wanted).f1


def _all_of(kind: type[AnswerT], values: Sequence[object], branch: BranchSpec) -> list[AnswerT]:
    checked: list[AnswerT] = []
    for number, value in enumerate(values):
        if not isinstance(value, kind):
            raise DataError(
                f"task {branch.task!r}: row {number} has {'no target' if value is None else repr(value)}; a "
                f"{branch.kind} task is judged on {kind.__name__} values; use labelled rows"
            )
        checked.append(value)
    return checked


def _tags(logits: np.ndarray, branch: BranchSpec, positions: np.ndarray | None) -> tuple[str, ...]:
    if positions is None:
        raise DataError(f"task {branch.task!r}: no word positions; tagging needs them; give those of the encoded row")
    check_logits(logits, branch)
    return tuple(word_tags(logits, branch.labels, positions))
