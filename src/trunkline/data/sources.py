"""Raw rows out of files and Hub data sets: each with the place that messages name."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from trunkline.core.errors import DataError, MissingDependencyError, nearest_hint

Row: TypeAlias = tuple[str, dict[str, Any]]
"""Where a row stands (``"train.jsonl line 17"``) and its columns."""

_SUFFIXES = ".jsonl, .csv, .tsv (each also with .gz) and .parquet"
_LONGEST_CELL = 2**31 - 1  # The most that the csv module takes on every platform; its default is 131,072 characters.


def read_rows(source: str, columns: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a data file or of ``hub:NAME[/CONFIG]:SPLIT``.

    Args:
        source: A path, or a Hub name: ``hub:squad:train``, ``hub:owner/name:dev``, ``hub:owner/name/config:test``.
        columns: The columns that are wanted. Parquet files and Hub data sets must have them, and no others are read;
            the rows of text files are given as they are.

    Yields:
        Rows in order.

    Raises:
        DataError: The source is missing, damaged, of an unknown format, or has a wanted column twice; or a Parquet
            file or Hub data set lacks one.
        MissingDependencyError: It needs `datasets` or `pyarrow`, and they are not installed.
    """
    ending = _ending(source)
    if ending == "hub":
        yield from _hub_rows(source, columns)
        return
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{source}: there is no such file; check the path in the task file")
    readers: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
        ".jsonl": _jsonl_file,
        ".csv": _csv_file,
        ".tsv": _tsv_file,
        ".parquet": _parquet_rows,
    }
    if ending not in readers:
        raise DataError(f"{source}: the ending {ending!r} is not known; allowed are {_SUFFIXES}; convert or rename it")
    yield from readers[ending](path, columns)


def is_table(source: str) -> bool:
    """Whether a source is CSV or TSV, where every value is a string."""
    return _ending(source) in (".csv", ".tsv")


def _ending(source: str) -> str:
    """What a source's format is told by; the ``.gz`` of a text file is left out."""
    if source.startswith("hub:"):
        return "hub"
    path = Path(source)
    inner = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    return inner if path.suffix != ".gz" or inner in (".jsonl", ".csv", ".tsv") else f"{inner}.gz"


def jsonl_rows(lines: Iterable[bytes], subject: str, columns: Sequence[str]) -> Iterator[Row]:
    """Decode JSON lines; blank lines are no rows, but count as lines.

    Args:
        lines: Raw lines in UTF-8.
        subject: The file's name for messages.
        columns: The columns that are wanted; a line that gives one of them twice is refused.

    Yields:
        Rows in order, with all their columns.

    Raises:
        DataError: A line is not UTF-8, not JSON, not an object, or gives a wanted column twice.
    """
    decoder = msgspec.json.Decoder()
    for where, line in _text_lines(lines, subject):
        if not line.strip():
            continue
        try:
            value = decoder.decode(line)
            repeated = _repeated_key(line, columns) if isinstance(value, dict) else None
        except (msgspec.DecodeError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}); write one JSON object on each line") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: holds {type_name(value)}, not a JSON object; write one object on each line")
        if repeated is not None:
            raise DataError(f"{where}: gives {repeated!r} twice; a row has one value for each column; remove one")
        yield where, value


def _repeated_key(line: str, columns: Sequence[str]) -> str | None:
    """A wanted column that is a key of the line's object more than once."""
    # Counting is cheap, and a name that stands there once cannot be a key twice.
    suspects = [column for column in columns if line.count(f'"{column}"') > 1]
    if not suspects:
        return None
    # The outermost object is the last that is closed. Numbers stay text: they may be longer than Python converts.
    keys = json.loads(line, object_pairs_hook=lambda pairs: [name for name, _ in pairs], parse_int=str)
    return next((column for column in suspects if keys.count(column) > 1), None)


def type_name(value: object) -> str:
    """What a value is, in words that a message can use."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", dict: "an object"}
    if value is None:
        return "null"
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}")


def _text_lines(lines: Iterable[bytes], subject: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, start=1):
        where = f"{subject} line {number}"
        try:
            # Excel and PowerShell write a byte order mark.
            yield where, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 (byte {line[error.start]:#04x} at {error.start}); convert the file to UTF-8"
            ) from error


def _file_lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: broken gzip ({error}); copy or compress the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _jsonl_file(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    return jsonl_rows(_file_lines(path), str(path), columns)


def _csv_file(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Comma-separated values with quotes (RFC 4180)."""
    lines = _text_lines(_file_lines(path), str(path))
    return _table_rows(csv.reader((line for _, line in lines), strict=True), path, columns)


