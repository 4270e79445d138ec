"""The training loop: one for full fine-tuning, partial fine-tuning and students.

What differs between them is where a batch comes from (token ids, or cached activations) and which model reads
it; both come in as arguments.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trunkline.core.errors import TrainingError
from trunkline.core.specs import Kind
from trunkline.core.types import Encoded
from trunkline.data.collate import collate, length_batches
from trunkline.model.branch import Branch, FullModel
from trunkline.model.encoder import AttentionBias
from trunkline.model.trunk import Trunk
from trunkline.train.cache import CachedRows
from trunkline.train.losses import distillation_loss, hard_loss, hidden_loss
from trunkline.train.prepare import Split
from trunkline.train.spec import Distillation, EpochPoint, Hyperparameters, RunSpec

EVAL_ROWS = 64
LENGTH_GROUP = 16
"""Batches are cut from length-sorted groups of this many batches: little padding, order still random."""


class Source(Protocol):
    """Where a model's input comes from."""

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, tokens of each row."""

    def inputs(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """The model's arguments for these rows."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedSource:
    """Cached activations, for a `Branch`."""

    rows: CachedRows
    bias: AttentionBias
    device: torch.device

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, tokens of each row."""
        return self.rows.lengths

    def inputs(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Hidden states, additive attention bias and mask."""
        hidden, mask = (tensor.to(self.device) for tensor in self.rows.gather(indices))
        return hidden, self.bias(mask), mask


@dataclass(frozen=True, slots=True, eq=False)
class ComputedSource:
    """States of the frozen trunk that are computed for each batch, because the cache has no room for them.

    Attributes:
        tokens: The rows as token ids.
        kept: Their states at a lower exit; None begins at the token ids.
        kept_exit: Which exit that is.
        trunk: At least `exit_layer` deep.
        exit_layer: Where the branch reads.
    """

    tokens: "TokenSource"
    kept: CachedSource | None
    kept_exit: int
    trunk: Trunk
    exit_layer: int

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, tokens of each row."""
        return self.tokens.lengths

    @torch.no_grad()
    def inputs(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Hidden states, additive attention bias and mask."""
        if self.kept is None:
            token_ids, type_ids, mask = self.tokens.inputs(indices)
            hidden, bias, depth = self.trunk.embeddings(token_ids, type_ids), self.trunk.bias(mask), 0
        else:
            hidden, bias, mask = self.kept.inputs(indices)
            depth = self.kept_exit
        # The frozen part is not rounded, whatever precision the steps have: so it is in the cache.
        with torch.autocast(hidden.device.type, enabled=False):
            for layer in range(depth, self.exit_layer):
                hidden = self.trunk.layers[layer](hidden, bias)
        return hidden, bias, mask


@dataclass(frozen=True, slots=True, eq=False)
class TokenSource:
    """Token ids, for a `FullModel`."""

    rows: Sequence[Encoded]
    pad_id: int
    device: torch.device

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, tokens of each row."""
        return np.array([len(row.token_ids) for row in self.rows], dtype=np.int64)

    def inputs(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Token ids, type ids and mask."""
        batch = collate([self.rows[i] for i in indices], self.pad_id)
        return tuple(torch.from_numpy(a).to(self.device) for a in (batch.token_ids, batch.type_ids, batch.mask))


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What is learned from.

    Attributes:
        kind: Of the task; decides the loss.
        split: The rows and their targets.
        source: Their inputs.
        teacher: For students: the label teacher's logits, one array a row as `predict_logits` gives them.
        features: For students that match hidden states: what the label teacher's head reads, one array a row.
    """

    kind: Kind
    split: Split
    source: Source
    teacher: Sequence[np.ndarray] | None = None
    features: Sequence[np.ndarray] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a run of the loop returns; the model holds the weights of the best epoch."""

    curve: tuple[EpochPoint, ...]
    best_epoch: int

    @property
    def selection_metric(self) -> float:
        """At the best epoch, points."""
        return next(point.selection_metric for point in self.curve if point.epoch == self.best_epoch)


class StepReporter(Protocol):
    """Told of every optimizer step."""

    def step(self, loss: float) -> None:
        """One step is done."""


