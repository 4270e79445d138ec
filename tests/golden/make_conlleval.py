"""Make conlleval.txt, for which conlleval printed conlleval.json: `python tests/golden/make_conlleval.py`.

Synthetic: gold IOB2 tags over four types, and predictions with every kind of fault a tagger makes. Columns: token,
gold, predicted. An empty line ends a sentence.
"""

import random
from pathlib import Path

TYPES = ("PER", "LOC", "ORG", "WORK-OF-ART")
N_SENTENCES = 300
Span = tuple[int, int, str]
OUT = Path(__file__).parent / "conlleval.txt"


def gold_spans(rng: random.Random, n_words: int) -> list[Span]:
    """Spans in order; some touch, some of these of one type."""
    spans: list[Span] = []
    at = rng.choice((0, 0, 1, 2))
    while at < n_words:
        end = min(n_words, at + rng.choice((1, 1, 2, 2, 3, 4)))
        spans.append((at, end, rng.choices(TYPES, weights=(4, 3, 2, 1))[0]))
        at = end + rng.choice((0, 0, 1, 2, 3, 5))
    return spans


def guessed_spans(rng: random.Random, gold: list[Span], n_words: int) -> list[Span]:
    """Gold spans, of which some are missing, moved, cut, retyped or split, and a few that are nowhere."""
    spans: list[Span] = []
    for start, end, kind in gold:
        match rng.choices(("keep", "miss", "move", "cut", "retype", "split"), weights=(60, 9, 8, 8, 9, 6))[0]:
            case "miss":
                continue
            case "move":
                spans.append((start + 1, min(end + 1, n_words), kind))
            case "cut":
                spans.append((start, max(start + 1, end - 1), kind))
            case "retype":
                spans.append((start, end, rng.choice([other for other in TYPES if other != kind])))
            case "split":
                spans += [(start, start + 1, kind), (start + 1, end, kind)]
            case _:
                spans.append((start, end, kind))
    if rng.random() < 0.15:
        at = rng.randrange(n_words)
        spans.append((at, at + 1, rng.choice(TYPES)))
    return [span for span in spans if span[0] < span[1]]


def tags_of(spans: list[Span], n_words: int) -> list[str]:
    """IOB2 tags; a later span is written over an earlier one, which may leave an I- without its B-."""
    tags = ["O"] * n_words
    for start, end, kind in spans:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


def careless(rng: random.Random, tags: list[str]) -> list[str]:
    """Some B- become I-: at a sentence's start, after O, after another type, and between spans of one type."""
    return [f"I-{tag[2:]}" if tag[0] == "B" and rng.random() < 0.12 else tag for tag in tags]


def make(seed: int = 0) -> str:
    """The whole file."""
    rng = random.Random(seed)
    sentences = []
    for number in range(N_SENTENCES):
        n_words = rng.randint(1, 16)
        gold = gold_spans(rng, n_words)
        # A sentence without spans, now and then.
        gold = gold if rng.random() < 0.93 else []
        columns = zip(
            tags_of(gold, n_words), careless(rng, tags_of(guessed_spans(rng, gold, n_words), n_words)), strict=True
        )
        sentences.append("\n".join(f"s{number}w{word} {one} {other}" for word, (one, other) in enumerate(columns)))
    return "\n\n".join(sentences) + "\n\n"


if __name__ == "__main__":
    OUT.write_text(make(), encoding="utf-8")
