"""What a search may choose between, the most promising first. No torch.

The order is a prior: where the budget does not reach for all, those at the end are not tried, and a tie goes to the
earlier one.
"""

from typing import Literal, TypeAlias

import msgspec

from trunkline.core.specs import Kind, Pooling, Spec
from trunkline.train.spec import Distillation, Hyperparameters, Preset

Stage: TypeAlias = Literal["teacher", "student"]
TEACHER_SHARES = (1 / 3, 5 / 6)
"""The paper tunes 4 to 10 of 12 layers (appendix B); the same shares of any depth."""
RATE_FACTORS = (0.5, 2.0)


class Choice(Spec, frozen=True, kw_only=True):
    """One way to train a teacher or a student.

    Attributes:
        stage: Which of the two.
        exit_layer: Trunk layers below.
        own_layers: Layers that are tuned.
        pooling: Where the head reads.
        epochs: Passes over the rows.
        rate_factor: Times the preset's learning rate.
        init: Where a student starts; a teacher starts in the backbone.
        kd_temperature: T of a student; without effect on a teacher.
        alpha: Share of a student's hard loss; without effect on a teacher.
    """

    stage: Stage
    exit_layer: int
    own_layers: int
    pooling: Pooling
    epochs: int
    rate_factor: float = 1.0
    init: Literal["backbone", "teacher"] = "teacher"
    kd_temperature: float = 2.0
    alpha: float = 0.3

    def tuned(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """The preset's hyperparameters at this choice's rate and epochs."""
        rate = hyperparameters.learning_rate * self.rate_factor
        return msgspec.structs.replace(hyperparameters, learning_rate=rate, epochs=self.epochs)

    def distilled(self, distillation: Distillation) -> Distillation:
        """The preset's distillation with this choice's T and alpha."""
        return msgspec.structs.replace(distillation, kd_temperature=self.kd_temperature, alpha=self.alpha)

    def __str__(self) -> str:
        """As it is printed."""
        said = f"exit {self.exit_layer} + {self.own_layers} own, {self.pooling}, {self.epochs} epochs"
        if self.rate_factor != 1:
            said += f", rate x {self.rate_factor:g}"
        if self.stage == "student":
            said += f", from {self.init}, T {self.kd_temperature:g}, alpha {self.alpha:g}"
        return said


def teacher_layers(n_layers: int) -> range:
    """The numbers L that are searched: the paper's 4 to 10 of 12, as shares of any depth."""
    low, high = (max(1, round(share * n_layers)) for share in TEACHER_SHARES)
    return range(low, max(low, min(high, n_layers - 1)) + 1)


def teacher_choices(n_layers: int, *, poolings: tuple[Pooling, ...], preset: Preset) -> list[Choice]:
    """Teachers, the most promising first: half of the layers, then ever fewer and more; the other pooling; other rates.

    Args:
        n_layers: Of the backbone.
        poolings: Those that are searched, the task's own first.
        preset: Says the epochs.
    """
    middle = n_layers // 2
    order = sorted(teacher_layers(n_layers), key=lambda count: (abs(count - middle), count))

    def choice(count: int, pooling: Pooling, factor: float = 1.0) -> Choice:
        return Choice(
            stage="teacher",
            exit_layer=n_layers - count,
            own_layers=count,
            pooling=pooling,
            epochs=preset.partial.epochs,
            rate_factor=factor,
            init="backbone",
        )

    first = [choice(count, poolings[0]) for count in order]
    others = [choice(count, pooling) for pooling in poolings[1:] for count in order]
    rates = [choice(count, poolings[0], factor) for factor in RATE_FACTORS for count in order]
    # The other pooling at the middle depth says most about pooling; it goes before the rarer depths.
    return [first[0], *others[:1], *first[1:], *rates, *others[1:]]


def student_choices(n_layers: int, *, teacher: Choice, student_layers: tuple[int, ...], preset: Preset) -> list[Choice]:
    """Students of a teacher, shorter than it, the most promising first: at its exit, then deeper, then other settings.

    Args:
        n_layers: Of the backbone.
        teacher: The one that was chosen.
        student_layers: Numbers l that are searched.
        preset: Says epochs, T and alpha.
    """
    counts = sorted((count for count in student_layers if count < teacher.own_layers), reverse=True)
    exits = [teacher.exit_layer, *range(teacher.exit_layer + 1, n_layers + 1), *range(teacher.exit_layer - 1, -1, -1)]

    def choice(exit_layer: int, count: int, **changes: object) -> Choice:
        fields = {
            "exit_layer": exit_layer,
            "own_layers": count,
            "epochs": preset.student.epochs,
            "kd_temperature": preset.distillation.kd_temperature,
            "alpha": preset.distillation.alpha,
        } | changes
        return Choice(stage="student", pooling=teacher.pooling, **fields)  # type: ignore[arg-type]

    fitting = [(e, count) for e in exits for count in counts if e + count <= n_layers]
    at_exit = [choice(e, count) for e, count in fitting if e == teacher.exit_layer]
    if not at_exit:
        return []
    longest = at_exit[0]
    deeper = [choice(e, count) for e, count in fitting if e > teacher.exit_layer]
    variants = [
        choice(longest.exit_layer, longest.own_layers, init="backbone"),
        choice(longest.exit_layer, longest.own_layers, kd_temperature=4.0, alpha=0.0),
        choice(longest.exit_layer, longest.own_layers, rate_factor=2.0),
        choice(longest.exit_layer, longest.own_layers, epochs=2 * preset.student.epochs),
    ]
    shallower = [choice(e, count) for e, count in fitting if e < teacher.exit_layer]
    return [*at_exit, *deeper, *variants, *shallower]


def grid(n_layers: int, *, pooling: Pooling, preset: Preset) -> list[Choice]:
    """The paper's grid of teachers (section 3.1): every L, at the preset's rate."""
    return [c for c in teacher_choices(n_layers, poolings=(pooling,), preset=preset) if c.rate_factor == 1]


def student_grid(n_layers: int, *, teacher: Choice, student_layers: tuple[int, ...], preset: Preset) -> list[Choice]:
    """Every student of a teacher at every exit, at the preset's settings."""
    every = student_choices(n_layers, teacher=teacher, student_layers=student_layers, preset=preset)
    if not every:
        return []
    usual = every[0]
    settings = ("epochs", "init", "rate_factor", "kd_temperature", "alpha")
    return [c for c in every if all(getattr(c, name) == getattr(usual, name) for name in settings)]


def searched_poolings(kind: Kind, own: Pooling) -> tuple[Pooling, ...]:
    """Poolings of a task that a search compares, its own first; tagging has none to choose."""
    if kind == "tagging":
        return (own,)
    return (own, "mean" if own == "cls" else "cls")
