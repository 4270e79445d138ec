"""Six sample tasks about one assistant, written as task files and JSON lines.

``domain``, ``intent``, ``slots`` and ``urgency`` are about the same utterances, as they would be in a real assistant;
``topics`` joins up to two wishes, ``paraphrase`` compares two. Labels are wrong at a known rate in both parts, and a
good part of dev is said in ways that train never says, so 100 points would be a fault.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from trunkline.core.specs import InputForm, Kind
from trunkline.demo.grammar import MAX_WORDS, Filling, Frame, Grammar, Part, Speaker, Utterance, read_grammar

Row: TypeAlias = dict[str, Any]

N_ROWS: Mapping[Part, int] = {"train": 1000, "dev": 300}
LABEL_NOISE = 0.05
URGENCY_NOISE = 0.8
"""Standard deviation of the score's noise, in the score's unit."""


@dataclass(frozen=True, slots=True)
class SampleTask:
    """A task and how its rows come about."""

    name: str
    kind: Kind
    rows: Callable[[Grammar, Part, int], list[Row]]
    input: InputForm = "text"
    max_length: int = 32


def write_samples(folder: Path, *, seed: int = 0) -> list[Path]:
    """Write the sample tasks.

    Args:
        folder: Where to; made when missing, files of the same name are overwritten.
        seed: The same seed writes the same bytes.

    Returns:
        The task files, one for each task.
    """
    grammar = read_grammar()
    return [_write_task(folder, task, _rows_of_parts(task, grammar, seed)) for task in sample_tasks()]


def sample_tasks() -> tuple[SampleTask, ...]:
    """The tasks, in the order in which they are shown."""
    return (
        SampleTask("domain", "classification", _domain_rows),
        SampleTask("intent", "classification", _intent_rows),
        SampleTask("slots", "tagging", _slot_rows),
        SampleTask("urgency", "regression", _urgency_rows),
        SampleTask("paraphrase", "classification", _paraphrase_rows, input="pair", max_length=64),
        SampleTask("topics", "multilabel", _topic_rows),
    )


def _write_task(folder: Path, task: SampleTask, parts: Mapping[Part, list[Row]]) -> Path:
    (folder / task.name).mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / task.name / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    path = folder / f"{task.name}.yaml"
    spec = {
        "name": task.name,
        "kind": task.kind,
        "input": task.input,
        "max_length": task.max_length,
        "data": {part: f"{task.name}/{part}.jsonl" for part in parts},
    }
    path.write_bytes(msgspec.yaml.encode(spec))
    return path


def _rows_of_parts(task: SampleTask, grammar: Grammar, seed: int) -> dict[Part, list[Row]]:
    parts: dict[Part, list[Row]] = {part: task.rows(grammar, part, seed) for part in N_ROWS}
    seen = {_input_of(row) for row in parts["train"]}
    parts["dev"] = [row for row in parts["dev"] if _input_of(row) not in seen][: N_ROWS["dev"]]
    return parts


def _input_of(row: Row) -> str:
    """What a row asks about; letter case aside, so that dev repeats nothing of train."""
    return json.dumps([row.get("text"), row.get("text_pair"), row.get("tokens")]).lower()


def _n_drawn(part: Part) -> int:
    """Dev is drawn with a surplus, of which what train has too is taken away."""
    return N_ROWS[part] * (2 if part == "dev" else 1)


# One chance stream a purpose: noise in one task leaves every other task's rows as they are.
def _rng(seed: int, part: Part, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{part}/{purpose}")


def _utterances(grammar: Grammar, part: Part, seed: int) -> list[Utterance]:
    speaker = Speaker(grammar, _rng(seed, part, "utterances"), part)
    found: dict[str, Utterance] = {}
    while len(found) < _n_drawn(part):
        utterance = speaker.dress(speaker.say(speaker.rng.choice(grammar.frames)))
        found.setdefault(utterance.text.lower(), utterance)
    return list(found.values())


def _domain_rows(grammar: Grammar, part: Part, seed: int) -> list[Row]:
    rng = _rng(seed, part, "domain")
    domains = sorted({frame.domain for frame in grammar.frames})
    return [
        {"text": utterance.text, "label": _noisy(utterance.frame.domain, domains, rng)}
        for utterance in _utterances(grammar, part, seed)
    ]


def _intent_rows(grammar: Grammar, part: Part, seed: int) -> list[Row]:
    rng = _rng(seed, part, "intent")
    rows = []
    for utterance in _utterances(grammar, part, seed):
        # People who label confuse intents of one domain.
        siblings = [frame.intent for frame in grammar.frames if frame.domain == utterance.frame.domain]
        rows.append({"text": utterance.text, "label": _noisy(utterance.frame.intent, siblings, rng)})
    return rows


def _slot_rows(grammar: Grammar, part: Part, seed: int) -> list[Row]:
    rng = _rng(seed, part, "slots")
    names = sorted(grammar.slots)
    return [
        {"tokens": list(utterance.words), "tags": _noisy_tags(utterance.tags, names, rng)}
        for utterance in _utterances(grammar, part, seed)
    ]


def _urgency_rows(grammar: Grammar, part: Part, seed: int) -> list[Row]:
    rng = _rng(seed, part, "urgency")
    rows = []
    for utterance in _utterances(grammar, part, seed):
        score = min(10.0, max(0.0, rng.gauss(utterance.urgency, URGENCY_NOISE)))
        rows.append({"text": utterance.text, "label": round(score, 1)})
    return rows


def _topic_rows(grammar: Grammar, part: Part, seed: int) -> list[Row]:
    rng = _rng(seed, part, "topics")
    speaker = Speaker(grammar, rng, part)
    every = sorted(set(_all_topics(grammar)))
    found: dict[str, Row] = {}
    while len(found) < _n_drawn(part):
        first, second = (speaker.say(frame) for frame in rng.sample(grammar.frames, 2))
        if rng.random() < 0.45:
            text, topics = speaker.dress(first).text, first.topics
        else:
            text, topics = " ".join((*first.words, *speaker.join(), *second.words)), first.topics | second.topics
        if len(text.split()) <= MAX_WORDS:
            found.setdefault(text.lower(), {"text": text, "labels": _noisy_topics(topics, every, rng)})
    return list(found.values())


def _all_topics(grammar: Grammar) -> Iterable[str]:
    for frame in grammar.frames:
        yield from frame.topics
    for groups in grammar.slots.values():
        yield from (group.topic for group in groups if group.topic is not None)


def _paraphrase_rows(grammar: Grammar, part: Part, seed: int) -> list[Row]:
    rng = _rng(seed, part, "paraphrase")
    speaker = Speaker(grammar, rng, part)
    frames = [frame for frame in grammar.frames if frame.paraphrases]
    found: dict[tuple[str, str], Row] = {}
    while len(found) < _n_drawn(part):
        first = speaker.say(rng.choice(frames))
        same = rng.random() < 0.5
        second = _said_otherwise(speaker, first, first.fillings) if same else _other_meaning(speaker, first)
        if second is None:
            continue
        label = _noisy("same" if same else "different", ["same", "different"], rng)
        pair = speaker.dress(first).text, speaker.dress(second).text
        found.setdefault(pair, {"text": pair[0], "text_pair": pair[1], "label": label})
    return list(found.values())


def _said_otherwise(speaker: Speaker, first: Utterance, fillings: Mapping[str, Filling]) -> Utterance | None:
    """Other words of the same intent with the same slots; None when twenty attempts found none."""
    for _ in range(20):
        second = speaker.say(first.frame, known=fillings)
        if second.fillings.keys() == first.fillings.keys() and second.words != first.words:
            return second
    return None


def _other_meaning(speaker: Speaker, first: Utterance) -> Utterance | None:
    """Another value in a slot, another intent about the same things, or something else altogether."""
    chance = speaker.rng.random()
    if chance >= 0.5 or not first.fillings:
        return speaker.say(_other_frame(speaker, first.frame, near=chance < 0.85), known=first.fillings)
    changed = speaker.rng.choice(sorted(first.fillings))
    filling = speaker.fill(changed)
    if filling.words == first.fillings[changed].words:
        return None
    return _said_otherwise(speaker, first, {**first.fillings, changed: filling})


def _other_frame(speaker: Speaker, frame: Frame, *, near: bool) -> Frame:
    others = [f for f in speaker.grammar.frames if f.intent != frame.intent and (f.domain == frame.domain) == near]
    return speaker.rng.choice(others)


def _noisy(label: str, labels: Sequence[str], rng: random.Random) -> str:
    if rng.random() >= LABEL_NOISE:
        return label
    return rng.choice([other for other in labels if other != label])


def _noisy_topics(topics: frozenset[str], every: Sequence[str], rng: random.Random) -> list[str]:
    """One topic left out (never the only one) or one too many."""
    if rng.random() >= LABEL_NOISE:
        return sorted(topics)
    if len(topics) > 1 and rng.random() < 0.5:
        return sorted(topics - {rng.choice(sorted(topics))})
    return sorted(topics | {rng.choice([topic for topic in every if topic not in topics])})


def _noisy_tags(tags: Sequence[str], names: Sequence[str], rng: random.Random) -> list[str]:
    """One span overlooked, or given a wrong type."""
    starts = [i for i, tag in enumerate(tags) if tag.startswith("B-")]
    if not starts or rng.random() >= LABEL_NOISE:
        return list(tags)
    start = rng.choice(starts)
    stop = next((i for i in range(start + 1, len(tags)) if not tags[i].startswith("I-")), len(tags))
    if rng.random() < 0.5:
        changed = ["O"] * (stop - start)
    else:
        wrong = rng.choice([name for name in names if name != tags[start].removeprefix("B-")])
        changed = [f"{tag[:2]}{wrong}" for tag in tags[start:stop]]
    return [*tags[:start], *changed, *tags[stop:]]
