"""From logits to answers: temperature, thresholds, abstention, BIO-constrained tags. Numpy alone, no torch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from trunkline.core.errors import DataError, NonFiniteError
from trunkline.core.specs import OUTSIDE, BranchSpec
from trunkline.core.types import (
    Example,
    LabelPrediction,
    LabelsPrediction,
    Logits,
    Prediction,
    ScorePrediction,
    Span,
    SpansPrediction,
)
from trunkline.data.labels import label_index

DEFAULT_THRESHOLD = 0.5
"""Probability from which a multi-label task gives a label, where calibration has set no other."""


def decode(
    logits: Logits, branch: BranchSpec, example: Example, positions: np.ndarray | None, *, best_only: bool = False
) -> Prediction:
    """Turn one row's logits into its answer.

    Args:
        logits: (n_outputs,) float; for tagging (n, n_labels), one line for each word that has a position.
        branch: Labels, calibration, and the unit of scores.
        example: The row; tagging reads its text and ``word_spans``.
        positions: For tagging: (words,) from `word_positions`; words with -1 are ``O``, words with -2 continue the
            word before. Others ignore it.
        best_only: Leave the other labels of a classification out of its ``probabilities``: with a hundred of them to
            name each takes longer than all the rest.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
        DataError: The logits do not have the branch's shape, or tagging lacks word spans or positions.
    """
    check_logits(logits, branch)
    if branch.kind == "regression":
        return ScorePrediction(score=float(logits[0]) * branch.score_std + branch.score_mean)
    if branch.kind == "tagging":
        return _decode_spans(logits, branch, example, positions=positions)
    if branch.kind == "classification" and best_only:
        best, confidence = _most_probable(logits, branch)
        return _labelled(branch, best, {best: confidence})
    values = probabilities(logits, branch)
    shares = dict(zip(branch.labels, values.tolist(), strict=True))
    if branch.kind == "multilabel":
        thresholds = branch.calibration.thresholds or (DEFAULT_THRESHOLD,) * len(branch.labels)
        chosen = (label for label, floor in zip(branch.labels, thresholds, strict=True) if shares[label] >= floor)
        return LabelsPrediction(labels=tuple(chosen), probabilities=shares)
    best = branch.labels[int(values.argmax())]
    return _labelled(branch, best, shares)


def _most_probable(logits: Logits, branch: BranchSpec) -> tuple[str, float]:
    """The most probable label, and its probability to the last bit of `probabilities`."""
    scaled = np.divide(logits, branch.calibration.temperature, dtype=np.float64)
    index = int(scaled.argmax())
    return branch.labels[index], 1.0 / float(np.add.reduce(np.exp(scaled - scaled[index])))


def _labelled(branch: BranchSpec, best: str, shares: dict[str, float]) -> LabelPrediction:
    floor = branch.calibration.abstain_below
    abstains = floor is not None and shares[best] < floor
    return LabelPrediction(label=None if abstains else best, confidence=shares[best], probabilities=shares)


def check_logits(logits: Logits, branch: BranchSpec) -> None:
    """Refuse logits that no answer can come from.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
        DataError: They do not have the branch's shape.
    """
    n_axes = 2 if branch.kind == "tagging" else 1
    if logits.ndim != n_axes or logits.shape[-1] != branch.n_outputs:
        raise DataError(
            f"task {branch.task!r}: logits have shape {logits.shape}; {n_axes} axes are needed, the last of "
            f"{branch.n_outputs} (labels, or 1 for a score); use the branch that made them"
        )
    n_bad = int(logits.size - np.count_nonzero(np.isfinite(logits)))
    if n_bad:
        raise NonFiniteError(
            f"task {branch.task!r}: {n_bad} of {logits.size} logits are NaN or infinite; only finite ones are "
            "answers; verify the bundle and train the branch again"
        )


def probabilities(logits: Logits, branch: BranchSpec) -> np.ndarray:
    """Calibrated probabilities: logits over the temperature, then sigmoid (multi-label) or softmax (Guo et al. 2017).

    Args:
        logits: (…, n_labels) float.
        branch: Its kind and its temperature.

    Returns:
        (…, n_labels) float64.

    Raises:
        DataError: The branch gives scores, which have no probabilities.
    """
    if branch.kind == "regression":
        raise DataError(f"task {branch.task!r}: a score has no probabilities; ask a task that has labels")
    scaled = logits.astype(np.float64) / branch.calibration.temperature
    if branch.kind == "multilabel":
        # tanh cannot overflow, exp(-x) can.
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scaled)))
    weights = np.exp(scaled - np.maximum.reduce(scaled, axis=-1, keepdims=True))
    return np.asarray(weights / np.add.reduce(weights, axis=-1, keepdims=True))


def decode_tags(logits: Logits, labels: Sequence[str]) -> list[str]:
    """The most probable sequence of tags among those that IOB2 allows (Viterbi 1967).

    ``I-x`` may follow only ``B-x`` or ``I-x``, and never stands first. Among equal sequences, labels that come first
    win.

    Args:
        logits: (words, n_labels) float; a temperature would not change the answer.
        labels: Tags in the order of the columns.

    Returns:
        One tag for each word.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise NonFiniteError("tags: a logit is NaN or infinite; only finite ones are answers; verify the bundle")
    if not len(logits):
        return []
    rules = _rules(tuple(labels))
    greedy = logits.argmax(axis=1)
    if rules.starts[greedy[0]] and rules.follows[greedy[:-1], greedy[1:]].all():
        # No sequence can score higher than the best tag of every word.
        return [labels[index] for index in greedy]
    # A constant added to a line (what makes logits log-probabilities) changes no path's rank.
    path = _viterbi(logits.astype(np.float64), rules)
    return [labels[index] for index in path]


