"""Frozen descriptions: what a task is, what a branch is, what a run was asked to do.

All of them are msgspec structs: validated when decoded, unknown keys refused, written as JSON or YAML.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from trunkline.core.errors import SpecError, spec_error
from trunkline.core.yaml import read_yaml

Kind: TypeAlias = Literal["classification", "multilabel", "regression", "tagging"]
InputForm: TypeAlias = Literal["text", "pair"]
Pooling: TypeAlias = Literal["cls", "mean"]
Metric: TypeAlias = Literal[
    "accuracy", "f1_binary", "f1_macro", "f1_micro", "matthews", "pearson", "spearman", "span_f1"
]
Selection: TypeAlias = Literal["train_slice", "dev"]

DEFAULT_METRIC: dict[Kind, Metric] = {
    "classification": "accuracy",
    "multilabel": "f1_micro",
    "regression": "pearson",
    "tagging": "span_f1",
}
METRICS_OF_KIND: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1_binary", "f1_macro", "f1_micro", "matthews"),
    "multilabel": ("f1_micro", "f1_macro"),
    "regression": ("pearson", "spearman"),
    "tagging": ("span_f1",),
}
SHORTEST, LONGEST = 8, 8192  # Of `max_length`, in tokens.
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
OUTSIDE = "O"
"""The tag of a word outside all entities."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all specs: frozen, keyword-only, unknown keys refused."""


class DataSpec(Spec, frozen=True, kw_only=True):
    """Where a task's rows are.

    Each part is a path relative to the task file or to ``~`` (JSONL, CSV, TSV or Parquet, ``.gz`` allowed) or
    ``hub:NAME[/CONFIG]:SPLIT`` for a data set of the Hugging Face Hub, read through `datasets`.

    Attributes:
        train: Rows to learn from.
        dev: Rows only reported on.
        test: Rows evaluated on request.
        max_train_rows: Train on a seeded sample of this many rows, at least 1; None for all.
    """

    train: str | None = None
    dev: str | None = None
    test: str | None = None
    max_train_rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse parts without a name and samples without rows."""
        for part in ("train", "dev", "test"):
            name = getattr(self, part)
            if name is not None and not name.strip():
                raise SpecError(
                    f"data: {part} is {name!r}; a part is a path or hub:NAME:SPLIT; name it or leave it out"
                )
        if self.max_train_rows is not None and self.max_train_rows < 1:
            raise SpecError(
                f"data: max_train_rows {self.max_train_rows} is not allowed; choose 1 or more, or leave it out"
            )


class Columns(Spec, frozen=True, kw_only=True):
    """What the columns of the data files are called."""

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"
    labels: str = "labels"
    tokens: str = "tokens"
    tags: str = "tags"


class TaskSpec(Spec, frozen=True, kw_only=True):
    """One task, as its YAML file states it (design.md, section 3).

    Attributes:
        name: Lower-case letters, digits, ``-`` and ``_``; at most 64.
        kind: What is predicted.
        input: A single text or a pair.
        data: Where the rows are.
        columns: Column names, where they differ from the default.
        labels: Labels in their fixed order (tagging: tags, or the entity types), each once and without white space
            around it; None reads them from train.
        metric: What is optimized and reported; None takes the kind's default.
        positive_label: Classification: the class that ``f1_binary`` is about.
        max_length: Longest row in tokens, 8 to 8192; longer texts are cut, counted and reported.
        pooling: Where the head of a sentence task reads; ignored by tagging.
        label_schema_version: Raised by its owner when the labels' meaning changes; clients see it.
    """

    name: str
    kind: Kind
    input: InputForm = "text"
    data: DataSpec = DataSpec()
    columns: Columns = Columns()
    labels: tuple[str, ...] | None = None
    metric: Metric | None = None
    positive_label: str | None = None
    max_length: int = 128
    pooling: Pooling = "cls"
    label_schema_version: int = 1

    def __post_init__(self) -> None:
        """Refuse what the types alone do not: names, and what does not fit the kind."""
        if not TASK_NAME.fullmatch(self.name):
            raise SpecError(
                f"task {self.name!r}: the name is not allowed; use 1 to 64 of a-z, 0-9, '-' and '_', "
                "beginning with a letter or digit"
            )
        subject = f"task {self.name!r}"
        if self.metric is not None:
            _check_metric(self.metric, self.kind, subject)
        _check_positive_label(self.metric, self.positive_label, kind=self.kind, subject=subject)
        if self.kind == "regression" and self.labels is not None:
            raise SpecError(f"{subject}: a regression task has no labels; remove the key")
        if self.labels is not None:
            _check_labels(self.labels, subject)
        if self.kind == "tagging" and self.input == "pair":
            raise SpecError(f"{subject}: tagging takes single texts; set input: text")
        if not SHORTEST <= self.max_length <= LONGEST:
            raise SpecError(
                f"{subject}: max_length {self.max_length} is outside {SHORTEST}..{LONGEST} tokens; choose one inside"
            )
        for column in self.columns_read:
            if self.columns_read.count(column) > 1:
                raise SpecError(f"{subject}: columns gives {column!r} two meanings; name a column for each")

    @property
    def metric_name(self) -> Metric:
        """The metric in force."""
        return self.metric or DEFAULT_METRIC[self.kind]

    @property
    def columns_read(self) -> tuple[str, ...]:
        """The columns of the data files that this kind of task reads; every row has them."""
        columns = self.columns
        if self.kind == "tagging":
            return columns.tokens, columns.tags
        label = columns.labels if self.kind == "multilabel" else columns.label
        return (columns.text, columns.text_pair, label) if self.input == "pair" else (columns.text, label)


class Calibration(Spec, frozen=True, kw_only=True):
    """How logits become probabilities and decisions; belongs to the branch.

    Attributes:
        temperature: Logits are divided by it (Guo et al. 2017); finite and above 0. This is not the ``kd_temperature``.
        thresholds: Multi-label: one for each label, in order, 0 to 1; None means 0.5.
        abstain_below: Classification: confidence, 0 to 1, under which no label is given; None never abstains.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that no probability can come from."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise SpecError(f"calibration: temperature is {self.temperature}; give a finite number above 0")
        for share in self.thresholds or ():
            if not 0 <= share <= 1:
                raise SpecError(f"calibration: threshold {share} is outside 0..1; give probabilities")
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise SpecError(f"calibration: abstain_below {self.abstain_below} is outside 0..1; give a probability")


