import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.tiny_bundles import TEXTS, make_bundle
from tests.tiny_engines import open_fp32
from trunkline.core.errors import SpecError, UnknownNameError
from trunkline.core.specs import DataSpec, TaskSpec
from trunkline.core.types import Example
from trunkline.data.words import join_words
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import Evaluation, check_tasks, evaluate
from trunkline.model.score import Answer


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    bundle = make_bundle(tmp_path_factory.mktemp("bundles"), "intent", "slots", "topics", "urgency")
    with open_fp32(bundle.path) as opened:
        yield opened


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own_answers(engine: Engine, task: str) -> list[Answer]:
    return engine.answers(TEXTS, task)


def test_a_classifier_that_agrees_with_its_rows_gets_all_points(engine: Engine, tmp_path: Path) -> None:
    answers = own_answers(engine, "intent")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, answers, strict=True)]
    task = TaskSpec(name="intent", kind="classification", data=DataSpec(dev=write_rows(tmp_path / "dev.jsonl", rows)))
    assert evaluate(engine, task, "dev") == Evaluation(
        task="intent", part="dev", metric="accuracy", points=100.0, n_rows=6, n_truncated=0, n_unseen_labels=0
    )


def test_labels_that_the_branch_lacks_are_counted_and_cost_points(engine: Engine, tmp_path: Path) -> None:
    answers = own_answers(engine, "intent")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, answers, strict=True)]
    rows[0]["label"] = rows[1]["label"] = "flight"
    task = TaskSpec(name="intent", kind="classification", data=DataSpec(test=write_rows(tmp_path / "t.jsonl", rows)))
    found = evaluate(engine, task, "test")
    assert found.n_unseen_labels == 2
    assert found.points == pytest.approx(100 * 4 / 6)


def test_truncated_rows_are_counted(engine: Engine, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "yes " * 60, "label": "book"}, {"text": "no", "label": "book"}]
    task = TaskSpec(name="intent", kind="classification", data=DataSpec(dev=write_rows(tmp_path / "dev.jsonl", rows)))
    assert evaluate(engine, task, "dev").n_truncated == 1


def test_a_tagger_is_judged_on_the_words_of_its_rows(engine: Engine, tmp_path: Path) -> None:
    sentences = (["play", "a-song", "in", "paris"], ["明", "天", "北", "京"], ["new york", "is", "good", "no"])
    told = [engine.answers([_of_words(words)], "slots")[0] for words in sentences]
    rows: list[dict[str, object]] = [
        {"tokens": words, "tags": list(tags)}  # type: ignore[call-overload]
        for words, tags in zip(sentences, told, strict=True)
    ]
    spans = [sum(tag.startswith("B-") for tag in tags) for tags in told]  # type: ignore[union-attr]
    assert min(spans) > 0
    task = TaskSpec(name="slots", kind="tagging", data=DataSpec(dev=write_rows(tmp_path / "dev.jsonl", rows)))
    found = evaluate(engine, task, "dev")
    assert (found.metric, found.n_rows, found.points) == ("span_f1", 3, 100.0)
    rows[0]["tags"] = ["O"] * 4
    missed = TaskSpec(name="slots", kind="tagging", data=DataSpec(dev=write_rows(tmp_path / "less.jsonl", rows)))
    precision = sum(spans[1:]) / sum(spans)
    assert evaluate(engine, missed, "dev").points == pytest.approx(100 * 2 * precision / (precision + 1))


def _of_words(words: list[str]) -> Example:
    text, spans = join_words(words)
    return Example(text=text, word_spans=spans)


def test_a_scorer_is_judged_by_correlation(engine: Engine, tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": 2.0 * float(score) + 1.0}  # type: ignore[arg-type]
        for text, score in zip(TEXTS, own_answers(engine, "urgency"), strict=True)
    ]
    task = TaskSpec(name="urgency", kind="regression", data=DataSpec(dev=write_rows(tmp_path / "dev.jsonl", rows)))
    assert evaluate(engine, task, "dev").points == pytest.approx(100.0)


def test_several_labels_are_judged_by_f1(engine: Engine, tmp_path: Path) -> None:
    rows = [
        {"text": text, "labels": list(labels) or ["food"]}  # type: ignore[arg-type]
        for text, labels in zip(TEXTS, own_answers(engine, "topics"), strict=True)
        if labels
    ]
    task = TaskSpec(name="topics", kind="multilabel", data=DataSpec(dev=write_rows(tmp_path / "dev.jsonl", rows)))
    assert evaluate(engine, task, "dev").points == pytest.approx(100.0)


def test_a_task_that_the_bundle_lacks_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownNameError, match="mood"):
        evaluate(engine, TaskSpec(name="mood", kind="classification"), "dev")


def test_a_task_file_of_another_kind_is_refused(engine: Engine) -> None:
    with pytest.raises(SpecError, match="multilabel of text; the branch is classification of text"):
        evaluate(engine, TaskSpec(name="intent", kind="multilabel"), "dev")


def test_all_tasks_are_checked_before_the_first_is_judged(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path, "intent").manifest
    intent = TaskSpec(name="intent", kind="classification", data=DataSpec(dev=str(tmp_path / "absent.jsonl")))
    check_tasks(manifest, [intent], "dev")
    with pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        check_tasks(manifest, [intent, msgspec.structs.replace(intent, name="intend")], "dev")
    with pytest.raises(SpecError, match="task 'intent': has no test data"):
        check_tasks(manifest, [intent], "test")
    with pytest.raises(SpecError, match="the task file says multilabel"):
        check_tasks(manifest, [msgspec.structs.replace(intent, kind="multilabel")], "dev")
