"""The files of a reproduction, each written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from trunkline.bundle.files import swap_file
from trunkline.core.errors import BundleError
from trunkline.core.specs import encode_spec
from trunkline.reports.pictures import pictures
from trunkline.reports.tables import markdown_tables
from trunkline.train.reproduction import Reproduction


def write_report(made: Reproduction, folder: Path, *, without: Sequence[str] = ()) -> list[Path]:
    """Write ``reproduction.json``, ``tables.md`` and the pictures; data and tables first, they need no matplotlib.

    Args:
        made: What to write.
        folder: Where to; made when missing.
        without: Tasks that a second average in the tables leaves out.

    Returns:
        The files.

    Raises:
        BundleError: The folder cannot be written.
        MissingDependencyError: Matplotlib is not installed; data and tables are written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"report {str(folder)!r}: cannot be made ({error}); choose another folder") from error
    written = _write(folder, "reproduction.json", encode_spec(made))
    written += _write(folder, "tables.md", markdown_tables(made, without=without).encode())
    for name, content in pictures(made).items():
        written += _write(folder, name, content)
    return written


def _write(folder: Path, name: str, content: bytes) -> list[Path]:
    swap_file(folder / name, content)
    return [folder / name]