class Provenance(Spec, frozen=True, kw_only=True):
    """Where a branch comes from; facts for people and the model card, never read by the engine."""

    trunkline_version: str
    created_at: str
    backbone: str
    run_id: str
    seed: int
    train_rows: int
    train_digest: str
    selection_metric: float
    dev_metric: float | None = None
    label_teacher: str | None = None
    init: str | None = None


class BranchSpec(Spec, frozen=True, kw_only=True):
    """What a branch is: all that is needed to run it beside its tensors (``branch.json``).

    Attributes:
        task: The task's name.
        kind: What is predicted.
        input: A single text or a pair.
        labels: Labels in the order of the logits' columns; empty for regression.
        metric: The task's metric.
        positive_label: Classification: the class that ``f1_binary`` is about.
        max_length: Longest row in tokens, at least 1.
        pooling: Where the head reads; tagging ignores it.
        exit_layer: How many trunk layers run before the branch; 0 reads the embeddings.
        own_layers: How many layers the branch has itself.
        trunk_digest: The chain value of the trunk at ``exit_layer``.
        score_mean: Regression: added to the standardized output, in the data's unit; finite.
        score_std: Regression: the standardized output is multiplied by it; finite and above 0.
        calibration: How logits become answers.
        label_schema_version: What clients see; raised when labels change their meaning.
        provenance: Where the branch comes from.
    """

    schema_version: int = 1
    task: str
    kind: Kind
    input: InputForm
    labels: tuple[str, ...]
    metric: Metric
    positive_label: str | None = None
    max_length: int
    pooling: Pooling
    exit_layer: int
    own_layers: int
    trunk_digest: str
    score_mean: float = 0.0
    score_std: float = 1.0
    calibration: Calibration = Calibration()
    label_schema_version: int = 1
    provenance: Provenance

    def __post_init__(self) -> None:
        """Refuse a branch that could only give wrong answers, or none."""
        subject = f"branch of task {self.task!r}"
        _check_metric(self.metric, self.kind, subject)
        _check_positive_label(self.metric, self.positive_label, kind=self.kind, subject=subject)
        _check_labels(self.labels, subject)
        if (self.kind == "regression") == bool(self.labels):
            wanted = "none" if self.kind == "regression" else "at least one"
            raise SpecError(f"{subject}: has {len(self.labels)} labels; {self.kind} has {wanted}; train it again")
        if self.kind == "tagging" and OUTSIDE not in self.labels:
            raise SpecError(f"{subject}: its tags lack {OUTSIDE!r}; a tagger needs it; train it again")
        if self.positive_label is not None and self.positive_label not in self.labels:
            raise SpecError(f"{subject}: positive_label {self.positive_label!r} is none of its labels; train it again")
        for name, least in (("max_length", 1), ("exit_layer", 0), ("own_layers", 0)):
            if getattr(self, name) < least:
                raise SpecError(
                    f"{subject}: {name} is {getattr(self, name)}; {least} or more is allowed; train it again"
                )
        if not (math.isfinite(self.score_mean) and math.isfinite(self.score_std) and self.score_std > 0):
            raise SpecError(
                f"{subject}: score_mean {self.score_mean} and score_std {self.score_std}; both are finite, and "
                "score_std is above 0; train it again"
            )
        self._check_calibration(subject)

    def _check_calibration(self, subject: str) -> None:
        thresholds = self.calibration.thresholds
        if thresholds is not None and (self.kind != "multilabel" or len(thresholds) != len(self.labels)):
            raise SpecError(
                f"{subject}: has {len(thresholds)} thresholds for {len(self.labels)} labels of kind {self.kind!r}; "
                "multilabel has one for each label, others have none; calibrate it again"
            )
        if self.calibration.abstain_below is not None and self.kind != "classification":
            raise SpecError(f"{subject}: {self.kind} cannot abstain; abstain_below is for classification; leave it out")

    @property
    def n_outputs(self) -> int:
        """Width of the logits."""
        return 1 if self.kind == "regression" else len(self.labels)


