"""Rows of data files into examples; whatever is wrong with a row is said with its file and line."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from trunkline.core.errors import DataError, SpecError, nearest_hint
from trunkline.core.specs import OUTSIDE, Columns, Kind, TaskSpec
from trunkline.core.types import Example, Target
from trunkline.data.labels import is_tag, listed_labels, target_labels
from trunkline.data.sources import is_table, jsonl_rows, read_rows, type_name
from trunkline.data.words import join_words

Part: TypeAlias = Literal["train", "dev", "test"]

_SAMPLE_SEED = 0


def read_part(task: TaskSpec, part: Part) -> list[Example]:
    """Read one part of a task's data.

    In CSV and TSV files several labels of one row are separated by ``|``, tokens and tags by single spaces. Class
    names that JSON, Parquet or the Hub give as whole numbers are taken as their digits, in lists too.

    Args:
        task: The task; its data paths are absolute or relative to the working folder.
        part: Which part. Train is cut to ``max_train_rows`` by a seeded sample that keeps the order.

    Returns:
        Rows in the order of the file, at least one; labelled, but for train rows whose label is null: students learn
        from their teacher's answers to those.

    Raises:
        SpecError: The task names no such part.
        DataError: The file or a row is wrong.
        MissingDependencyError: The format needs a package that is not installed.
    """
    source = getattr(task.data, part)
    if source is None:
        raise SpecError(f"task {task.name!r}: has no {part} data; name a file under data.{part} in the task file")
    labels = listed_labels(task) if part == "train" else None
    parser = _Parser(
        task.kind, task.input == "pair", task.columns, frozenset(labels) if labels else None, part == "train"
    )
    found = read_rows(source, task.columns_read)
    if is_table(source):
        found = ((where, parser.from_cells(row)) for where, row in found)
    rows = [parser.example(where, row) for where, row in found]
    if not rows:
        raise DataError(f"{source}: has no rows; {part} needs at least one; check the file")
    return _sample(rows, task) if part == "train" else rows


def read_unlabelled(task: TaskSpec, source: str) -> list[Example]:
    """Read rows of a task's input form from a file or the Hub; labels are not looked at, and need not be there.

    Args:
        task: Says which columns are read, and how.
        source: As for a part of the task's data.

    Returns:
        Rows without targets, in the order of the file, at least one.

    Raises:
        DataError: The file or a row is wrong.
        MissingDependencyError: The format needs a package that is not installed.
    """
    parser = _Parser(task.kind, task.input == "pair", task.columns, known=None, may_lack_label=True)
    found = read_rows(source, task.columns_read[:-1])  # The last of them is the label's.
    if is_table(source):
        found = ((where, parser.from_cells(row)) for where, row in found)
    rows = [parser.unlabelled(where, row) for where, row in found]
    if not rows:
        raise DataError(f"{source}: has no rows; at least one is needed; check the file")
    return rows


def read_inputs(lines: Iterable[bytes], subject: str) -> Iterator[Example]:
    """Read unlabelled rows for prediction: JSON objects with ``text`` (and ``text_pair``), or with ``tokens``.

    Args:
        lines: Raw JSON lines in UTF-8; null stands for a key that is absent, other keys are left alone.
        subject: What messages are about, for example ``"standard input"``.

    Yields:
        Rows without targets; those given as tokens carry their words' spans.

    Raises:
        DataError: A line is wrong; the message names it.
    """
    columns = Columns()
    for where, line in jsonl_rows(lines, subject, (columns.text, columns.text_pair, columns.tokens)):
        row = {column: value for column, value in line.items() if value is not None}
        if columns.tokens not in row:
            pair = _text(row, columns.text_pair, where) if columns.text_pair in row else None
            yield Example(text=_text(row, columns.text, where), text_pair=pair)
        elif columns.text in row or columns.text_pair in row:
            raise DataError(f"{where}: has both text and tokens; give one of them")
        else:
            text, spans = join_words(_words(row, columns.tokens, where))
            yield Example(text=text, word_spans=spans)


@dataclass(frozen=True, slots=True)
class _Parser:
    """How rows of one task become examples."""

    kind: Kind
    pair: bool
    columns: Columns
    known: frozenset[str] | None
    may_lack_label: bool

    def from_cells(self, row: dict[str, str]) -> dict[str, Any]:
        """What JSON would say for the cells of a table, which are all strings."""
        columns = self.columns
        separators = {
            "multilabel": {columns.labels: "|"},
            "tagging": {columns.tokens: " ", columns.tags: " "},
        }.get(self.kind, {})
        values: dict[str, Any] = dict(row)
        for column, separator in separators.items():
            if column in row:
                values[column] = row[column].split(separator) if row[column] else []
        if self.kind == "regression" and columns.label in row:
            values[columns.label] = _number(row[columns.label])
        return values

    def example(self, where: str, row: dict[str, Any]) -> Example:
        """One row, checked."""
        if self.kind == "tagging":
            example = self._tagged(where, row)
        else:
            label = self.columns.labels if self.kind == "multilabel" else self.columns.label
            example = self.unlabelled(where, row)
            if not self._lacks(row, label):
                target = _TARGETS[self.kind](_value(row, label, where), label, where)
                example = replace(example, target=target)
        if self.known is not None:
            self._check_known(example, where)
        return example

    def unlabelled(self, where: str, row: dict[str, Any]) -> Example:
        """The input of one row, checked."""
        if self.kind == "tagging":
            text, spans = join_words(_words(row, self.columns.tokens, where))
            return Example(text=text, word_spans=spans)
        return Example(
            text=_text(row, self.columns.text, where),
            text_pair=_text(row, self.columns.text_pair, where) if self.pair else None,
        )

    def _lacks(self, row: dict[str, Any], column: str) -> bool:
        return self.may_lack_label and column in row and row[column] is None

    def _tagged(self, where: str, row: dict[str, Any]) -> Example:
        example = self.unlabelled(where, row)
        if self._lacks(row, self.columns.tags):
            return example
        tags = _strings(_value(row, self.columns.tags, where), self.columns.tags, where)
        n_words = len(example.word_spans or ())
        if n_words != len(tags):
            raise DataError(f"{where}: has {n_words} tokens and {len(tags)} tags; give each token one tag")
        _check_iob2(tags, where)
        return replace(example, target=tags)

    def _check_known(self, example: Example, where: str) -> None:
        for label in target_labels(example.target):
            if self.known is not None and label not in self.known:
                raise DataError(
                    f"{where}: label {label!r} is none of the task file's labels; {nearest_hint(label, self.known)}"
                )


def _value(row: dict[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise DataError(f"{where}: has no column {column!r}; {nearest_hint(column, row)}")
    if row[column] is None:
        raise DataError(f"{where}: {column!r} is null; fill it in or remove the row")
    return row[column]


def _text(row: dict[str, Any], column: str, where: str) -> str:
    text = _value(row, column, where)
    if not isinstance(text, str):
        raise DataError(f"{where}: {column!r} is {type_name(text)}, not a string; write it as a string")
    if not text.strip():
        raise DataError(f"{where}: {column!r} is empty; fill it in or remove the row")
    return text


def _words(row: dict[str, Any], column: str, where: str) -> tuple[str, ...]:
    words = _strings(_value(row, column, where), column, where)
    if not words:
        raise DataError(f"{where}: {column!r} is empty; fill it in or remove the row")
    for number, word in enumerate(words):
        if not word.strip():
            raise DataError(f"{where}: token {number} of {column!r} is blank ({word!r}); remove it and its tag")
    return words


def _strings(value: Any, column: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {type_name(value)}, not a list of strings; write it as a list")
    for item in value:
        if not isinstance(item, str):
            raise DataError(f"{where}: {column!r} holds {type_name(item)}, not only strings; write each as a string")
    return tuple(value)


def _check_iob2(tags: tuple[str, ...], where: str) -> None:
    before = OUTSIDE
    for number, tag in enumerate(tags):
        if not is_tag(tag):
            raise DataError(f"{where}: tag {number} is {tag!r}; IOB2 allows 'O', 'B-x' and 'I-x'; mend the tags")
        if tag.startswith("I-") and before not in (f"B-{tag[2:]}", tag):
            raise DataError(
                f"{where}: tag {number} is {tag!r} after {before!r}; in IOB2 an entity begins with 'B-{tag[2:]}'; "
                "convert the tags to IOB2"
            )
        before = tag


def _class_name(value: Any, column: str, where: str) -> str:
    return _label(value, f"{where}: {column!r}")


def _class_names(value: Any, column: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {type_name(value)}, not a list of labels; write it as a list")
    names = tuple(_label(item, f"{where}: item {number} of {column!r}") for number, item in enumerate(value))
    if len(set(names)) != len(names):
        raise DataError(f"{where}: {column!r} has a repeated label ({', '.join(names)}); give each label once")
    return names


def _label(value: Any, subject: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{subject} is {type_name(value)}, not a class name; write it as a string")
    if not value.strip():
        raise DataError(f"{subject} is empty or blank ({value!r}); write the class name")
    if value != value.strip():
        raise DataError(f"{subject} is {value!r}; labels have no white space around them; remove it")
    return value


def _score(value: Any, column: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = f" ({value[:40]!r})" if isinstance(value, str) else ""
        raise DataError(f"{where}: {column!r} is {type_name(value)}{shown}, not a number; write it as a number")
    try:
        score = float(value)
    except OverflowError as error:
        raise DataError(f"{where}: {column!r} is a whole number beyond 1e308; scores are smaller; mend it") from error
    if not math.isfinite(score):
        raise DataError(f"{where}: {column!r} is {value}; scores are finite numbers; mend or remove the row")
    return score


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


_TARGETS: dict[Kind, Callable[[Any, str, str], Target]] = {
    "classification": _class_name,
    "multilabel": _class_names,
    "regression": _score,
}


def _sample(rows: list[Example], task: TaskSpec) -> list[Example]:
    most = task.data.max_train_rows
    if most is None or most >= len(rows):
        return rows
    chosen = np.random.default_rng(_SAMPLE_SEED).choice(len(rows), size=most, replace=False)
    return [rows[index] for index in np.sort(chosen)]
