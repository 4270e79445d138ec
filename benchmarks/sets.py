"""A task of a benchmark: a data set beside the checkout, and how it is read."""

from dataclasses import dataclass

from benchmarks.harness import DATA
from trunkline.core.specs import DataSpec, InputForm, Kind, Metric, Pooling, TaskSpec


@dataclass(frozen=True, slots=True)
class Set:
    """One task.

    Attributes:
        name: Of the task.
        rows: Of train, a seeded sample.
        folder: In the data folder; the task's name by default.
        metric: The data set's own.
        kind: What is predicted.
        form: What is read.
        pooling: Where the head reads.
        positive_label: Of a binary F1.
        max_length: Longest row in tokens.
        has_test: Whether the task names test rows too.
    """

    name: str
    rows: int
    folder: str = ""
    metric: Metric = "accuracy"
    kind: Kind = "classification"
    form: InputForm = "text"
    pooling: Pooling = "cls"
    positive_label: str | None = None
    max_length: int = 128
    has_test: bool = False

    def task(self) -> TaskSpec:
        """Its rows lie in ../shared/data."""
        folder = DATA / (self.folder or self.name)
        return TaskSpec(
            name=self.name,
            kind=self.kind,
            input=self.form,
            metric=self.metric,
            positive_label=self.positive_label,
            max_length=self.max_length,
            pooling=self.pooling,
            data=DataSpec(
                train=str(folder / "train.jsonl.gz"),
                dev=str(folder / "dev.jsonl.gz"),
                test=str(folder / "test.jsonl.gz") if self.has_test else None,
                max_train_rows=self.rows,
            ),
        )
