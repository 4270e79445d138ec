"""What the pages of results share: the text between two marks, intervals, and the line that says what measured them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.harness import RESULTS, ROOT
from trunkline.train.spec import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGES = ROOT / "docs" / "benchmarks"


def publish(
    path: Path,
    name: str,
    *,
    table: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None] | None = None,
    pictures: Sequence[str] = (".png",),
) -> None:
    """Print a result's table and draw its picture; put both into the benchmark's page when the result is the kept one.

    Args:
        path: Of the result.
        name: Of the benchmark; its page has the marks ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
        table: Makes the table.
        draw: Draws the picture beside the result.
        pictures: Endings of the pictures that may lie beside the result; those that do are shown on the page.
    """
    result = msgspec.json.decode(path.read_bytes())
    shown = table(result)
    print(shown)
    if draw is not None:
        draw(result, path.with_suffix(".png"))
    if path.resolve() != (RESULTS / f"{name}.json").resolve():
        return
    found = [f"{path.stem}{ending}" for ending in pictures if path.with_name(f"{path.stem}{ending}").exists()]
    links = [f"![{each.removesuffix('.png')}](../../benchmarks/results/{each})" for each in found]
    marks = (f"<!-- table: {name} -->", "<!-- end of table -->")
    replace_between(PAGES / f"{name}.md", marks, "\n\n".join((shown, *links)))


@contextmanager
def picture(path: Path, *, width: float, height: float) -> "Iterator[Figure]":
    """A figure to draw into, which is written when it is done.

    Args:
        path: Where the picture goes.
        width: In inches.
        height: In inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    figure.savefig(path, dpi=110)


def replace_between(page: Path, marks: tuple[str, str], content: str) -> None:
    """Put a text between two marks of a page; everything else stays."""
    start, end = marks
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(start, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{start}\n{content}\n{end}{after}", encoding="utf-8")


def half_width(points: float, n_rows: int) -> float:
    """Half of the 95% interval of an accuracy on so many rows, in points (normal approximation)."""
    share = points / 100
    return 196 * math.sqrt(share * (1 - share) / n_rows)


def t_half_width(values: Sequence[float]) -> float | None:
    """Half of the 95% interval of a mean (Student's t); None below two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def runs_facts(records: Sequence[RunRecord]) -> dict[str, Any]:
    """When and by which versions runs were made that a result sums up; for its details, as ``runs``; empty of none."""
    if not records:
        return {}
    finished = sorted(record.finished_at for record in records)
    return {
        "n_runs": len({record.run_id for record in records}),
        "first_finished_at": finished[0],
        "last_finished_at": finished[-1],
        "trunkline_versions": sorted({record.trunkline_version for record in records}),
    }


def measured_by(result: dict[str, Any]) -> str:
    """Command, commit, day and machine of a result; of one that sums up runs, when and by what those were made."""
    machine, commit = result["machine"], result["commit"]
    changes = " with uncommitted changes" if commit.endswith("+changes") else ""
    said = (
        f"`{result['command']}` at commit {commit.removesuffix('+changes')[:10]}{changes}, "
        f"{result['started_at'][:10]}, on {machine['n_cpus']} cores ({machine['cpu']}; no GPU)"
    )
    runs = result["details"].get("runs")
    if runs:
        said += (
            f"; runs of {runs['first_finished_at'][:10]} to {runs['last_finished_at'][:10]}, "
            f"trunkline {', '.join(runs['trunkline_versions'])}"
        )
    return f"{said}."
