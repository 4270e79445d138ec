"""From a task file to arrays that a run can learn from: read, fix the labels, encode, split, digest."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from trunkline.core.errors import DataError
from trunkline.core.specs import DataSpec, Selection, TaskSpec, spec_digest
from trunkline.core.types import Encoded, Example
from trunkline.data.labels import label_index, labels_of, unseen_labels
from trunkline.data.read import read_part
from trunkline.data.split import sample_indices, selection_slice
from trunkline.data.tokenize import Tokenizer, word_positions
from trunkline.train.losses import NO_LABEL


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of one part, encoded.

    Attributes:
        examples: As read.
        rows: As encoded, in the same order.
        positions: Tagging: for each row the index of each word's first sub-token; -1 where it was cut away, -2 where
            it begins inside the token of the word before, whose target then stands for both.
        targets: One array a row: int64 class index (), float32 labels (labels,), float32 standardized score (),
            or int64 tag indices (words that have a position,).
    """

    examples: tuple[Example, ...]
    rows: tuple[Encoded, ...]
    positions: tuple[np.ndarray, ...] | None
    targets: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def labelled(self) -> "Split":
        """Its rows that have a label."""
        kept = [i for i, example in enumerate(self.examples) if example.target is not None]
        return self if len(kept) == len(self) else self.take(kept)

    def take(self, indices: Iterable[int]) -> "Split":
        """Its rows with these indices, in their order."""
        kept = [int(i) for i in indices]
        return Split(
            examples=tuple(self.examples[i] for i in kept),
            rows=tuple(self.rows[i] for i in kept),
            positions=None if self.positions is None else tuple(self.positions[i] for i in kept),
            targets=tuple(self.targets[i] for i in kept),
        )

    def joined(self, other: "Split") -> "Split":
        """Its rows and then those of another split of the same task."""
        positions = None
        if self.positions is not None and other.positions is not None:
            positions = self.positions + other.positions
        return Split(
            examples=self.examples + other.examples,
            rows=self.rows + other.rows,
            positions=positions,
            targets=self.targets + other.targets,
        )

    def digest(self) -> str:
        """SHA-256 (hex) of its inputs: token ids, types, and for tagging the places of the words."""
        digest = hashlib.sha256()
        for i, row in enumerate(self.rows):
            digest.update(row.key())
            if self.positions is not None:
                digest.update(self.positions[i].tobytes())
        return digest.hexdigest()

    def sample(self, n_rows: int | None) -> "Split":
        """A seeded sample in the order of the rows; a larger one contains the smaller ones. None takes all."""
        if n_rows is None or n_rows >= len(self):
            return self
        return self.take(sample_indices(len(self), n_rows))

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64, tokens of each row."""
        return np.array([len(row.token_ids) for row in self.rows], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTask:
    """A task ready to be trained.

    Attributes:
        spec: The task.
        labels: In their fixed order.
        fit: Rows that are learned from.
        selection: Rows that L, epoch and seed are chosen on.
        dev: Rows that are only reported on; None when the task has none.
        score_mean: Regression: mean of the training scores; else 0.
        score_std: Regression: their standard deviation; else 1.
        data_digest: SHA-256 over token ids and targets of all parts.
        n_rows: Of all parts together.
        n_truncated: Rows of all parts that were cut to ``max_length``.
        n_unseen_labels: Dev labels that train lacks.
        transfer: Rows without labels that students learn from besides, by their teacher's answers; no part of
            `data_digest`, because nothing is measured on them. None without a transfer set.
    """

    spec: TaskSpec
    labels: tuple[str, ...]
    fit: Split
    selection: Split
    dev: Split | None
    score_mean: float
    score_std: float
    data_digest: str
    n_rows: int
    n_truncated: int
    n_unseen_labels: int
    transfer: Split | None = None

    @property
    def n_outputs(self) -> int:
        """Width of the logits."""
        return 1 if self.spec.kind == "regression" else len(self.labels)

    @property
    def task_digest(self) -> str:
        """Digest of what the task is, wherever its files lie; where its head reads is a run's choice."""
        return spec_digest(
            msgspec.structs.replace(self.spec, data=DataSpec(), labels=self.labels or None, pooling="cls")
        )


