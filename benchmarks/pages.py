"""What the pages of results share: the text between two marks, intervals, and the line that says what measured them."""

import math
from pathlib import Path
from typing import Any


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


def measured_by(result: dict[str, Any]) -> str:
    """Command, commit, day and machine of a result."""
    machine = result["machine"]
    return (
        f"`{result['command']}` at commit {result['commit'][:10]}, {result['started_at'][:10]}, on "
        f"{machine['n_cpus']} cores ({machine['cpu']}; no GPU)."
    )
