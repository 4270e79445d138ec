"""Frozen descriptions: what a task is, what a branch is, what a run was asked to do.

All of them are msgspec structs: validated when decoded, unknown keys refused, written as JSON or YAML.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from trunkline.core.errors import SpecError, UnknownNameError, nearest_hint

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
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all specs: frozen, keyword-only, unknown keys refused."""


class DataSpec(Spec, frozen=True, kw_only=True):
    """Where a task's rows are.

    Each part is a path relative to the task file (JSONL, CSV, TSV or Parquet, ``.gz`` allowed) or
    ``hub:NAME[/CONFIG]:SPLIT`` for a data set of the Hugging Face Hub, read through `datasets`.

    Attributes:
        train: Rows to learn from.
        dev: Rows only reported on.
        test: Rows evaluated on request.
        max_train_rows: Train on a seeded sample of this many rows; None for all.
    """

    train: str | None = None
    dev: str | None = None
    test: str | None = None
    max_train_rows: int | None = None


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
        labels: Labels in their fixed order (tagging: tags, or the entity types); None reads them from train.
        metric: What is optimized and reported; None takes the kind's default.
        positive_label: The class that ``f1_binary`` is about.
        max_length: Longest row in tokens; longer texts are cut, counted and reported.
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
        """Refuse what the types alone do not: names, metric and kind that do not fit."""
        if not TASK_NAME.fullmatch(self.name):
            raise SpecError(
                f"task {self.name!r}: the name is not allowed; use 1 to 64 of a-z, 0-9, '-' and '_', "
                "beginning with a letter or digit"
            )
        allowed = METRICS_OF_KIND[self.kind]
        if self.metric is not None and self.metric not in allowed:
            raise SpecError(
                f"task {self.name!r}: metric {self.metric!r} does not fit kind {self.kind!r}; "
                f"choose one of {', '.join(allowed)}"
            )
        if self.metric == "f1_binary" and self.positive_label is None:
            raise SpecError(f"task {self.name!r}: metric 'f1_binary' needs positive_label; name the class it is about")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise SpecError(f"task {self.name!r}: labels has repeats; list each label once")
        if self.kind == "regression" and self.labels is not None:
            raise SpecError(f"task {self.name!r}: a regression task has no labels; remove the key")
        if self.kind == "tagging" and self.input == "pair":
            raise SpecError(f"task {self.name!r}: tagging takes single texts; set input: text")
        if not 8 <= self.max_length <= 8192:
            raise SpecError(f"task {self.name!r}: max_length {self.max_length} is outside 8..8192 tokens")

    @property
    def metric_name(self) -> Metric:
        """The metric in force."""
        return self.metric or DEFAULT_METRIC[self.kind]


class Calibration(Spec, frozen=True, kw_only=True):
    """How logits become probabilities and decisions; belongs to the branch.

    Attributes:
        temperature: Logits are divided by it (Guo et al. 2017); this is not the ``kd_temperature``.
        thresholds: Multi-label: one for each label, in order; None means 0.5.
        abstain_below: Classification: confidence under which no label is given; None never abstains.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    abstain_below: float | None = None


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
        positive_label: The class that ``f1_binary`` is about.
        max_length: Longest row in tokens.
        pooling: Where the head reads; tagging ignores it.
        exit_layer: How many trunk layers run before the branch; 0 reads the embeddings.
        own_layers: How many layers the branch has itself.
        trunk_digest: The chain value of the trunk at ``exit_layer``.
        score_mean: Regression: added to the standardized output, in the data's unit.
        score_std: Regression: the standardized output is multiplied by it.
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

    @property
    def n_outputs(self) -> int:
        """Width of the logits."""
        return 1 if self.kind == "regression" else len(self.labels)


SpecT = TypeVar("SpecT")


def known_names(spec_type: Any) -> tuple[str, ...]:
    """Every key that a spec and the specs inside it know, for hints."""
    names: list[str] = []
    for field in msgspec.structs.fields(spec_type):
        names.append(field.encode_name)
        if isinstance(field.type, type) and issubclass(field.type, Spec):
            names.extend(known_names(field.type))
    return tuple(names)


def convert_spec(value: object, spec_type: type[SpecT], subject: str) -> SpecT:
    """Check plain values against a spec.

    Args:
        value: What a YAML or JSON reader returned.
        spec_type: The spec wanted.
        subject: What the message is about, for example ``"task file 'cola.yaml'"``.

    Raises:
        UnknownNameError: A key is unknown; the message names the nearest.
        SpecError: A value has the wrong type or is not allowed.
    """
    try:
        return msgspec.convert(value, spec_type, strict=True)
    except msgspec.ValidationError as error:
        raise _spec_error(error, spec_type, subject) from error


def decode_spec(text: bytes, spec_type: type[SpecT], subject: str) -> SpecT:
    """Decode JSON into a spec; errors as in `convert_spec`."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
        value = msgspec.yaml.decode(content)
    except OSError as error:
        raise SpecError(f"{subject}: cannot be read ({error.strerror}); check the path") from error
    except msgspec.DecodeError as error:
        raise SpecError(f"{subject}: not valid YAML ({error}); mend the file") from error
    _refuse_repeated_keys(content, subject)
    task = convert_spec(value, TaskSpec, subject)
    return msgspec.structs.replace(task, data=_absolute(task.data, path.parent))


def _refuse_repeated_keys(content: bytes, subject: str) -> None:
    """YAML forbids a key that is given twice; its readers take the last value in silence."""
    import yaml

    seen: set[int] = set()  # An alias may lead back to a node above it.
    waiting = [yaml.compose(content, yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name in names:
                if names.count(name) > 1:
                    line = max(key.start_mark.line for key, _ in node.value if key.value == name) + 1
                    raise SpecError(f"{subject}: key {name!r} is given again in line {line}; give each key once")
            waiting.extend(value for _, value in node.value)


def _absolute(data: DataSpec, folder: Path) -> DataSpec:
    def resolve(part: str | None) -> str | None:
        if part is None or part.startswith("hub:"):
            return part
        return str((folder / part).resolve())

    return msgspec.structs.replace(data, train=resolve(data.train), dev=resolve(data.dev), test=resolve(data.test))


def _spec_error(error: msgspec.ValidationError, spec_type: type[SpecT], subject: str) -> SpecError:
    cause = error.__cause__
    if isinstance(cause, SpecError):
        return type(cause)(f"{subject}: {cause}")
    unknown = re.search(r"unknown field `([^`]+)`", str(error))
    if unknown:
        name = unknown.group(1)
        return UnknownNameError(f"{subject}: unknown key {name!r}; {nearest_hint(name, known_names(spec_type))}")
    return SpecError(f"{subject}: {error}; see docs/reference/task-file.md for what is allowed")
