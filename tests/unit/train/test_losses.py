"""Losses against plain formulas in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from trunkline.core.specs import Kind
from trunkline.train.losses import NO_LABEL, distillation_loss, hard_loss, soft_loss
from trunkline.train.spec import Distillation

KINDS: tuple[Kind, ...] = ("classification", "multilabel", "regression", "tagging")
LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 2.0]])
TEACHER = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -3.0], [0.5, -0.5, 0.0]])
NAN = math.nan

logit_tables = npst.arrays(np.float32, (4, 3), elements=st.floats(-20, 20, width=32))
temperatures = st.floats(0.25, 8.0)


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean over rows of KL(teacher ‖ student)."""
    p, q = log_softmax(teacher.astype(np.float64)), log_softmax(student.astype(np.float64))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def bernoulli_kl(teacher: np.ndarray, student: np.ndarray) -> float:
    t, s = (torch.from_numpy(values).double() for values in (teacher, student))
    log_p, log_not_p = torch.nn.functional.logsigmoid(t), torch.nn.functional.logsigmoid(-t)
    log_q, log_not_q = torch.nn.functional.logsigmoid(s), torch.nn.functional.logsigmoid(-s)
    each = log_p.exp() * (log_p - log_q) + log_not_p.exp() * (log_not_p - log_not_q)
    return float(each.mean())


def test_cross_entropy_is_the_mean_over_labelled_positions() -> None:
    targets = torch.tensor([0, NO_LABEL, 2])
    expected = -log_softmax(LOGITS.numpy())[[0, 2], [0, 2]].mean()
    assert hard_loss("classification", LOGITS, targets).item() == pytest.approx(expected, rel=1e-6)
    assert hard_loss("tagging", LOGITS, targets).item() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_is_the_mean_over_labels_of_labelled_rows() -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0], [NAN, NAN, NAN], [0.0, 0.0, 0.0]])
    p = 1 / (1 + np.exp(-LOGITS.numpy()[[0, 2]]))
    y = targets.numpy()[[0, 2]]
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert hard_loss("multilabel", LOGITS, targets).item() == pytest.approx(expected, rel=1e-6)


def test_squared_error_is_the_mean_over_labelled_rows() -> None:
    targets = torch.tensor([2.0, NAN, 0.0])
    assert hard_loss("regression", LOGITS[:, :1], targets).item() == pytest.approx((1.0 + 4.0) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_has_no_hard_loss_and_a_gradient_of_zero(kind: Kind) -> None:
    logits = (LOGITS[:, :1] if kind == "regression" else LOGITS).clone().requires_grad_()
    targets = {
        "multilabel": torch.full((3, 3), NAN),
        "regression": torch.full((3,), NAN),
    }.get(kind, torch.full((3,), NO_LABEL))
    loss = hard_loss(kind, logits, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@given(teacher=logit_tables, student=logit_tables, kd_temperature=temperatures)
def test_the_soft_loss_is_the_tempered_divergence_times_its_temperature_squared(
    teacher: np.ndarray, student: np.ndarray, kd_temperature: float
) -> None:
    expected = kd_temperature**2 * kl(teacher / kd_temperature, student / kd_temperature)
    found = soft_loss("classification", torch.from_numpy(student), torch.from_numpy(teacher), kd_temperature)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(teacher=logit_tables, student=logit_tables, kd_temperature=temperatures)
def test_multilabel_divergence_is_one_bernoulli_distribution_a_label(
    teacher: np.ndarray, student: np.ndarray, kd_temperature: float
) -> None:
    expected = kd_temperature**2 * bernoulli_kl(teacher / kd_temperature, student / kd_temperature)
    found = soft_loss("multilabel", torch.from_numpy(student), torch.from_numpy(teacher), kd_temperature)
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(teacher=logit_tables)
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_answers_as_its_teacher_has_no_soft_loss(kind: Kind, teacher: np.ndarray) -> None:
    logits = torch.from_numpy(teacher[:, :1] if kind == "regression" else teacher)
    assert soft_loss(kind, logits, logits, 2.0).item() == pytest.approx(0.0, abs=1e-4)


def test_the_gradient_keeps_its_size_whatever_the_temperature() -> None:
    # Hinton et al. 2015, section 2.1: this is what the factor T² is for.
    sizes = []
    for kd_temperature in (50.0, 100.0):
        logits = LOGITS.clone().requires_grad_()
        soft_loss("classification", logits, TEACHER, kd_temperature).backward()
        assert logits.grad is not None
        sizes.append(logits.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_regression_learns_the_teachers_score() -> None:
    found = soft_loss("regression", LOGITS[:, :1], TEACHER[:, :1], 3.0)
    assert found.item() == pytest.approx((1.0 + 1.0 + 1.5**2) / 3)


def test_alpha_is_the_share_of_the_hard_loss() -> None:
    targets = torch.tensor([0, 1, 2])
    hard = hard_loss("classification", LOGITS, targets).item()
    soft = soft_loss("classification", LOGITS, TEACHER, 2.0).item()
    found = distillation_loss("classification", LOGITS, targets, TEACHER, Distillation(kd_temperature=2.0, alpha=0.3))
    assert found.item() == pytest.approx(0.3 * hard + 0.7 * soft)


def test_rows_without_a_label_learn_from_the_teacher_alone() -> None:
    logits = LOGITS.clone().requires_grad_()
    targets = torch.tensor([0, NO_LABEL, NO_LABEL])
    distillation_loss("classification", logits, targets, TEACHER, Distillation(alpha=0.5)).backward()
    soft_only = LOGITS.clone().requires_grad_()
    soft_loss("classification", soft_only, TEACHER, 2.0).backward()
    assert logits.grad is not None
    assert soft_only.grad is not None
    torch.testing.assert_close(logits.grad[1:], 0.5 * soft_only.grad[1:])
    assert not torch.allclose(logits.grad[0], 0.5 * soft_only.grad[0])


def test_a_labelled_row_weighs_the_same_whether_its_batch_mates_have_labels_or_not() -> None:
    def gradient(targets: list[int]) -> torch.Tensor:
        logits = LOGITS.clone().requires_grad_()
        distillation_loss("classification", logits, torch.tensor(targets), TEACHER, Distillation(alpha=0.5)).backward()
        assert logits.grad is not None
        return logits.grad[0]

    torch.testing.assert_close(gradient([0, NO_LABEL, NO_LABEL]), gradient([0, 1, 2]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_positions_has_a_loss_of_zero(kind: Kind) -> None:
    logits = torch.zeros(0, 1 if kind == "regression" else 3, requires_grad=True)
    targets = {"multilabel": torch.zeros(0, 3), "regression": torch.zeros(0)}.get(kind, torch.zeros(0).long())
    loss = distillation_loss(kind, logits, targets, torch.zeros_like(logits), Distillation())
    loss.backward()
    assert loss.item() == 0.0
