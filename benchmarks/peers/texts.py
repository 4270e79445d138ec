"""Texts said to an assistant: real dev rows where they lie beside the checkout, else our sample grammar."""

import gzip
import json
import random

from benchmarks.harness import DATA

SOURCES = ("clinc150_intent", "hwu64_intent", "snips_intent", "atis_intent")


def source() -> str:
    """Where `texts` draws from, for the record of a result."""
    if _has_data():
        return f"dev rows of {', '.join(SOURCES)}, each set as likely as another"
    return "trunkline.demo.grammar, part dev (no ../shared/data beside this checkout)"


def texts(n: int, seed: int) -> list[str]:
    """`n` texts, the same for the same seed; `source` says of what kind.

    The four sets have the same weight, so that a large one does not set the lengths alone.
    """
    rng = random.Random(seed)
    if not _has_data():
        return _from_grammar(n, rng)
    pools = [_rows(name) for name in SOURCES]
    return [rng.choice(rng.choice(pools)) for _ in range(n)]


def _has_data() -> bool:
    return all((DATA / name / "dev.jsonl.gz").is_file() for name in SOURCES)


def _rows(name: str) -> list[str]:
    with gzip.open(DATA / name / "dev.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _from_grammar(n: int, rng: random.Random) -> list[str]:
    from trunkline.demo.grammar import Speaker, read_grammar

    grammar = read_grammar()
    speaker = Speaker(grammar, rng, "dev")
    return [speaker.dress(speaker.say(rng.choice(grammar.frames))).text for _ in range(n)]
