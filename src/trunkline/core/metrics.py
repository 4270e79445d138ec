"""The metrics that tasks are judged by; all in points, 0 to 100 (Matthews and correlations: -100 to 100)."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from trunkline.core.errors import DataError, MissingDependencyError, NonFiniteError, SpecError, UnknownNameError
from trunkline.core.specs import METRICS_OF_KIND, Kind


@dataclass(frozen=True, slots=True)
class SpanScore:
    """Span F1 with its parts, in points."""

    f1: float
    precision: float
    recall: float


def classification_metric(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    labels: Sequence[str],
    positive_label: str | None = None,
) -> float:
    """Judge one class name a row.

    Args:
        metric: ``accuracy``, ``f1_binary``, ``f1_macro``, ``f1_micro`` or ``matthews``.
        predictions: Class names.
        references: Class names; those that ``labels`` lacks count as errors, as in scikit-learn.
        labels: The branch's labels. Macro F1 is the mean over the labels that occur among references or predictions:
            one that occurs nowhere has no F1, and would only pull the mean down.
        positive_label: The class that ``f1_binary`` is about; ignored by the others.

    Returns:
        Points; Matthews is 0 where either side is constant.

    Raises:
        MissingDependencyError: The metric's library is not installed.
        UnknownNameError: The metric does not fit classification.
        SpecError: ``f1_binary`` without ``positive_label``.
        DataError: No rows, or different numbers of them.
    """
    with _needs("scikit-learn"):
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    _check(metric, "classification", predictions, references)
    given, wanted = list(predictions), list(references)
    if metric == "accuracy":
        return 100.0 * float(accuracy_score(wanted, given))
    if metric == "matthews":
        if len(set(given)) == 1 or len(set(wanted)) == 1:
            return 0.0
        return 100.0 * float(matthews_corrcoef(wanted, given))
    if metric == "f1_binary":
        if positive_label is None:
            raise SpecError("metric 'f1_binary': positive_label is missing; name the class that it is about")
        return 100.0 * float(f1_score(wanted, given, labels=[positive_label], average="micro", zero_division=0))
    occurring = _occurring(labels, [*given, *wanted])
    average = metric.removeprefix("f1_")
    return 100.0 * float(f1_score(wanted, given, labels=occurring, average=average, zero_division=0))


def multilabel_metric(
    metric: str,
    predictions: Sequence[Collection[str]],
    references: Sequence[Collection[str]],
    *,
    labels: Sequence[str],
) -> float:
    """Judge any number of labels a row.

    Args:
        metric: ``f1_micro`` or ``f1_macro`` (over the labels that occur, see `classification_metric`).
        predictions: Labels of each row.
        references: Labels of each row; those that ``labels`` lacks count as missed.
        labels: The branch's labels.

    Returns:
        Points; 0 where neither side has a label.

    Raises:
        MissingDependencyError: The metric's library is not installed.
        UnknownNameError: The metric does not fit multi-label tasks.
        DataError: No rows, or different numbers of them.
    """
    with _needs("scikit-learn"):
        from sklearn.metrics import f1_score

    _check(metric, "multilabel", predictions, references)
    occurring = _occurring(labels, [name for row in (*predictions, *references) for name in row])
    if not occurring:
        return 0.0
    column = {name: index for index, name in enumerate(occurring)}
    given, wanted = _indicators(predictions, column), _indicators(references, column)
    if len(occurring) == 1:
        # scikit-learn takes a matrix of one column for a binary task and would average over both its classes.
        return 100.0 * float(f1_score(wanted[:, 0], given[:, 0], average="binary", zero_division=0))
    return 100.0 * float(f1_score(wanted, given, average=metric.removeprefix("f1_"), zero_division=0))


def regression_metric(metric: str, predictions: Sequence[float], references: Sequence[float]) -> float:
    """Correlate scores.

    Args:
        metric: ``pearson`` or ``spearman``.
        predictions: Scores.
        references: Scores.

    Returns:
        Correlation times 100; 0 where either side is constant (no correlation is defined there, and a model that
        always says the same has learnt nothing).

    Raises:
        MissingDependencyError: The metric's library is not installed.
        UnknownNameError: The metric does not fit regression.
        DataError: No rows, or different numbers of them.
        NonFiniteError: A score is NaN or infinite.
    """
    with _needs("scipy"):
        from scipy.stats import rankdata

    _check(metric, "regression", predictions, references)
    given, wanted = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if not (np.isfinite(given).all() and np.isfinite(wanted).all()):
        raise NonFiniteError(f"metric {metric!r}: a score is NaN or infinite; scores are finite; look for divergence")
    if metric == "spearman":
        given, wanted = rankdata(given), rankdata(wanted)
    if np.ptp(given) == 0 or np.ptp(wanted) == 0:
        return 0.0
    return 100.0 * float(np.corrcoef(given, wanted)[0, 1])


def span_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> SpanScore:
    """Judge tagged spans as the ``conlleval`` script of CoNLL-2000 does, through seqeval.

    A span counts when its type and both ends are right. ``I-x`` without a ``B-x`` before it, or after another type,
    begins a span.

    Args:
        predictions: One tag for each word of each row.
        references: The same shape.

    Returns:
        F1, precision and recall over all spans of all rows; 0 where there are none.

    Raises:
        MissingDependencyError: seqeval is not installed.
        DataError: No rows, or different numbers of rows or words.
    """
    with _needs("seqeval"):
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    _check("span_f1", "tagging", predictions, references)
    for number, (given, wanted) in enumerate(zip(predictions, references, strict=True)):
        if len(given) != len(wanted):
            raise DataError(
                f"metric 'span_f1': row {number} has {len(given)} tags for {len(wanted)} words; give as many"
            )
    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(row) for row in references], [list(row) for row in predictions], average="micro", zero_division=0
    )
    return SpanScore(f1=100.0 * float(f1), precision=100.0 * float(precision), recall=100.0 * float(recall))


@contextmanager
def _needs(package: str) -> Iterator[None]:
    """Say which extra brings a library that is missing."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{package}: not installed; metrics need it; install the extra with: pip install 'trunkline[train]'"
        ) from error


def _check(metric: str, kind: Kind, predictions: Sequence[object], references: Sequence[object]) -> None:
    if metric not in METRICS_OF_KIND[kind]:
        raise UnknownNameError(
            f"metric {metric!r}: does not fit kind {kind!r}; choose one of {', '.join(METRICS_OF_KIND[kind])}"
        )
    if len(predictions) != len(references):
        raise DataError(
            f"metric {metric!r}: {len(predictions)} predictions for {len(references)} references; give as many"
        )
    if not len(references):
        raise DataError(f"metric {metric!r}: no rows; at least one is needed; check the data")


def _occurring(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """Labels that occur, in the branch's order, then those that it does not know."""
    found = set(names)
    return [*(label for label in labels if label in found), *sorted(found.difference(labels))]


def _indicators(rows: Sequence[Collection[str]], column: dict[str, int]) -> np.ndarray:
    matrix = np.zeros((len(rows), len(column)), dtype=np.int8)
    for number, row in enumerate(rows):
        matrix[number, [column[name] for name in row]] = 1
    return matrix
