"""The losses of both stages, over labelled positions: rows or, for tagging, first sub-tokens of words."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trunkline.core.specs import Kind
from trunkline.train.spec import Distillation

PositionLogits = Float[Tensor, "positions labels"]
PositionStates = Float[Tensor, "positions width"]
NO_LABEL = -1
"""Class index of a position without a label; its hard loss is left out."""


def hard_loss(kind: Kind, logits: PositionLogits, targets: Tensor) -> Tensor:
    """Mean loss against labels over the positions that have one; 0 where none has. Arguments as of `hard_losses`."""
    each, known = hard_losses(kind, logits, targets)
    return each.sum() / known.sum().clamp(min=1)


def hard_losses(kind: Kind, logits: PositionLogits, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each position against its label.

    Args:
        kind: Of the task.
        logits: (positions, labels) float32.
        targets: classification and tagging: (positions,) int64, `NO_LABEL` where there is none; multilabel:
            (positions, labels) float32 of 0 and 1, NaN where a row has none; regression: (positions,) float32
            standardized scores, NaN where a row has none.

    Returns:
        (positions,) float32 losses, 0 where a position has no label, and (positions,) bool: which have one.
    """
    if kind in ("classification", "tagging"):
        return F.cross_entropy(logits, targets, ignore_index=NO_LABEL, reduction="none"), targets != NO_LABEL
    if kind == "multilabel":
        known = ~targets[:, 0].isnan()
        each = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none").mean(dim=1)
    else:
        known = ~targets.isnan()
        each = (logits[:, 0] - targets.nan_to_num()) ** 2
    return each * known, known


def soft_loss(kind: Kind, logits: PositionLogits, teacher: PositionLogits, kd_temperature: float) -> Tensor:
    """Mean distance to the teacher's answers (Hinton et al. 2015; design.md, section 3).

    Classification and tagging: ``T² · KL(teacher/T ‖ student/T)``; multilabel: the same with one Bernoulli
    distribution a label, averaged over labels; regression: squared error to the teacher's score.

    Args:
        kind: Of the task.
        logits: (positions, labels) float32, the student's.
        teacher: (positions, labels) float32, constant.
        kd_temperature: T.
    """
    n_positions = max(1, len(logits))  # A batch of texts without a single token that a word begins with has none.
    if kind == "regression":
        return ((logits - teacher) ** 2).sum() / n_positions
    scale = kd_temperature**2
    student_t, teacher_t = logits / kd_temperature, teacher / kd_temperature
    if kind == "multilabel":
        p = torch.sigmoid(teacher_t)
        entropy = F.binary_cross_entropy(p, p, reduction="none")
        cross = F.binary_cross_entropy_with_logits(student_t, p, reduction="none")
        return scale * (cross - entropy).mean(dim=1).sum() / n_positions
    divergence = F.kl_div(
        F.log_softmax(student_t, dim=1), F.log_softmax(teacher_t, dim=1), reduction="sum", log_target=True
    )
    return scale * divergence / n_positions


def hidden_loss(features: PositionStates, teacher: PositionStates) -> Tensor:
    """Mean squared distance to what the teacher's head reads, each normalized to length 1: 0 to 4.

    Normalized as in patient distillation (Sun et al. 2019), so that the weight means the same for every backbone.
    There the first token's states of several layers are matched; here what the head reads, after the last layer.

    Args:
        features: (positions, width) float32, the student's.
        teacher: (positions, width) float32, constant.
    """
    distance = (F.normalize(features, dim=1) - F.normalize(teacher, dim=1)) ** 2
    return distance.sum() / max(1, len(features))


def distillation_loss(
    kind: Kind, logits: PositionLogits, targets: Tensor, teacher: PositionLogits, distillation: Distillation
) -> Tensor:
    """``alpha · hard + (1 − alpha) · soft``, each a mean over all positions.

    Positions without a label have the soft term alone, and so a labelled one weighs the same in every batch.
    """
    alpha = distillation.alpha
    each, _ = hard_losses(kind, logits, targets)
    soft = soft_loss(kind, logits, teacher, distillation.kd_temperature)
    return alpha * each.sum() / max(1, len(logits)) + (1 - alpha) * soft