def at_positions(output: Tensor, split: Split, indices: np.ndarray) -> Tensor:
    """Keep the logits, or what the head reads, of the positions that can have a label.

    Args:
        output: (rows, columns), or (rows, tokens, columns) for tagging.
        split: Whose rows these are.
        indices: (rows,) into the split.

    Returns:
        (positions, columns) float32: the rows themselves, or one line for each word that has a sub-token.
    """
    if split.positions is None:
        return output.float()
    places = [split.positions[i][split.positions[i] >= 0] for i in indices]
    row = np.repeat(np.arange(len(places)), [len(p) for p in places])
    token = np.concatenate(places)
    return output[torch.from_numpy(row), torch.from_numpy(token).long()].float()


def predict_logits(model: nn.Module, source: Source, split: Split) -> list[np.ndarray]:
    """Logits of every row in evaluation mode.

    Returns:
        One array a row, float32: (labels,), or (words with a sub-token, labels) for tagging.
    """
    return _predict(model, lambda inputs: (model(*inputs),), source, split)[0]


def predict_features_and_logits(
    model: Branch | FullModel, source: Source, split: Split
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the head reads of every row, and its logits, from one pass in evaluation mode.

    Returns:
        Features, one float32 array a row: (width,), or (words with a sub-token, width) for tagging; and logits as
        `predict_logits` gives them.
    """
    features, logits = _predict(model, lambda inputs: model.features_and_logits(*inputs), source, split)
    return features, logits


def _predict(
    model: nn.Module, run: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], source: Source, split: Split
) -> list[list[np.ndarray]]:
    """For each output of ``run``, one array a row."""
    was_training = model.training
    model.eval()
    found: dict[int, list[list[np.ndarray]]] = {}
    with torch.inference_mode():
        for indices in length_batches(source.lengths.tolist(), rows_per_batch=EVAL_ROWS):
            outputs = [at_positions(output, split, indices).cpu().numpy() for output in run(source.inputs(indices))]
            by_row = zip(*(_per_row(flat, split, indices) for flat in outputs), strict=True)
            found.update(zip(indices.tolist(), by_row, strict=True))
    model.train(was_training)
    return [list(column) for column in zip(*(found[i] for i in range(len(split))), strict=True)]


def fit(
    model: Branch | FullModel,
    lesson: Lesson,
    *,
    spec: RunSpec,
    score: Callable[[nn.Module], float],
    accelerator: Accelerator,
    reporter: StepReporter,
) -> Fitted:
    """Tune a model and leave it at its best epoch.

    Args:
        model: Every parameter that requires a gradient is tuned.
        lesson: What is learned from.
        spec: Hyperparameters, seed, precision of the steps and, for students, distillation.
        score: The metric on the selection rows, in points; of a run on a subset only its end is measured, because
            there a measurement costs as much as an epoch.
        accelerator: The device.
        reporter: Told of every step.

    Raises:
        TrainingError: The loss or the metric is not a number.
    """
    hyper = spec.hyperparameters
    n_steps = hyper.epochs * math.ceil(len(lesson.split) / hyper.batch_size)
    optimizer = _optimizer(model, hyper)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_and_decay(n_steps, hyper.warmup_share))
    # accelerator.prepare would keep every model of a long session alive, and would wrap `forward` for good, so that
    # metrics and golden answers were rounded to bf16: only the steps below are.
    model.train()
    rng = np.random.default_rng(spec.seed)
    every_epoch = spec.fit_rows is None
    curve = [EpochPoint(epoch=0, train_loss=None, selection_metric=score(model))] if every_epoch else []
    best_epoch, best_metric, best_state = 0, -math.inf, dict[str, Tensor]()
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        for epoch in range(1, hyper.epochs + 1):
            losses = []
            for indices in training_batches(lesson.source.lengths, hyper.batch_size, rng):
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
                    features, output = model.features_and_logits(*lesson.source.inputs(indices))
                loss = _loss(features, output, lesson, indices, distillation=spec.distillation)
                losses.append(_take_step(loss, model, optimizer, accelerator, spec))
                schedule.step()
                reporter.step(losses[-1])
            if not every_epoch and epoch < hyper.epochs:
                continue
            metric = score(model)
            if not math.isfinite(metric):
                raise TrainingError(
                    f"task {spec.task!r}: the metric of a {spec.arm} run is {metric} after epoch {epoch}; "
                    f"lower learning_rate (it is {hyper.learning_rate:g})"
                )
            curve.append(EpochPoint(epoch=epoch, train_loss=float(np.mean(losses)), selection_metric=metric))
            # A tie goes to the later epoch: on a plateau its loss is the lower one.
            if metric >= best_metric:
                best_epoch, best_metric = epoch, metric
                if epoch < hyper.epochs:
                    _keep_state(model, best_state)
    if best_epoch < hyper.epochs:
        model.load_state_dict(best_state)
    model.eval()
    return Fitted(curve=tuple(curve), best_epoch=best_epoch)


def training_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Every row once, in random batches of similar length.

    Args:
        lengths: (rows,) tokens.
        batch_size: Rows a batch; the last one of an epoch may be smaller.
        rng: Decides the order.
    """
    order = rng.permutation(len(lengths))
    group = batch_size * LENGTH_GROUP
    batches = []
    for start in range(0, len(order), group):
        chunk = order[start : start + group]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    for i in rng.permutation(len(batches)):
        yield batches[i]


def _loss(
    features: Tensor, output: Tensor, lesson: Lesson, indices: np.ndarray, *, distillation: Distillation | None
) -> Tensor:
    logits = at_positions(output, lesson.split, indices)
    targets = _stack(lesson.split.targets, lesson.split, indices, logits.device)
    if distillation is None:
        return hard_loss(lesson.kind, logits, targets)
    if lesson.teacher is None:
        raise TrainingError("a student's run has no teacher logits; give those of its label teacher")
    taught = _stack(lesson.teacher, lesson.split, indices, logits.device)
    loss = distillation_loss(lesson.kind, logits, targets, taught, distillation)
    if not distillation.hidden_weight:
        return loss
    if lesson.features is None:
        raise TrainingError("a student's run with hidden_weight has no features to match; give its label teacher's")
    wanted = _stack(lesson.features, lesson.split, indices, logits.device)
    return loss + distillation.hidden_weight * hidden_loss(at_positions(features, lesson.split, indices), wanted)


def _stack(values: Sequence[np.ndarray], split: Split, indices: np.ndarray, device: torch.device) -> Tensor:
    chosen = [values[i] for i in indices]
    joined = np.stack(chosen) if split.positions is None else np.concatenate(chosen)
    return torch.from_numpy(joined).to(device)


def _take_step(
    loss: Tensor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    spec: RunSpec,
) -> float:
    value = float(loss.detach())
    if not np.isfinite(value):
        raise TrainingError(
            f"task {spec.task!r}: the loss of a {spec.arm} run became {value}; "
            f"lower learning_rate (it is {spec.hyperparameters.learning_rate:g})"
        )
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), spec.hyperparameters.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _optimizer(model: nn.Module, hyper: Hyperparameters) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Vectors are biases and norms: no decay, as in Devlin et al. 2019.
            groups.setdefault((name.startswith("head."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": hyper.head_learning_rate if is_head else hyper.learning_rate,
                "weight_decay": hyper.weight_decay if decays else 0.0,
            }
            for (is_head, decays), parameters in groups.items()
        ],
        betas=(hyper.beta1, hyper.beta2),
        eps=hyper.epsilon,
        fused=True,
    )


def _warm_up_and_decay(n_steps: int, warmup_share: float) -> Callable[[int], float]:
    n_warmup = max(1, round(warmup_share * n_steps))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))

    return factor


def _keep_state(model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Copy a model's state over what was kept before, so that there is never a second copy."""
    for name, value in model.state_dict().items():
        kept.setdefault(name, torch.empty_like(value)).copy_(value)


def _per_row(flat: np.ndarray, split: Split, indices: np.ndarray) -> list[np.ndarray]:
    if split.positions is None:
        return list(flat)
    counts = [int((split.positions[i] >= 0).sum()) for i in indices]
    return np.split(flat, np.cumsum(counts)[:-1])
