"""Our span F1 is conlleval's: conlleval.json holds what the Perl script itself printed for conlleval.txt."""

import hashlib
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trunkline.core.metrics import SpanScore, span_f1

HERE = Path(__file__).parent
PRINTED: dict[str, Any] = json.loads((HERE / "conlleval.json").read_text("utf-8"))
SENTENCES = [
    [line.split(" ") for line in sentence.split("\n")]
    for sentence in (HERE / "conlleval.txt").read_text("utf-8").strip().split("\n\n")
]
GOLD, PREDICTED = ([[columns[at] for columns in sentence] for sentence in SENTENCES] for at in (1, 2))


def only(kind: str, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[tag if tag[2:] == kind else "O" for tag in row] for row in rows]


def as_printed(score: SpanScore) -> dict[str, float]:
    return {name: round(getattr(score, name), 2) for name in ("precision", "recall", "f1")}


def test_span_f1_over_all_types_is_what_conlleval_prints() -> None:
    assert as_printed(span_f1(PREDICTED, GOLD)) == PRINTED["overall"]


@pytest.mark.parametrize("kind", PRINTED["types"])
def test_span_f1_of_one_type_is_what_conlleval_prints(kind: str) -> None:
    assert as_printed(span_f1(only(kind, PREDICTED), only(kind, GOLD))) == PRINTED["types"][kind]


def test_the_input_is_the_one_that_the_figures_were_printed_for() -> None:
    content = (HERE / "conlleval.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == PRINTED["input_sha256"]
    assert runpy.run_path(str(HERE / "make_conlleval.py"))["make"]() == content.decode()


def test_the_input_has_the_tags_that_scripts_disagree_about() -> None:
    pairs = [pair for row in PREDICTED for pair in zip(["O", *row], row, strict=False)]
    inside = [(before, tag) for before, tag in pairs if tag.startswith("I-")]
    assert sum(before == "O" for before, _ in inside) > 20
    assert sum(before != "O" and before[2:] != tag[2:] for before, tag in inside) > 10
    assert sum(tag == f"B-{before[2:]}" for before, tag in pairs) > 20