def _tsv_file(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Tab-separated values without quoting, as GLUE publishes them: a quote is a character like any other."""
    lines = _text_lines(_file_lines(path), str(path))
    return _table_rows(csv.reader((line for _, line in lines), delimiter="\t", quoting=csv.QUOTE_NONE), path, columns)


def _table_rows(reader: Any, path: Path, columns: Sequence[str]) -> Iterator[Row]:
    # The limit belongs to the process. It is raised and left so: putting it back would cut off another thread's cell.
    csv.field_size_limit(_LONGEST_CELL)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"{path} line {line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                _refuse_repeats(fields, columns, f"{where}: the header")
                header = fields
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{where}: has {len(fields)} fields, the header has {len(header)}; quote or mend the row"
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {line}: not a valid table ({error}); mend the row") from error


def _refuse_repeats(names: Sequence[str], columns: Sequence[str], subject: str) -> None:
    for column in columns:
        if names.count(column) > 1:
            raise DataError(f"{subject} names column {column!r} {names.count(column)} times; rename all but one")


def _refuse_missing(names: Sequence[str], columns: Sequence[str], subject: str) -> None:
    for column in columns:
        if column not in names:
            raise DataError(f"{subject}: has no column {column!r}; {nearest_hint(column, names)}")


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing("pyarrow", "Parquet files") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_missing(names, columns, str(path))
            _refuse_repeats(names, columns, f"{path}: the schema")
            number = 0
            for batch in file.iter_batches(columns=list(columns)):
                for row in _batch_rows(batch, path, number):
                    number += 1
                    yield f"{path} row {number}", row
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); write it again") from error


def _batch_rows(batch: Any, path: Path, n_before: int) -> list[dict[str, Any]]:
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        # Parquet does not check its strings; the row is looked for once it is known that there is one.
        for number in range(batch.num_rows):
            try:
                batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} row {n_before + number + 1}: a string is not UTF-8 ({error}); write the file again"
                ) from error
        raise


def _hub_rows(source: str, columns: Sequence[str]) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise _missing("datasets", "Hub data sets") from error
    name, config, split = _hub_name(source)
    try:
        data = datasets.load_dataset(name, config, split=split)
    # A RuntimeError is how `datasets` 4 refuses data sets that are read by a script.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: `datasets` cannot read it ({error}); check name, config and split, the network, and "
            "HF_HUB_OFFLINE"
        ) from error
    _refuse_missing(data.column_names, columns, source)
    data = data.select_columns(list(columns))
    readers = {column: _class_reader(feature) for column, feature in data.features.items()}
    rows = iter(data)
    for number in range(1, len(data) + 1):
        where = f"{source} row {number}"
        try:
            row = next(rows)
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: cannot be decoded ({error}); mend the data set or leave it out") from error
        yield where, {column: readers[column](value, column, where) for column, value in row.items()}


def _hub_name(source: str) -> tuple[str, str | None, str]:
    """Split ``hub:NAME[/CONFIG]:SPLIT``; two parts are owner and name, because every new data set has an owner."""
    place, _, split = source.removeprefix("hub:").partition(":")
    parts = place.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise DataError(
            f"{source}: not a Hub data set; write hub:NAME:SPLIT, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME/CONFIG:SPLIT"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _class_reader(feature: Any) -> Callable[[Any, str, str], Any]:
    """How to read a column: a data set of the Hub stores classes as numbers and their names beside."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return lambda value, column, where: _class_of(feature.names, value, column, where=where)
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return lambda values, column, where: (
            None if values is None else [_class_of(inner.names, value, column, where=where) for value in values]
        )
    return lambda value, _column, _where: value


def _class_of(names: Sequence[str], value: int | None, column: str, *, where: str) -> str | None:
    """The name of a class; None for -1, by which `datasets` says that a row has no label."""
    if value is None or value == -1:
        return None
    if not 0 <= value < len(names):
        raise DataError(
            f"{where}: {column!r} is class {value}; the data set has 0..{len(names) - 1}; mend the data set"
        )
    return names[value]


def _missing(package: str, what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{package}: not installed; {what} need it; install the extra with: pip install 'trunkline[train]'"
    )
