"""Fitting how logits become probabilities and decisions, on rows that the weights were not tuned on. No torch."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from trunkline.core.errors import DataError
from trunkline.core.specs import BranchSpec, Calibration, Kind
from trunkline.core.types import Example
from trunkline.data.labels import label_index, target_labels
from trunkline.model.decode import DEFAULT_THRESHOLD, probabilities

TEMPERATURE_RANGE = (0.05, 20.0)
_EDGE = 1e-3  # In logarithms; the search comes within about 1e-5 of an end, never onto it.
THRESHOLDS = np.round(np.arange(0.05, 0.951, 0.05), 2)


def check_kind(task: str, kind: Kind) -> None:
    """Refuse a task whose branch has no probabilities.

    Raises:
        DataError: The kind has nothing to calibrate.
    """
    if kind not in ("classification", "multilabel"):
        raise DataError(
            f"task {task!r}: a {kind} branch has no probabilities to calibrate; "
            "calibrate classification and multilabel tasks"
        )


def usable_rows(branch: BranchSpec, examples: Sequence[Example]) -> np.ndarray:
    """Which rows a calibration is fitted on: (rows,) bool.

    Rows without a target are left out, and so are those of classes that the branch does not know.
    """
    known = frozenset(branch.labels)
    return np.array(
        [row.target is not None and (branch.kind != "classification" or row.target in known) for row in examples],
        dtype=bool,
    )


def at_edge(temperature: float) -> bool:
    """Whether a fitted temperature lies at an end of `TEMPERATURE_RANGE`: the loss has its minimum beyond it."""
    return bool(np.isclose(np.log(temperature), np.log(TEMPERATURE_RANGE), rtol=0, atol=_EDGE).any())


def fit_calibration(branch: BranchSpec, logits: Sequence[np.ndarray], examples: Sequence[Example]) -> Calibration:
    """Fit temperature and, for multi-label tasks, a threshold for each label.

    The temperature is the one number that minimizes the negative log-likelihood (Guo et al. 2017, section 4.2),
    searched within 0.05 to 20; it never changes which label is first. A threshold is the multiple of 0.05 with the
    best F1 of its label; where several are equally good, the one nearest to 0.5; a label that no row has keeps 0.5.

    Args:
        branch: Kind, labels and the calibration in force, whose ``abstain_below`` is kept.
        logits: One array a row: (labels,).
        examples: The rows; those that are not `usable_rows` are left out.

    Raises:
        DataError: The kind has nothing to calibrate, or no row has a label that the branch knows.
    """
    check_kind(branch.task, branch.kind)
    index = label_index(branch.labels)
    targets = np.zeros((len(examples), len(index)), dtype=np.float64)
    for row, example in enumerate(examples):
        targets[row, [index[name] for name in target_labels(example.target) if name in index]] = 1.0
    known = usable_rows(branch, examples)
    if not known.any():
        raise DataError(
            f"task {branch.task!r}: none of {len(examples)} rows has a label that the branch knows; at least one is "
            "needed; calibrate on the rows that the task was trained from"
        )
    scores = np.stack([np.asarray(row, dtype=np.float64) for row in logits])[known]
    if branch.kind == "classification":
        return Calibration(
            temperature=_temperature(lambda t: negative_log_likelihood(scores / t, targets[known])),
            abstain_below=branch.calibration.abstain_below,
        )
    temperature = _temperature(lambda t: bernoulli_loss(scores / t, targets[known]))
    shares = probabilities(scores, msgspec.structs.replace(branch, calibration=Calibration(temperature=temperature)))
    thresholds = tuple(_threshold(shares[:, i], targets[known][:, i]) for i in range(len(index)))
    return Calibration(temperature=temperature, thresholds=thresholds)


def negative_log_likelihood(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over rows of the one-hot targets' negative log-probability under a softmax; both (rows, labels)."""
    from scipy.special import log_softmax

    return float(-(log_softmax(scores, axis=1) * targets).sum(axis=1).mean())


def bernoulli_loss(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean binary cross-entropy of sigmoids; both (rows, labels)."""
    return float((np.logaddexp(0.0, scores) - scores * targets).mean())


def _temperature(loss_at: Callable[[float], float]) -> float:
    from scipy.optimize import minimize_scalar

    low, high = np.log(TEMPERATURE_RANGE)
    found = minimize_scalar(lambda x: loss_at(float(np.exp(x))), bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def _threshold(shares: np.ndarray, targets: np.ndarray) -> float:
    if not targets.any():
        return DEFAULT_THRESHOLD
    given = shares[:, None] >= THRESHOLDS[None, :]
    hits = (given & (targets[:, None] > 0)).sum(axis=0)
    f1 = 2 * hits / (given.sum(axis=0) + targets.sum())
    best = np.flatnonzero(np.isclose(f1, f1.max()))
    return float(THRESHOLDS[best[np.argmin(np.abs(THRESHOLDS[best] - DEFAULT_THRESHOLD))]])