SpecT = TypeVar("SpecT")


def convert_spec(value: object, spec_type: type[SpecT], subject: str) -> SpecT:
    """Check plain values against a spec.

    Args:
        value: What a YAML or JSON reader returned.
        spec_type: The spec wanted.
        subject: What the message is about, for example ``"task file 'cola.yaml'"``.

    Raises:
        UnknownNameError: A key, or a word where only some are allowed, is unknown; the message names the nearest.
        SpecError: A value has the wrong type or is not allowed.
    """
    try:
        return msgspec.convert(value, spec_type, strict=True)
    except msgspec.ValidationError as error:
        raise spec_error(error, spec_type, subject) from error


def decode_spec(text: bytes, spec_type: type[SpecT], subject: str) -> SpecT:
    """Decode JSON into a spec; errors as in `convert_spec`."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{subject}: not valid JSON ({error}); restore the file") from error
    return convert_spec(value, spec_type, subject)


def encode_spec(spec: Any) -> bytes:
    """A spec as JSON: keys in the struct's order, indented, with a final newline; equal specs give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"


def spec_digest(spec: Any) -> str:
    """SHA-256 (hex) of a spec's canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()


def read_task(path: Path) -> TaskSpec:
    """Read one task file; its data paths are made absolute.

    Raises:
        SpecError: The file is missing, is not YAML, gives a key twice, or says something that is not allowed.
    """
    subject = f"task file {str(path)!r}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{subject}: cannot be read ({error.strerror}); check the path") from error
    task = convert_spec(read_yaml(content, subject), TaskSpec, subject)
    return msgspec.structs.replace(task, data=_absolute(task.data, path.parent, subject))


def _absolute(data: DataSpec, folder: Path, subject: str) -> DataSpec:
    def resolve(part: str | None) -> str | None:
        if part is None or part.startswith("hub:"):
            return part
        try:
            return str((folder / Path(part).expanduser()).resolve())
        except RuntimeError as error:
            raise SpecError(f"{subject}: data path {part!r} has no home folder ({error}); write it out") from error

    return msgspec.structs.replace(data, train=resolve(data.train), dev=resolve(data.dev), test=resolve(data.test))


def _check_metric(metric: Metric, kind: Kind, subject: str) -> None:
    if metric not in METRICS_OF_KIND[kind]:
        raise SpecError(
            f"{subject}: metric {metric!r} does not fit kind {kind!r}; choose one of {', '.join(METRICS_OF_KIND[kind])}"
        )


def _check_positive_label(metric: Metric | None, label: str | None, *, kind: Kind, subject: str) -> None:
    if metric == "f1_binary" and label is None:
        raise SpecError(f"{subject}: metric 'f1_binary' needs positive_label; name the class it is about")
    if label is not None and kind != "classification":
        raise SpecError(f"{subject}: positive_label is for classification, not for {kind}; remove the key")


def _check_labels(labels: Iterable[str], subject: str) -> None:
    seen: set[str] = set()
    for label in labels:
        if not label.strip() or label != label.strip():
            raise SpecError(f"{subject}: label {label!r} is blank or has white space around it; write it without")
        if label in seen:
            raise SpecError(f"{subject}: labels has {label!r} twice; list each label once")
        seen.add(label)