def prepare(task: TaskSpec, tokenizer: Tokenizer, *, selection: Selection) -> PreparedTask:
    """Read and encode a task's train and dev rows.

    Args:
        task: What to read.
        tokenizer: The backbone's.
        selection: ``train_slice`` takes the slice out of train; ``dev`` chooses on dev, as the paper does.

    Raises:
        DataError: A row is wrong, there is no train part, or ``selection="dev"`` without a dev part.
    """
    train = read_part(task, "train")
    dev = read_part(task, "dev") if task.data.dev else None
    n_labelled = sum(example.target is not None for example in train)
    if n_labelled < 2:
        raise DataError(f"task {task.name!r}: train has {n_labelled} labelled rows; give at least 2")
    labels = labels_of(task, train)
    mean, std = _score_scale(task, train)
    encode = _Encoder(task, tokenizer, labels, mean, std)
    if selection == "dev":
        if dev is None:
            raise DataError(f"task {task.name!r}: selection 'dev' needs a dev part; add data.dev to the task file")
        fit_examples, selection_examples = train, dev
    else:
        fit_examples, selection_examples = selection_slice(train)
    fit, chosen = encode.split(fit_examples), encode.split(selection_examples)
    parts = {"fit": fit, "selection": chosen}
    if dev is None:
        reported = None
    else:
        reported = chosen if selection == "dev" else encode.split(dev)
        parts["dev"] = reported
    return PreparedTask(
        spec=task,
        labels=labels,
        fit=fit,
        selection=chosen,
        dev=reported,
        score_mean=mean,
        score_std=std,
        data_digest=_digest(parts, scale=(mean, std)),
        n_rows=sum(len(part) for part in set(parts.values())),
        n_truncated=sum(row.truncated for part in set(parts.values()) for row in part.rows),
        n_unseen_labels=0 if dev is None else sum(unseen_labels(labels, dev).values()),
    )


def encode_unlabelled(task: PreparedTask, tokenizer: Tokenizer, examples: Sequence[Example]) -> Split:
    """Encode further rows of a prepared task, whose targets are left out of every loss against labels.

    Args:
        task: The prepared task.
        tokenizer: The backbone's.
        examples: Rows without targets.
    """
    return _Encoder(task.spec, tokenizer, task.labels, task.score_mean, task.score_std).split(examples)


@dataclass(frozen=True, slots=True)
class _Encoder:
    task: TaskSpec
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    mean: float
    std: float

    def split(self, examples: Sequence[Example]) -> Split:
        rows = tuple(self.tokenizer.encode(examples, max_length=self.task.max_length))
        positions = None
        if self.task.kind == "tagging":
            positions = tuple(
                word_positions(row, example.word_spans or ()) for row, example in zip(rows, examples, strict=True)
            )
        index = label_index(self.labels)
        targets = tuple(
            self._target(example, index, None if positions is None else positions[i])
            for i, example in enumerate(examples)
        )
        return Split(examples=tuple(examples), rows=rows, positions=positions, targets=targets)

    def _target(self, example: Example, index: dict[str, int], positions: np.ndarray | None) -> np.ndarray:
        target = example.target
        if self.task.kind == "regression":
            score = np.nan if target is None else (float(target) - self.mean) / self.std  # type: ignore[arg-type]
            return np.float32(score)  # type: ignore[return-value]
        if self.task.kind == "classification":
            return np.int64(NO_LABEL if target is None else index.get(str(target), NO_LABEL))  # type: ignore[return-value]
        if self.task.kind == "multilabel":
            wanted = np.full(len(self.labels), np.nan if target is None else 0.0, dtype=np.float32)
            if isinstance(target, tuple):
                wanted[[index[name] for name in target if name in index]] = 1.0
            return wanted
        tags = target if isinstance(target, tuple) else ()
        ids = np.array([index.get(tag, NO_LABEL) for tag in tags], dtype=np.int64)
        kept = np.zeros(0, dtype=bool) if positions is None else positions >= 0
        return ids[kept] if len(ids) else np.full(int(kept.sum()), NO_LABEL, dtype=np.int64)


def _score_scale(task: TaskSpec, train: Sequence[Example]) -> tuple[float, float]:
    if task.kind != "regression":
        return 0.0, 1.0
    scores = np.array([example.target for example in train if example.target is not None], dtype=np.float64)
    if len(scores) < 2 or float(scores.std()) == 0.0:
        raise DataError(f"task {task.name!r}: the train scores are all the same; a regression needs scores that differ")
    return float(scores.mean()), float(scores.std())


def _digest(parts: Mapping[str, Split], *, scale: tuple[float, float]) -> str:
    digest = hashlib.sha256()
    if scale != (0.0, 1.0):
        # Standardized scores are the same in every unit; the answers are not.
        digest.update(f"scale {scale}\n".encode())
    for name, part in parts.items():
        digest.update(f"{name} {len(part)}\n".encode())
        for row, example in zip(part.rows, part.examples, strict=True):
            # The target as read: a label that the branch cannot give, or a tag that was cut away, counts in metrics.
            digest.update(row.key())
            digest.update(repr((example.target, example.word_spans)).encode())
    return digest.hexdigest()
