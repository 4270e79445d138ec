"""What a training run was asked to do, and what came of it."""

import math
from typing import Literal, TypeAlias

import msgspec

from trunkline.core.errors import SpecError, UnknownNameError, nearest_hint
from trunkline.core.specs import Metric, Pooling, Selection, Spec, spec_digest
from trunkline.model.cost import EncoderSizes

Arm: TypeAlias = Literal["full", "partial", "student"]
Init: TypeAlias = Literal["backbone", "teacher", "branch"]
TeacherKind: TypeAlias = Literal["partial", "ensemble", "full"]
Precision: TypeAlias = Literal["fp32", "bf16"]
CacheDtype: TypeAlias = Literal["bfloat16", "float32"]


class Hyperparameters(Spec, frozen=True, kw_only=True):
    """How the weights are tuned; AdamW with linear warm-up and decay.

    Attributes:
        learning_rate: Peak rate of the layers (and embeddings, in full fine-tuning).
        head_learning_rate: Peak rate of the head.
        batch_size: Rows a step.
        epochs: Passes over the training rows.
        weight_decay: Decoupled decay; biases and norms are spared.
        beta1: Adam's first moment decay.
        beta2: Adam's second moment decay.
        epsilon: Adam's epsilon.
        warmup_share: Share of all steps in which the rate rises.
        max_grad_norm: Gradients are scaled down to this norm.
    """

    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    batch_size: int = 32
    epochs: int = 3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    warmup_share: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        """Refuse counts and rates that cannot train anything."""
        for name in ("learning_rate", "head_learning_rate", "epsilon", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise SpecError(f"hyperparameters: {name} is {getattr(self, name)}; give a number above 0")
        for name in ("warmup_share", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SpecError(f"hyperparameters: {name} is {getattr(self, name)}; give 0 or more, and less than 1")
        if not self.weight_decay >= 0:
            raise SpecError(f"hyperparameters: weight_decay is {self.weight_decay}; give 0 or more")
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise SpecError(f"hyperparameters: {name} is {getattr(self, name)}; give a count of at least 1")


class Distillation(Spec, frozen=True, kw_only=True):
    """How a student learns from its teacher (Hinton et al. 2015; paper section 3.2).

    Attributes:
        kd_temperature: T; both distributions are softened by it.
        alpha: Share of the hard loss; 1 − alpha goes to the soft one.
        hidden_weight: Weight of the squared distance between what the student's head reads and what its teacher's
            head reads, each normalized to length 1; 0 leaves it out.
    """

    kd_temperature: float = 2.0
    alpha: float = 0.3
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a temperature or share out of range."""
        if not self.kd_temperature > 0:
            raise SpecError(f"distillation: kd_temperature is {self.kd_temperature}; give a number above 0")
        if not 0 <= self.alpha <= 1:
            raise SpecError(f"distillation: alpha {self.alpha} is outside 0..1")
        if not 0 <= self.hidden_weight < math.inf:
            raise SpecError(f"distillation: hidden_weight is {self.hidden_weight}; give 0 or a number above it")


class Preset(Spec, frozen=True, kw_only=True):
    """Hyperparameters for each arm.

    Attributes:
        full: Of full fine-tuning.
        partial: Of partial fine-tuning.
        student: Of students.
        distillation: How students learn.
        partial_layers: The rate of ``partial`` holds up to so many tuned layers and falls in proportion above, because
            more layers that move together need smaller steps; None: one rate for all.
    """

    full: Hyperparameters
    partial: Hyperparameters
    student: Hyperparameters
    distillation: Distillation
    partial_layers: int | None = None

    def for_layers(self, n_tuned: int) -> Hyperparameters:
        """Of partial fine-tuning of so many layers."""
        if self.partial_layers is None or n_tuned <= self.partial_layers:
            return self.partial
        rate = self.partial.learning_rate * self.partial_layers / n_tuned
        return msgspec.structs.replace(self.partial, learning_rate=rate)


_PAPER = Hyperparameters(learning_rate=2e-5, head_learning_rate=2e-5)

NARROW = 512
"""Encoders up to this width take the rates of ``default``, wider ones those of ``wide``."""

PRESETS: dict[str, Preset] = {
    # Rates measured with MiniLM (width 384) on subsets of 1,000 to 3,000 rows: docs/explanation/training.md.
    "default": Preset(
        full=Hyperparameters(learning_rate=2e-4),
        partial=Hyperparameters(learning_rate=5e-4),
        student=Hyperparameters(learning_rate=5e-4, epochs=4),
        distillation=Distillation(),
        partial_layers=4,
    ),
    # The same for encoders of the width of BERT-base and above: NARROW.
    "wide": Preset(
        full=Hyperparameters(learning_rate=5e-5),
        partial=Hyperparameters(learning_rate=2e-4),
        student=Hyperparameters(learning_rate=2e-4, epochs=4),
        distillation=Distillation(),
        partial_layers=4,
    ),
    # The paper's table 4; it names one rate for everything. Section 3.2 leaves T and alpha open: Hinton et al. 2015.
    "paper": Preset(full=_PAPER, partial=_PAPER, student=_PAPER, distillation=Distillation()),
}


def preset(name: str, *, width: int | None = None) -> Preset:
    """Look up a preset.

    Args:
        name: One of `PRESETS`.
        width: Of the backbone; ``default`` is ``wide`` for wide ones. None takes the name as it is.

    Raises:
        UnknownNameError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"preset {name!r} is not known; {nearest_hint(name, PRESETS)}")
    if name == "default" and width is not None and width > NARROW:
        name = "wide"
    return PRESETS[name]


class RunSpec(Spec, frozen=True, kw_only=True, omit_defaults=True):
    """One run, wholly described: two runs with equal specs are the same run.

    A field with a default says that an option was not used; it is neither written nor digested then, so that an
    option which is added later leaves the ids of older runs as they are (decision 0011).

    Attributes:
        task: The task's name.
        task_digest: Digest of the task's spec without its file paths, and of its labels.
        data_digest: Digest of the token ids and targets that the run learns from and is reported on.
        backbone_digest: The last value of the backbone's trunk chain.
        arm: What is tuned: everything, the top layers, or a student.
        exit_layer: Trunk layers below the branch; 0 and all layers own for ``full``.
        own_layers: Layers that are tuned.
        pooling: Where the head reads.
        seed: Of the head's start, the order of rows and dropout.
        hyperparameters: How the weights are tuned.
        selection: Where the best epoch is chosen.
        cache_dtype: Of the cached activations learned from.
        precision: Of the multiplications in training.
        hidden_dropout: Share of hidden values dropped; of the backbone's config, which the trunk's digest leaves out.
        attention_dropout: Share of attention weights dropped; likewise.
        fit_rows: Learn from so many rows of the fit part, a seeded sample; None for all of them.
        distillation: For students.
        taught_by: For students: what kind of teacher gave the logits.
        label_teachers: For students: ids of the runs whose logits are learned; of several, their mean.
        transfer: For students: digest of further rows, without labels, that the teacher answers.
        init: Where the layers start: in the backbone, in a teacher, or in another branch (warm start).
        init_from: Id of the run that gave that teacher or branch.
    """

    task: str
    task_digest: str
    data_digest: str
    backbone_digest: str
    arm: Arm
    exit_layer: int
    own_layers: int
    pooling: Pooling
    seed: int
    hyperparameters: Hyperparameters
    selection: Selection
    cache_dtype: CacheDtype
    precision: Precision
    hidden_dropout: float
    attention_dropout: float
    fit_rows: int | None = None
    distillation: Distillation | None = None
    taught_by: TeacherKind | None = None
    label_teachers: tuple[str, ...] = ()
    transfer: str | None = None
    init: Init = "backbone"
    init_from: str | None = None

    @property
    def variant(self) -> tuple[str, str, str]:
        """Labels, rows and selection: metrics of runs that differ in one of them cannot be compared."""
        return self.task_digest, self.data_digest, self.selection

    @property
    def run_id(self) -> str:
        """Twenty hex digits of the spec's digest; says nothing by itself, the ledger does."""
        return spec_digest(self)[:20]


class EpochPoint(Spec, frozen=True, kw_only=True):
    """The state after one epoch; epoch 0 is before the first step."""

    epoch: int
    train_loss: float | None
    selection_metric: float


class RunRecord(Spec, frozen=True, kw_only=True):
    """What came of a run: one line of the ledger.

    Attributes:
        run_id: The spec's id.
        spec: What was asked.
        backbone: Its name, as the user gave it.
        sizes: Of the backbone.
        metric: The task's metric; all metrics are points, 0 to 100.
        curve: One point an epoch.
        best_epoch: The epoch whose weights were kept.
        selection_metric: At the best epoch, on the selection rows, from unrounded states.
        dev_metric: At the best epoch, on dev, from unrounded states; None without dev rows.
        n_train_rows: Rows learned from; rows without a label are a student's alone.
        mean_tokens: Of the rows learned from.
        n_truncated: Rows of all parts that were cut to ``max_length``.
        n_unseen_labels: Dev labels that train lacks, counted as errors.
        seconds: Wall time of the run, activations not included.
        cache_seconds: Wall time spent on activations that were not cached yet.
        flops: Floating-point operations of the run by formula (`trunkline.model.cost`): its steps, a backward pass
            counted as two forward ones, and its measurements.
        cache_flops: Those spent on activations that were not cached yet.
        finished_at: UTC, ISO 8601.
        branch_digest: Digest of the saved branch; None for ``full``.
        trunkline_version: The version that ran.
    """

    run_id: str
    spec: RunSpec
    backbone: str
    sizes: EncoderSizes
    metric: Metric
    curve: tuple[EpochPoint, ...]
    best_epoch: int
    selection_metric: float
    dev_metric: float | None
    n_train_rows: int
    mean_tokens: float
    n_truncated: int
    n_unseen_labels: int
    seconds: float
    cache_seconds: float
    flops: float
    cache_flops: float
    finished_at: str
    branch_digest: str | None
    trunkline_version: str


class TrainRequest(Spec, frozen=True, kw_only=True):
    """What `trunkline train` is asked for, the same for each of its tasks.

    Attributes:
        layers: Numbers L of top layers to tune (paper section 3.1).
        seeds: Each arm is run once a seed.
        full: Whether full fine-tuning is run too, as a baseline.
        teacher_layers: Numbers L, among those tuned, that may teach students; None for all of them.
        student_layers: Numbers l of student layers (paper section 3.2); empty for none.
        student_exits: Where students read; None for the teacher's exit.
        student_inits: Where students start.
        label_teacher: Whose logits students learn: the best partial fine-tuning, all its seeds together, or the best
            full fine-tuning.
        init_layers: Students start in the best seed with so many tuned layers; None for the best partial one.
        transfer: File (or Hub name) of rows without labels that students learn from besides.
        augment: So many more rows without labels are made of each row to learn from, for students.
        init_from: Folder of a branch that partial fine-tuning starts in; None for the backbone.
        preset: Hyperparameters for each arm.
        selection: Where L, epoch and seed are chosen.
        cache_dtype: Of the activations that runs learn from.
    """

    layers: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    full: bool = False
    teacher_layers: tuple[int, ...] | None = None
    student_layers: tuple[int, ...] = (1, 2, 3)
    student_exits: tuple[int, ...] | None = None
    student_inits: tuple[Literal["backbone", "teacher"], ...] = ("teacher",)
    label_teacher: TeacherKind = "partial"
    init_layers: int | None = None
    transfer: str | None = None
    augment: int = 0
    init_from: str | None = None
    preset: Preset = PRESETS["default"]
    selection: Selection = "train_slice"
    cache_dtype: CacheDtype = "bfloat16"


def teachers_of(request: TrainRequest) -> tuple[int, ...]:
    """Numbers L of tuned layers that may teach students."""
    return request.layers if request.teacher_layers is None else request.teacher_layers
