"""How good a bundle's task is on labelled rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from trunkline.bundle.manifest import Manifest, TaskEntry
from trunkline.core.errors import SpecError
from trunkline.core.specs import BranchSpec, Metric, TaskSpec
from trunkline.data.labels import unseen_labels
from trunkline.data.read import Part, read_part
from trunkline.engine.encoding import known_task
from trunkline.engine.engine import Engine
from trunkline.model.score import score_predictions


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A task's result on one part of its data.

    Attributes:
        task: The task's name.
        part: Which part of the data.
        metric: Which metric.
        points: Its value, 0 to 100 (a correlation times 100).
        n_rows: How many rows were judged.
        n_truncated: How many of them were longer than the task's ``max_length``.
        n_unseen_labels: How often a label occurs in them that the branch does not know, and so cannot give.
    """

    task: str
    part: Part
    metric: Metric
    points: float
    n_rows: int
    n_truncated: int
    n_unseen_labels: int


def check_tasks(manifest: Manifest, tasks: Sequence[TaskSpec], part: Part) -> None:
    """Refuse a request of which a task could not be met, before anything is done for the first.

    Raises:
        UnknownNameError: The bundle has no such task.
        SpecError: Kind or input differ between task file and branch, or a task names no such part.
    """
    for task in tasks:
        check_same_task(known_task(task.name, manifest.tasks), task)
        if getattr(task.data, part) is None:
            raise SpecError(f"task {task.name!r}: has no {part} data; name a file under data.{part} in the task file")


def check_same_task(branch: BranchSpec | TaskEntry, task: TaskSpec) -> None:
    """Refuse a task file that speaks of another kind of task than the branch.

    Raises:
        SpecError: Kind or input differ.
    """
    if (task.kind, task.input) != (branch.kind, branch.input):
        raise SpecError(
            f"task {task.name!r}: the task file says {task.kind} of {task.input}; the branch is {branch.kind} of "
            f"{branch.input}; use the task file that the branch was trained from"
        )


def evaluate(engine: Engine, task: TaskSpec, part: Part) -> Evaluation:
    """Judge one task of a bundle by the branch's metric.

    Args:
        engine: An open bundle that has the task.
        task: Where the rows are; its kind and input must be the branch's.
        part: Which part of the data.

    Raises:
        UnknownNameError: The bundle has no such task.
        SpecError: Kind or input differ between task file and branch, or the task names no such part.
        DataError: The data is wrong.
    """
    branch = engine.spec(task.name)
    check_same_task(branch, task)
    examples = read_part(task, part)
    answers, n_truncated = engine.answers_counted(examples, task.name)
    return Evaluation(
        task=task.name,
        part=part,
        metric=branch.metric,
        points=score_predictions(branch, answers, examples),
        n_rows=len(examples),
        n_truncated=n_truncated,
        n_unseen_labels=sum(unseen_labels(branch.labels, examples).values()),
    )
