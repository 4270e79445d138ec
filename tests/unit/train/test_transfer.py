"""The transfer set: which rows it holds, and that students alone learn from it."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import backbone_of
from tests.tiny_records import run_spec
from tests.tiny_tasks import QUICK, Notebook, make_bench, make_task, quick_request, rows_of, write_rows
from trunkline.core.errors import DataError, SpecError
from trunkline.core.specs import TaskSpec
from trunkline.train.losses import NO_LABEL
from trunkline.train.pipeline import check_request, train_task
from trunkline.train.prepare import PreparedTask, prepare
from trunkline.train.run import learned_rows
from trunkline.train.spec import Distillation, Preset, RunRecord, TrainRequest
from trunkline.train.transfer import with_transfer

ONE_EPOCH = msgspec.structs.replace(QUICK, epochs=1)
SHORT = Preset(full=ONE_EPOCH, partial=ONE_EPOCH, student=ONE_EPOCH, distillation=Distillation())


def request_of(**changes: Any) -> TrainRequest:
    return quick_request(preset=SHORT, **changes)


def prepared(task: TaskSpec, notebook: Notebook | None = None, **changes: Any) -> PreparedTask:
    plain = prepare(task, backbone_of().tokenizer, selection="train_slice")
    return with_transfer(plain, backbone_of(), request_of(**changes), note=(notebook or Notebook()).note)


def trained(folder: Path, name: str = "topic", notebook: Notebook | None = None, **changes: Any) -> list[RunRecord]:
    task = make_task(folder, name, n_train=40, n_dev=8)
    return train_task(make_bench(folder, reporter=notebook), task, request_of(**changes))


def more_rows(folder: Path, name: str = "topic", *, n_rows: int = 30) -> str:
    return str(write_rows(folder / f"{name}-more.jsonl", rows_of(name, n_rows, seed=7)))


def test_without_a_transfer_set_a_task_is_left_as_it_is(tmp_path: Path) -> None:
    assert prepared(make_task(tmp_path, "topic")).transfer is None


@pytest.mark.parametrize("name", ["topic", "topics", "mood", "places", "reply"])
def test_rows_of_a_file_have_no_targets(tmp_path: Path, name: str) -> None:
    task = prepared(make_task(tmp_path, name), transfer=more_rows(tmp_path, name))
    assert task.transfer is not None
    assert len(task.transfer) > 20
    assert all(example.target is None for example in task.transfer.examples)
    targets = np.concatenate([np.atleast_1d(target) for target in task.transfer.targets])
    assert (np.isnan(targets) if name in ("topics", "mood") else targets == NO_LABEL).all()


@pytest.mark.parametrize("name", ["topic", "topics", "mood", "reply"])
def test_so_many_rows_are_made_of_each(tmp_path: Path, name: str) -> None:
    notebook = Notebook()
    task = prepared(make_task(tmp_path, name), notebook, augment=3)
    assert task.transfer is not None
    (note,) = notebook.notes
    assert f"{len(task.transfer)} transfer rows, of 0 read and {3 * len(task.fit)} made" in note
    # Texts of a pico vocabulary repeat each other now and then.
    assert len(task.transfer) > 2 * len(task.fit)
    assert all(example.target is None for example in task.transfer.examples)
    targets = np.concatenate([np.atleast_1d(target) for target in task.transfer.targets])
    assert (np.isnan(targets) if name in ("topics", "mood") else targets == NO_LABEL).all()


def test_rows_that_are_measured_on_and_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    made = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    plain = prepare(made, backbone_of().tokenizer, selection="train_slice")
    assert plain.dev is not None
    measured = [plain.selection.examples[0].text, plain.dev.examples[0].text, plain.dev.examples[0].text.upper()]
    repeated = [plain.fit.examples[0].text, "a new text", "a new text", "A new  text"]
    path = write_rows(tmp_path / "more.jsonl", [{"text": text} for text in measured + repeated])
    notebook = Notebook()
    task = prepared(made, notebook, transfer=str(path))
    assert task.transfer is not None
    assert [example.text for example in task.transfer.examples] == ["a new text"]
    (note,) = notebook.notes
    assert note == (
        "task 'topic': 1 transfer rows, of 7 read and 0 made; left out were 3 that equal selection or dev rows and 3 "
        "repeats; 0 were cut to max_length tokens"
    )


def test_a_transfer_set_of_nothing_new_is_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path, "topic")
    with pytest.raises(DataError, match="none of 120 transfer rows is left"):
        prepared(task, transfer=task.data.train)


def test_the_data_digest_does_not_know_the_transfer_set(tmp_path: Path) -> None:
    made = make_task(tmp_path, "topic")
    digests = {
        prepared(made, **changes).data_digest for changes in ({}, {"augment": 2}, {"transfer": more_rows(tmp_path)})
    }
    assert len(digests) == 1


def test_students_alone_learn_from_the_transfer_set(tmp_path: Path) -> None:
    plain = trained(tmp_path)
    more = trained(tmp_path, transfer=more_rows(tmp_path), augment=1)
    # The partial run is the very same one, and is not run again.
    assert more[0] == plain[0]
    assert plain[1].spec.transfer is None
    assert more[1].spec.transfer is not None
    assert more[1].run_id != plain[1].run_id
    assert more[1].spec.variant == plain[1].spec.variant
    assert more[1].n_train_rows > plain[1].n_train_rows + 30
    assert more[1].curve[0] == plain[1].curve[0]
    assert more[1].curve[1].train_loss != plain[1].curve[1].train_loss


def test_other_transfer_rows_are_another_run(tmp_path: Path) -> None:
    specs = [trained(tmp_path, **changes)[1].spec for changes in ({"augment": 1}, {"augment": 2}, {"augment": 1})]
    assert specs[0] == specs[2]
    assert specs[0].transfer != specs[1].transfer


def test_a_run_on_a_sample_takes_the_same_share_of_the_transfer_set(tmp_path: Path) -> None:
    task = prepared(make_task(tmp_path, "topic"), augment=4)
    assert task.transfer is not None
    student = run_spec(arm="student", fit_rows=len(task.fit) // 2, transfer=task.transfer.digest())
    rows = learned_rows(task, student)
    assert len(rows) == len(task.fit) // 2 + round(len(task.transfer) / 2)
    assert rows.rows[: len(task.fit) // 2] == task.fit.sample(student.fit_rows).rows
    assert len(learned_rows(task, run_spec(arm="student"))) == len(task.fit)
    assert len(learned_rows(task, run_spec())) == len(task.fit)


def test_taggers_learn_from_unlabelled_rows_of_words(tmp_path: Path) -> None:
    partial_run, student = trained(tmp_path, "places", transfer=more_rows(tmp_path, "places"))
    assert student.n_train_rows > partial_run.n_train_rows


def test_a_multi_label_student_with_a_new_head_and_unlabelled_rows_has_a_finite_start(tmp_path: Path) -> None:
    _, student = trained(tmp_path, "topics", augment=1, student_inits=("backbone",))
    assert np.isfinite(student.curve[1].train_loss or np.nan)


def test_augmentation_of_tagging_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="task 'places': --augment 2 is not for tagging, whose tags do not carry over"):
        trained(tmp_path, "places", augment=2)
    assert make_bench(tmp_path).ledger.records() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": -1}, "--augment -1 is below 0"),
        ({"augment": 1, "student_layers": ()}, "--transfer and --augment give rows to students, and none is asked"),
        ({"transfer": "x.jsonl", "layers": (), "full": True}, "--transfer and --augment give rows to students"),
        ({"init_from": "x", "layers": (), "full": True}, "--init-from is where partial fine-tuning starts, and none"),
    ],
    ids=str,
)
def test_options_that_no_run_would_use_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_request(request_of(**fields), 4)


def test_room_for_the_transfer_set_is_told_where_students_are_known_to_read(tmp_path: Path) -> None:
    def told(folder: Path, **changes: Any) -> str:
        notebook = Notebook()
        trained(folder, notebook=notebook, **changes)
        (note,) = [note for note in notebook.notes if note.startswith("activations at")]
        return note

    # A pico row is far below a megabyte, so ten thousand of them are needed to see one.
    path = write_rows(tmp_path / "more.jsonl", [{"text": f"{a} {b} good"} for a in range(100) for b in range(100)])
    quick = {"student_exits": (3,), "student_layers": (0,)}
    assert "add up to 0 MB" in told(tmp_path / "plain", **quick)
    assert "add up to 4 MB" in told(tmp_path / "more", transfer=str(path), **quick)
