"""The sample tasks: ours, seeded, noisy, and never quite what train has shown."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from trunkline.core.specs import read_task
from trunkline.demo.grammar import MAX_WORDS, read_grammar
from trunkline.demo.samples import LABEL_NOISE, N_ROWS, write_samples

KINDS = {
    "domain": "classification",
    "intent": "classification",
    "slots": "tagging",
    "urgency": "regression",
    "paraphrase": "classification",
    "topics": "multilabel",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples")
    write_samples(path)
    return path


def rows(folder: Path, task: str, part: str) -> list[dict]:
    return [json.loads(line) for line in (folder / task / f"{part}.jsonl").read_text("utf-8").splitlines()]


def text_of(row: dict) -> str:
    return row["text"] if "text" in row else " ".join(row["tokens"])


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_every_task_file_is_a_valid_spec_of_the_kind_it_should_be(tmp_path: Path) -> None:
    specs = [read_task(path) for path in write_samples(tmp_path)]
    assert {spec.name: spec.kind for spec in specs} == KINDS


def test_the_pair_task_and_no_other_takes_pairs(tmp_path: Path) -> None:
    specs = [read_task(path) for path in write_samples(tmp_path)]
    assert [spec.name for spec in specs if spec.input == "pair"] == ["paraphrase"]


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_samples(tmp_path, seed=0)
    assert digest(tmp_path) == digest(folder)


def test_another_seed_writes_other_rows(folder: Path, tmp_path: Path) -> None:
    write_samples(tmp_path, seed=1)
    assert rows(tmp_path, "intent", "train") != rows(folder, "intent", "train")


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("part", ["train", "dev"])
def test_every_part_has_the_stated_number_of_rows(folder: Path, task: str, part: str) -> None:
    assert len(rows(folder, task, part)) == N_ROWS[part]


@pytest.mark.parametrize("task", KINDS)
def test_no_dev_row_repeats_a_train_row(folder: Path, task: str) -> None:
    def inputs(part: str) -> set[tuple[str, str]]:
        return {(text_of(row).lower(), row.get("text_pair", "").lower()) for row in rows(folder, task, part)}

    assert not inputs("train") & inputs("dev")


@pytest.mark.parametrize("task", KINDS)
def test_texts_are_short(folder: Path, task: str) -> None:
    texts = [text_of(row) for part in ("train", "dev") for row in rows(folder, task, part)]
    assert max(len(text.split()) for text in texts) <= MAX_WORDS


@pytest.mark.parametrize("task", ["intent", "slots", "urgency"])
def test_the_single_text_tasks_are_about_the_same_utterances(folder: Path, task: str) -> None:
    assert [text_of(row) for row in rows(folder, task, "train")] == [
        text_of(row) for row in rows(folder, "domain", "train")
    ]


def test_tags_are_valid_iob2_and_as_many_as_words(folder: Path) -> None:
    for row in rows(folder, "slots", "train") + rows(folder, "slots", "dev"):
        assert len(row["tags"]) == len(row["tokens"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_every_slot_type_occurs_in_train(folder: Path) -> None:
    found = {tag[2:] for row in rows(folder, "slots", "train") for tag in row["tags"] if tag != "O"}
    assert found == set(read_grammar().slots)


def test_every_intent_occurs_in_train(folder: Path) -> None:
    found = {row["label"] for row in rows(folder, "intent", "train")}
    assert found == {frame.intent for frame in read_grammar().frames}


def test_scores_lie_between_0_and_10_and_use_the_scale(folder: Path) -> None:
    scores = [row["label"] for row in rows(folder, "urgency", "train")]
    assert min(scores) >= 0
    assert max(scores) <= 10
    assert max(scores) - min(scores) > 9


def test_every_topic_row_has_a_topic_and_no_repeats(folder: Path) -> None:
    for row in rows(folder, "topics", "train"):
        assert row["labels"]
        assert len(set(row["labels"])) == len(row["labels"])


def test_pairs_are_balanced(folder: Path) -> None:
    same = [row["label"] == "same" for row in rows(folder, "paraphrase", "train")]
    assert 0.4 < sum(same) / len(same) < 0.6


@pytest.mark.parametrize("part", ["train", "dev"])
def test_labels_are_wrong_at_about_the_stated_rate(folder: Path, part: str) -> None:
    domain_of = {frame.intent: frame.domain for frame in read_grammar().frames}
    pairs = zip(rows(folder, "domain", part), rows(folder, "intent", part), strict=True)
    # Noisy intents stay in their domain, so what disagrees is the domain's own noise.
    wrong = [domain["label"] != domain_of[intent["label"]] for domain, intent in pairs]
    assert LABEL_NOISE / 2 < sum(wrong) / len(wrong) < LABEL_NOISE * 2


def test_dev_has_values_that_train_never_has(folder: Path) -> None:
    cities = read_grammar().slots["city"][0].dev.lower().split(" | ")

    def found(part: str) -> list[str]:
        texts = [text_of(row).lower() for row in rows(folder, "intent", part)]
        return [city for city in cities if any(city in text for text in texts)]

    assert not found("train")
    assert found("dev")


def test_dev_has_templates_that_train_never_has(folder: Path) -> None:
    only_dev = "should hear that"
    assert not any(only_dev in text_of(row) for row in rows(folder, "intent", "train"))
    assert any(only_dev in text_of(row) for row in rows(folder, "paraphrase", "dev"))


def test_no_template_joins_punctuation_to_a_slot() -> None:
    templates = [t for frame in read_grammar().frames for t in (*frame.train, *frame.dev)]
    assert not [t for t in templates if re.search(r"\}[^\s|()]|[^\s|(]\{", t)]


def test_every_slot_of_a_template_has_values() -> None:
    grammar = read_grammar()
    templates = [t for frame in grammar.frames for t in (*frame.train, *frame.dev)]
    assert {name for t in templates for name in re.findall(r"\{(.*?)\}", t)} == set(grammar.slots)
