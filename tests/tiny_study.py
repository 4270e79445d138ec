"""A study of two made-up tasks on a backbone of four layers, and the records of its runs."""

from collections.abc import Sequence
from typing import Any

from tests.tiny_records import run_record, run_spec
from trunkline.model.cost import EncoderSizes
from trunkline.train.spec import Distillation, RunRecord, TrainRequest
from trunkline.train.study import Study

SIZES = EncoderSizes(n_layers=4, width=8, n_heads=2, ffn_width=16)
TASKS = ("mood", "topic")
SEEDS = (0, 1)


def study_of(tasks: Sequence[str] = TASKS, **changes: Any) -> Study:
    """L = 1, 2, 3 (2 and 3 may teach), students of one and two layers, both starts, two seeds."""
    fields: dict[str, Any] = {
        "layers": (1, 2, 3), "seeds": SEEDS, "full": True, "teacher_layers": (2, 3), "student_layers": (1, 2),
        "student_inits": ("teacher", "backbone"),
    }  # fmt: skip
    return Study("tiny", "b" * 64, SIZES, dict.fromkeys(tasks, TrainRequest(**(fields | changes))))


def runs_of(task: str, arm: str, exit_layer: int, own_layers: int, points: float, **changes: Any) -> list[RunRecord]:
    """One record a seed: so many points on dev at seed 0 and two more at seed 1, ten more on the selection rows."""
    preset = TrainRequest(layers=(1,)).preset
    fields: dict[str, Any] = {
        "task": task, "arm": arm, "exit_layer": exit_layer, "own_layers": own_layers,
        "hyperparameters": getattr(preset, arm),
    }  # fmt: skip
    if arm == "student":
        teacher = changes.pop("teacher", None) or teacher_id(task, 4 - exit_layer)
        fields |= {"distillation": Distillation(), "taught_by": "partial", "label_teachers": (teacher,)}
        fields["init_from"] = teacher if changes.get("init") == "teacher" else None
    return [
        run_record(points + 10 + 2 * seed, dev=points + 2 * seed, **(fields | changes | {"seed": seed}))
        for seed in SEEDS
    ]


def teacher_id(task: str, own_layers: int) -> str:
    """The run of `runs_of` that tunes so many layers with seed 0."""
    hyperparameters = TrainRequest(layers=(1,)).preset.for_layers(own_layers)
    return run_spec(
        task=task, arm="partial", exit_layer=4 - own_layers, own_layers=own_layers, hyperparameters=hyperparameters
    ).run_id


def whole_task(task: str, *, best: int = 3) -> list[RunRecord]:
    """Every run of `study_of` for one task, whose best teacher tunes so many layers; full has 80 and 82 points."""
    points = {1: 60.0, 2: 70.0, 3: 70.0} | {best: 79.5}
    runs = runs_of(task, "full", 0, 4, 80.0)
    for count, reached in points.items():
        runs += runs_of(task, "partial", 4 - count, count, reached)
    for count, reached in ((1, 65.0), (2, 75.0)):
        runs += runs_of(task, "student", 4 - best, count, reached, init="teacher")
        runs += runs_of(task, "student", 4 - best, count, reached - 4)
    return runs
