"""Raw rows out of files and Hub data sets: each with the place that messages name."""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from trunkline.core.errors import DataError, MissingDependencyError

Row: TypeAlias = tuple[str, dict[str, Any]]
"""Where a row stands (``"train.jsonl line 17"``) and its columns."""

_SUFFIXES = ".jsonl, .csv, .tsv (each also with .gz) and .parquet"


def read_rows(source: str, columns: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a data file or of ``hub:NAME[/CONFIG]:SPLIT``.

    Args:
        source: A path, or a Hub name: ``hub:squad:train``, ``hub:owner/name:dev``, ``hub:owner/name/config:test``.
        columns: The columns that are wanted; formats that hold columns apart read no others.

    Yields:
        Rows in order; which columns they have is not checked here.

    Raises:
        DataError: The source is missing, damaged, or of an unknown format.
        MissingDependencyError: It needs `datasets` or `pyarrow`, and they are not installed.
    """
    if source.startswith("hub:"):
        yield from _hub_rows(source, columns)
        return
    path = Path(source)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl_file, ".csv": _csv_file, ".tsv": _tsv_file}
    if not path.is_file():
        raise DataError(f"{source}: there is no such file; check the path in the task file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
    elif suffix in readers:
        yield from readers[suffix](path)
    else:
        ending = "".join(path.suffixes[-2:])
        raise DataError(f"{source}: the ending {ending!r} is not known; allowed are {_SUFFIXES}; convert or rename it")


def is_table(source: str) -> bool:
    """Whether a source is CSV or TSV, where every value is a string."""
    return not source.startswith("hub:") and source.removesuffix(".gz").endswith((".csv", ".tsv"))


def jsonl_rows(lines: Iterable[bytes], subject: str) -> Iterator[Row]:
    """Decode JSON lines; blank lines are no rows, but count as lines.

    Args:
        lines: Raw lines in UTF-8.
        subject: The file's name for messages.

    Yields:
        Rows in order.

    Raises:
        DataError: A line is not UTF-8, not JSON or not an object.
    """
    decoder = msgspec.json.Decoder()
    for where, line in _text_lines(lines, subject):
        if not line.strip():
            continue
        try:
            value = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error}); write one JSON object on each line") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: holds {type_name(value)}, not a JSON object; write one object on each line")
        yield where, value


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


def _jsonl_file(path: Path) -> Iterator[Row]:
    return jsonl_rows(_file_lines(path), str(path))


def _csv_file(path: Path) -> Iterator[Row]:
    """Comma-separated values with quotes (RFC 4180)."""
    lines = _text_lines(_file_lines(path), str(path))
    return _table_rows(csv.reader((line for _, line in lines), strict=True), path)


def _tsv_file(path: Path) -> Iterator[Row]:
    """Tab-separated values without quoting, as GLUE publishes them: a quote is a character like any other."""
    lines = _text_lines(_file_lines(path), str(path))
    return _table_rows(csv.reader((line for _, line in lines), delimiter="\t", quoting=csv.QUOTE_NONE), path)


def _table_rows(reader: Any, path: Path) -> Iterator[Row]:
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            where, line = f"{path} line {line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _header(fields, where)
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{where}: has {len(fields)} fields, the header has {len(header)}; quote or mend the row"
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {line}: not a valid table ({error}); mend the row") from error


def _header(fields: list[str], where: str) -> list[str]:
    if len(set(fields)) != len(fields):
        raise DataError(f"{where}: the header names a column twice ({', '.join(fields)}); rename one")
    return fields


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing("pyarrow", "Parquet files") from error
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in columns]
            number = 0
            for batch in file.iter_batches(columns=wanted or None):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); write it again") from error


def _hub_rows(source: str, columns: Sequence[str]) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise _missing("datasets", "Hub data sets") from error
    name, config, split = _hub_name(source)
    try:
        data = datasets.load_dataset(name, config, split=split)
        data = data.select_columns([column for column in data.column_names if column in columns] or data.column_names)
        readers = {column: _class_names(feature) for column, feature in data.features.items()}
        for number, row in enumerate(data, start=1):
            yield f"{source} row {number}", {column: readers[column](value) for column, value in row.items()}
    # A RuntimeError is how `datasets` 4 refuses data sets that are read by a script.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: `datasets` cannot read it ({error}); check name, config and split, the network, and "
            "HF_HUB_OFFLINE"
        ) from error


def _hub_name(source: str) -> tuple[str, str | None, str]:
    """Split ``hub:NAME[/CONFIG]:SPLIT``; two parts are owner and name, because every new data set has an owner."""
    place, _, split = source.removeprefix("hub:").partition(":")
    parts = place.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise DataError(
            f"{source}: not a Hub data set; write hub:NAME:SPLIT, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME/CONFIG:SPLIT"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _class_names(feature: Any) -> Callable[[Any], Any]:
    """How to read a column: a data set of the Hub stores classes as numbers and their names beside."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return lambda value: value if value is None else feature.int2str(value)
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return lambda values: values if values is None else [inner.int2str(value) for value in values]
    return lambda value: value


def _missing(package: str, what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{package}: not installed; {what} need it; install the extra with: pip install 'trunkline[train]'"
    )
