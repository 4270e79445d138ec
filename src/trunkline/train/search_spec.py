"""What a search was asked for, and what it did and found. No torch."""

import math

from trunkline.core.errors import SpecError
from trunkline.core.specs import Selection, Spec
from trunkline.train.choices import Choice
from trunkline.train.spec import PRESETS, CacheDtype, Preset


class SearchRequest(Spec, frozen=True, kw_only=True):
    """What `trunkline search` is asked for, the same for each of its tasks.

    Attributes:
        budget: What the search of one task may cost, in full fine-tunings of that task.
        student_layers: Numbers l of student layers that are searched.
        seeds: The chosen teacher and student are trained once a seed; the trials before them with the first.
        min_gain: A student's own layer must be worth so many points.
        n_students: How many students are trained on all rows, the best of the trials.
        n_proposals: Further trials of each stage that Optuna proposes after the first rung, within the budget.
        exhaustive: Run the paper's whole grid on all rows instead, whatever it costs, to compare with.
        preset: Hyperparameters for each arm.
        selection: Where choices are made.
        cache_dtype: Of the activations that runs learn from.
        storage: Database of the trials; None keeps a journal in the runs folder.
    """

    budget: float = 1.5
    student_layers: tuple[int, ...] = (1, 2, 3)
    seeds: tuple[int, ...] = (0,)
    min_gain: float = 1.0
    n_students: int = 1
    n_proposals: int = 0
    exhaustive: bool = False
    preset: Preset = PRESETS["default"]
    selection: Selection = "train_slice"
    cache_dtype: CacheDtype = "bfloat16"
    storage: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no search can be made of."""
        if not 0 < self.budget < math.inf:
            raise SpecError(f"search: budget is {self.budget}; give how many full fine-tunings it may cost, above 0")
        if not math.isfinite(self.min_gain):
            raise SpecError(f"search: min_gain is {self.min_gain}; give a number of points")
        if not self.seeds or min(self.seeds) < 0:
            raise SpecError(f"search: seeds are {self.seeds}; give whole numbers from 0, at least one")
        if not self.student_layers or min(self.student_layers) < 0:
            raise SpecError(f"search: students are {self.student_layers}; give counts of layers, at least one")
        for option, values in (("--seeds", self.seeds), ("--students", self.student_layers)):
            if len(set(values)) < len(values):
                raise SpecError(f"search: {option} {', '.join(map(str, values))} names one twice; give each once")
        if self.n_students < 1:
            raise SpecError(f"search: n_students is {self.n_students}; give how many are trained out, at least 1")
        if self.n_proposals < 0:
            raise SpecError(f"search: n_proposals is {self.n_proposals}; give 0 for none, or a count")


class Tried(Spec, frozen=True, kw_only=True):
    """One run of a search.

    Attributes:
        choice: What was tried.
        n_rows: Rows learned from; None for all of them.
        seed: Of the run.
        selection_metric: What it reached on the selection rows, points.
        dev_metric: What it reached on dev; None for a trial, which does not look there.
        flops: What it cost, by formula; with activations that had no room in the search's own pass.
        seconds: What it took.
        fate: What became of it, and why.
        run_id: In the ledger.
    """

    choice: Choice
    n_rows: int | None
    seed: int
    selection_metric: float
    dev_metric: float | None
    flops: float
    seconds: float
    fate: str
    run_id: str


class SearchReport(Spec, frozen=True, kw_only=True):
    """What the search of one task did and found.

    Attributes:
        task: The task's name.
        exhaustive: Whether it was the whole grid.
        budget: In full fine-tunings.
        full_flops: One full fine-tuning: the preset's epochs at one rate, its measurements included.
        spent_flops: Everything: activations, trials, teachers' answers, measurements, the final runs.
        trunk_flops: The part of it that activations are.
        seconds: Of all runs and activations, wall time: of runs as the ledger has them, of activations only
            what was computed now.
        tried: Every run, in order.
        not_tried: Choices that the budget did not reach for.
        not_compared: Choices that were passed over because a part of so few rows says nothing.
        teacher: The chosen teacher.
        winner: What is worth most: a student, or the teacher itself.
    """

    task: str
    exhaustive: bool
    budget: float
    full_flops: float
    spent_flops: float
    trunk_flops: float
    seconds: float
    tried: tuple[Tried, ...]
    not_tried: tuple[Choice, ...]
    teacher: Choice
    winner: Choice
    not_compared: tuple[Choice, ...] = ()

    @property
    def cost(self) -> float:
        """What was spent, in full fine-tunings."""
        return self.spent_flops / self.full_flops