def word_tags(logits: Logits, labels: Sequence[str], positions: np.ndarray) -> list[str]:
    """Tags of all words of a text, those without a token included.

    A word without a token is ``O``, so no span reaches across it: the words before and after are decoded apart. A word
    that begins inside the token of the word before goes on as that one does, ``I-x`` in a span of ``x`` and ``O``
    outside, so that spans stay whole.

    Args:
        logits: (n, n_labels) float, one line for each word that has a position.
        labels: Tags in the order of the columns.
        positions: (words,) int from `word_positions`; -1 for a word without a token, -2 for one inside the token of
            the word before.

    Returns:
        (words,) tags.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
        DataError: There are not as many lines as positions.
    """
    places = np.asarray(positions)
    found = np.flatnonzero(places >= 0)
    if len(found) != len(logits):
        raise DataError(
            f"tags: {len(logits)} lines of logits; {len(found)} words have a position; give one line for each"
        )
    tags = [OUTSIDE] * len(positions)
    if not len(found):
        return tags
    if len(found) == len(tags):
        return decode_tags(logits, labels)
    n_outside = np.cumsum(places == -1)[found]
    gaps = np.flatnonzero(np.diff(n_outside)) + 1
    for words, lines in zip(np.split(found, gaps), np.split(logits, gaps), strict=True):
        for word, tag in zip(words, decode_tags(lines, labels), strict=True):
            tags[word] = tag
    for word in np.flatnonzero(places == -2):
        tags[word] = f"I-{tags[word - 1][2:]}" if word and tags[word - 1] != OUTSIDE else OUTSIDE
    return tags


