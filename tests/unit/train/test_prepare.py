"""From a task file to arrays: labels, targets, counts, digests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import backbone_of
from tests.tiny_tasks import TASKS, make_task, write_rows
from trunkline.core.errors import DataError
from trunkline.core.specs import DataSpec, TaskSpec
from trunkline.core.types import Example
from trunkline.train.losses import NO_LABEL
from trunkline.train.prepare import PreparedTask, Split, _Encoder, prepare

TOKENIZER = backbone_of().tokenizer


def prepared(task: TaskSpec, **options: Any) -> PreparedTask:
    return prepare(task, TOKENIZER, selection=options.get("selection", "train_slice"))


def task_of(
    folder: Path, rows: list[dict[str, Any]], *, dev: list[dict[str, Any]] | None = None, **fields: Any
) -> TaskSpec:
    data = DataSpec(
        train=str(write_rows(folder / "train.jsonl", rows)),
        dev=None if dev is None else str(write_rows(folder / "dev.jsonl", dev)),
    )
    return TaskSpec(**({"name": "t", "kind": "classification", "data": data, "max_length": 16} | fields))


def all_targets(split: Split) -> list[Any]:
    return [np.asarray(target).tolist() for target in split.targets]


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_is_prepared(tmp_path: Path, name: str) -> None:
    task = prepared(make_task(tmp_path, name, n_train=40, n_dev=10))
    assert (len(task.fit), len(task.selection), task.n_rows) == (20, 20, 50)
    assert task.dev is not None
    for part in (task.fit, task.selection, task.dev):
        assert len(part.examples) == len(part.rows) == len(part.targets) == len(part)
        assert (part.positions is not None) == (name == "places")


def test_classes_are_their_index_and_unheard_ones_none(tmp_path: Path) -> None:
    rows = [{"text": "play", "label": label} for label in ("b", "a", "b", "c")]
    task = prepared(task_of(tmp_path, rows, dev=[{"text": "no", "label": label} for label in ("c", "zebra", "a")]))
    assert task.labels == ("a", "b", "c")
    assert task.dev is not None
    assert all_targets(task.dev) == [2, NO_LABEL, 0]
    assert sorted(all_targets(task.fit) + all_targets(task.selection)) == [0, 1, 1, 2]
    assert all(target.dtype == np.int64 for target in task.dev.targets)
    assert task.n_outputs == 3


def test_several_labels_are_ones_among_zeros(tmp_path: Path) -> None:
    rows = [{"text": "play", "labels": labels} for labels in (["b"], ["a", "b"], [])]
    task = prepared(task_of(tmp_path, rows, dev=rows, kind="multilabel"))
    assert task.dev is not None
    assert all_targets(task.dev) == [[0, 1], [1, 1], [0, 0]]
    assert task.dev.targets[0].dtype == np.float32


def test_scores_are_standardized_by_the_mean_and_spread_of_train(tmp_path: Path) -> None:
    rows = [{"text": "play", "label": score} for score in (1.0, 3.0, 5.0, 7.0)]
    task = prepared(task_of(tmp_path, rows, dev=rows, kind="regression"))
    assert (task.score_mean, task.score_std) == (4.0, pytest.approx(5.0**0.5))
    assert task.dev is not None
    assert all_targets(task.dev) == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert np.stack(task.dev.targets).dtype == np.float32
    assert task.n_outputs == 1
    assert len(task.task_digest) == 64


def test_scores_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scores are all the same"):
        prepared(task_of(tmp_path, [{"text": "play", "label": 2.0}] * 4, kind="regression"))


def test_tags_stand_for_the_words_that_have_a_token(tmp_path: Path) -> None:
    words = ["play", "in", "new", "york", *["rain"] * 20]
    tags = ["O", "O", "B-city", "I-city", *["O"] * 20]
    task = prepared(task_of(tmp_path, [{"tokens": words, "tags": tags}] * 2, kind="tagging"))
    assert task.labels == ("O", "B-city", "I-city")
    assert task.fit.positions is not None
    positions, (target,) = task.fit.positions[0], task.fit.targets
    assert (positions[:4] == [1, 2, 3, 4]).all()
    assert (positions[14:] == -1).all()
    assert target.tolist() == [0, 0, 1, 2, *[0] * 10]
    assert task.n_truncated == 2


def test_a_word_inside_the_token_before_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tokenizer of these tests makes a token of each Chinese character, so the places of another are put in.
    monkeypatch.setattr("trunkline.train.prepare.word_positions", lambda *_: np.array([1, 2, -2, -1], dtype=np.int32))
    encoder = _Encoder(TaskSpec(name="t", kind="tagging"), TOKENIZER, ("O", "B-x", "I-x"), 0.0, 1.0)
    spans = ((0, 1), (1, 2), (2, 3), (3, 4))
    example = Example(text="去北京吧", target=("O", "B-x", "I-x", "O"), word_spans=spans)
    assert encoder.split([example]).targets[0].tolist() == [0, 1]
    unlabelled = Example(text="去北京吧", word_spans=spans)
    assert encoder.split([unlabelled]).targets[0].tolist() == [NO_LABEL] * 2


def unlabelled(kind: Any, *, labels: tuple[str, ...] = ("a", "b"), example: Example | None = None) -> Any:
    encoder = _Encoder(TaskSpec(name="t", kind=kind), TOKENIZER, labels, 1.0, 2.0)
    return encoder.split([example or Example(text="play a song")]).targets[0]


def test_a_row_without_a_label_has_a_target_that_hard_losses_leave_out() -> None:
    assert unlabelled("classification") == NO_LABEL
    assert np.isnan(unlabelled("multilabel")).tolist() == [True, True]
    assert np.isnan(unlabelled("regression", labels=()))
    spans = ((0, 4), (5, 6), (7, 11))
    assert unlabelled("tagging", example=Example(text="play a song", word_spans=spans)).tolist() == [NO_LABEL] * 3


def test_cut_rows_and_unseen_labels_are_counted_once(tmp_path: Path) -> None:
    long = {"text": "rain " * 40, "label": "a"}
    rows = [long, *[{"text": "no", "label": label} for label in "abab"]]
    dev = [long, long, {"text": "no", "label": "x"}, {"text": "no", "label": "x"}, {"text": "no", "label": "y"}]
    task = task_of(tmp_path, rows, dev=dev)
    for selection in ("train_slice", "dev"):
        found = prepared(task, selection=selection)
        assert (found.n_rows, found.n_truncated, found.n_unseen_labels) == (10, 3, 3)


def test_with_selection_dev_all_of_train_is_learned_from(tmp_path: Path) -> None:
    task = prepared(make_task(tmp_path, "topic", n_train=40, n_dev=10), selection="dev")
    assert (len(task.fit), len(task.selection)) == (40, 10)
    assert task.dev is task.selection


def test_selection_dev_needs_a_dev_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="selection 'dev' needs a dev part"):
        prepared(make_task(tmp_path, "topic", n_dev=None), selection="dev")


def test_a_task_without_dev_rows_is_prepared(tmp_path: Path) -> None:
    assert prepared(make_task(tmp_path, "topic", n_dev=None)).dev is None


def test_one_train_row_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train has 1 labelled rows"):
        prepared(task_of(tmp_path, [{"text": "no", "label": "a"}]))


def test_the_selection_slice_is_the_same_each_time(tmp_path: Path) -> None:
    task = make_task(tmp_path, "topic")
    first, second = prepared(task), prepared(task)
    assert first.selection.examples == second.selection.examples
    assert (first.data_digest, first.task_digest) == (second.data_digest, second.task_digest)


def test_digests_change_with_what_is_learned_and_not_with_where_it_lies(tmp_path: Path) -> None:
    rows = [{"text": f"play {n}", "label": "ab"[n % 2]} for n in range(6)]
    first = prepared(task_of(tmp_path, rows))
    (tmp_path / "moved").mkdir()
    moved = prepared(task_of(tmp_path / "moved", rows))
    assert (moved.data_digest, moved.task_digest) == (first.data_digest, first.task_digest)
    relabelled = prepared(task_of(tmp_path, [{**rows[0], "label": "b"}, *rows[1:]]))
    reworded = prepared(task_of(tmp_path, [{**rows[0], "text": "rain"}, *rows[1:]]))
    assert len({first.data_digest, relabelled.data_digest, reworded.data_digest}) == 3
    renamed = prepared(task_of(tmp_path, [{**row, "label": f"new {row['label']}"} for row in rows]))
    assert renamed.data_digest != first.data_digest
    assert renamed.task_digest != first.task_digest


def test_scores_in_another_unit_are_other_data(tmp_path: Path) -> None:
    rows = [{"text": "play", "label": float(score)} for score in (1, 3, 5, 7)]
    doubled = [{**row, "label": 2 * row["label"]} for row in rows]
    digests = {prepared(task_of(tmp_path, some, kind="regression")).data_digest for some in (rows, doubled)}
    assert len(digests) == 2
