"""Temperature and thresholds, fitted on rows that the weights were not tuned on."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_bundles import backbone_of, branch_spec
from trunkline.core.errors import DataError
from trunkline.core.specs import BranchSpec, Calibration
from trunkline.core.types import Example, Target
from trunkline.model.calibration import THRESHOLDS, bernoulli_loss, fit_calibration, negative_log_likelihood

INTENT = branch_spec("intent", backbone_of())
TOPICS = branch_spec("topics", backbone_of())


def rows(targets: list[Target | None]) -> list[Example]:
    return [Example(text="t", target=target) for target in targets]


def drawn(branch: BranchSpec, temperature: float, seed: int = 0) -> tuple[list[np.ndarray], list[Example]]:
    """Logits whose labels were drawn at a temperature, which is what the fit should find."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (3000, len(branch.labels))).astype(np.float32)
    if branch.kind == "multilabel":
        given_ones = rng.random(logits.shape) < 1 / (1 + np.exp(-logits / temperature))
        targets: list[Target | None] = [tuple(np.array(branch.labels)[row].tolist()) for row in given_ones]
        return list(logits), rows(targets)
    noise = rng.gumbel(size=logits.shape)
    return list(logits), rows([branch.labels[i] for i in (logits / temperature + noise).argmax(axis=1)])


@pytest.mark.parametrize("branch", [INTENT, TOPICS], ids=["classification", "multilabel"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_at_is_found(branch: BranchSpec, temperature: float) -> None:
    logits, examples = drawn(branch, temperature)
    assert fit_calibration(branch, logits, examples).temperature == pytest.approx(temperature, rel=0.1)


@given(seed=st.integers(0, 1000), n_rows=st.integers(1, 30))
def test_the_fitted_temperature_is_never_worse_than_1(seed: int, n_rows: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n_rows, 3))
    labels = rng.integers(0, 3, n_rows)
    fitted = fit_calibration(INTENT, list(logits), rows([INTENT.labels[i] for i in labels]))
    targets = np.eye(3)[labels]
    before, after = (negative_log_likelihood(logits / t, targets) for t in (1.0, fitted.temperature))
    assert after <= before + 1e-6


def f1(given_ones: np.ndarray, wanted: np.ndarray) -> float:
    return float(2 * (given_ones & wanted).sum() / max(1, given_ones.sum() + wanted.sum()))


@given(seed=st.integers(0, 1000))
def test_a_threshold_has_the_best_f1_of_its_label(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (40, 3))
    wanted = rng.random((40, 3)) < 0.4
    examples = rows([tuple(np.array(TOPICS.labels)[row].tolist()) for row in wanted])
    fitted = fit_calibration(TOPICS, list(logits), examples)
    assert fitted.thresholds is not None
    probabilities = 1 / (1 + np.exp(-logits / fitted.temperature))
    for i, threshold in enumerate(fitted.thresholds):
        reached = f1(probabilities[:, i] >= threshold, wanted[:, i])
        assert reached == pytest.approx(max(f1(probabilities[:, i] >= t, wanted[:, i]) for t in THRESHOLDS))


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken() -> None:
    logits = [np.array([9.0, -9.0, 9.0]), np.array([-9.0, 9.0, -9.0])]
    fitted = fit_calibration(TOPICS, logits, rows([("food", "travel"), ("news",)]))
    assert fitted.thresholds == (0.5, 0.5, 0.5)


def test_a_label_that_no_row_has_keeps_a_half() -> None:
    logits, examples = drawn(TOPICS, 1.0)
    without = rows([tuple(name for name in row.target if name != "news") for row in examples])  # type: ignore[union-attr, misc]
    fitted = fit_calibration(TOPICS, logits, without)
    assert fitted.thresholds is not None
    assert fitted.thresholds[1] == 0.5


def test_abstention_is_kept() -> None:
    branch = msgspec.structs.replace(INTENT, calibration=Calibration(abstain_below=0.7))
    logits, examples = drawn(INTENT, 1.0)
    assert fit_calibration(branch, logits, examples).abstain_below == 0.7


def test_rows_with_labels_that_the_branch_lacks_are_left_out() -> None:
    logits, examples = drawn(INTENT, 2.0)
    strange = [np.array([50.0, 0.0, 0.0])] * 50
    with_strange = fit_calibration(INTENT, [*logits, *strange], [*examples, *rows(["unheard"] * 50)])
    assert with_strange == fit_calibration(INTENT, logits, examples)


def test_a_row_without_a_target_is_no_row_without_labels() -> None:
    logits, examples = drawn(TOPICS, 2.0)
    unlabelled = [np.array([50.0, 50.0, 50.0])] * 50
    with_unlabelled = fit_calibration(TOPICS, [*logits, *unlabelled], [*examples, *rows([None] * 50)])
    assert with_unlabelled == fit_calibration(TOPICS, logits, examples)
    without_labels = fit_calibration(TOPICS, [*logits, *unlabelled], [*examples, *rows([()] * 50)])
    assert without_labels != with_unlabelled


def test_rows_without_any_target_are_refused() -> None:
    with pytest.raises(DataError, match="none of 2 rows has a label that the branch knows; at least one is needed"):
        fit_calibration(TOPICS, [np.zeros(3)] * 2, rows([None, None]))


def test_extreme_logits_are_calibrated_without_a_warning() -> None:
    logits = [np.array([-1e4, 1e4, -1e4]), np.array([1e4, -1e4, 1e4])]
    fitted = fit_calibration(TOPICS, logits, rows([("news",), ("food", "travel")]))
    assert fitted.thresholds == (0.5, 0.5, 0.5)


def test_rows_without_any_known_label_are_refused() -> None:
    with pytest.raises(DataError, match="none of 2 rows has a label that the branch knows"):
        fit_calibration(INTENT, [np.zeros(3)] * 2, rows(["unheard", None]))


@pytest.mark.parametrize("task", ["urgency", "slots"])
def test_kinds_without_probabilities_are_refused(task: str) -> None:
    with pytest.raises(DataError, match="no probabilities to calibrate"):
        fit_calibration(branch_spec(task, backbone_of()), [np.zeros(3)], rows([None]))


def test_losses_are_the_textbook_ones() -> None:
    scores, targets = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]])
    assert negative_log_likelihood(scores, targets) == pytest.approx(np.log(2))
    assert bernoulli_loss(scores, targets) == pytest.approx(np.log(2))
    assert bernoulli_loss(np.array([[1000.0, -1000.0]]), targets) == 0.0