def tags_to_spans(
    tags: Sequence[str], probabilities: Sequence[float], word_spans: Sequence[tuple[int, int]], text: str
) -> tuple[Span, ...]:
    """Join tagged words to spans.

    Args:
        tags: One IOB2 tag for each word; an ``I-x`` that follows nothing of its type opens a span, as in conlleval.
        probabilities: Of each word, the probability of its tag, 0..1.
        word_spans: (start, end) of each word in ``text``, in characters.
        text: What the words stand in.

    Returns:
        Spans in order; the confidence of a span is that of its least sure word.

    Raises:
        DataError: Tags, probabilities and spans differ in number.
    """
    if not len(tags) == len(probabilities) == len(word_spans):
        raise DataError(
            f"spans: {len(tags)} tags, {len(probabilities)} probabilities and {len(word_spans)} words; "
            "give one of each for every word"
        )
    spans: list[Span] = []
    before = OUTSIDE
    for tag, probability, (start, end) in zip(tags, probabilities, word_spans, strict=True):
        label = tag[2:]
        if tag.startswith("I-") and before[2:] == label:
            last = spans.pop()
            sure = min(last.confidence, probability)
            spans.append(Span(label=label, start=last.start, end=end, text=text[last.start : end], confidence=sure))
        elif tag != OUTSIDE:
            spans.append(Span(label=label, start=start, end=end, text=text[start:end], confidence=probability))
        before = tag
    return tuple(spans)


def _decode_spans(
    logits: Logits, branch: BranchSpec, example: Example, *, positions: np.ndarray | None
) -> SpansPrediction:
    if example.word_spans is None or positions is None:
        lacking = "word spans" if example.word_spans is None else "word positions"
        raise DataError(
            f"task {branch.task!r}: the row has no {lacking}; tagging needs them; split the text into words"
        )
    tags = word_tags(logits, branch.labels, positions)
    if tags.count(OUTSIDE) == len(tags):
        return SpansPrediction(spans=())
    columns = _rules(branch.labels).columns
    sure = np.ones(len(tags))
    # A word without a token of its own has no probability; its tag is a rule, not a guess.
    found = np.flatnonzero(np.asarray(positions) >= 0)
    chosen = [columns[tags[word]] for word in found]
    sure[found] = probabilities(logits, branch)[np.arange(len(found)), chosen]
    return SpansPrediction(spans=tags_to_spans(tags, sure.tolist(), example.word_spans, example.text))


class _Rules(NamedTuple):
    """Which tags may follow which: any may follow any, but for each ``I-x``.

    Attributes:
        columns: Each tag's column.
        starts: (n_labels,) bool: may stand first.
        follows: (n_labels, n_labels) bool: the second may follow the first.
        inside: (k,) columns of all ``I-x``.
        begins: (k,) column of the ``B-x`` of each; its own where there is none.
    """

    columns: dict[str, int]
    starts: np.ndarray
    follows: np.ndarray
    inside: np.ndarray
    begins: np.ndarray


@lru_cache(maxsize=256)
def _rules(labels: tuple[str, ...]) -> _Rules:
    is_inside = np.array([label.startswith("I-") for label in labels])
    types = np.array([label[2:] if label[:2] in ("B-", "I-") else "" for label in labels])
    same_type = (types[:, None] == types[None, :]) & (types != "")[:, None]
    columns = label_index(labels)
    inside = np.flatnonzero(is_inside)
    begins = np.array([columns.get(f"B-{labels[column][2:]}", column) for column in inside], dtype=np.int64)
    return _Rules(columns, ~is_inside, ~is_inside[None, :] | same_type, inside, begins)


def _viterbi(scores: np.ndarray, rules: _Rules) -> list[int]:
    """Best path through (words, n_labels) scores.

    Before an ``I-x`` stands one of two tags, before any other the best of all: a word costs as many steps as there are
    labels, not their square.
    """
    inside, begins = rules.inside, rules.begins
    best = np.where(rules.starts, scores[0], -np.inf)
    origins: list[np.ndarray] = []
    for line in scores[1:]:
        top = best.argmax()
        origin = np.full(len(best), top)
        through = np.full(len(best), best[top])
        own, begun = best[inside], best[begins]
        # Of equal ones the first column, as argmax takes it.
        origin[inside] = np.where((begun > own) | ((begun == own) & (begins < inside)), begins, inside)
        through[inside] = np.maximum(own, begun)
        origins.append(origin)
        best = through + line
    path = [int(best.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[::-1]
