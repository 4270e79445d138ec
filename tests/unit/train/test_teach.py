"""What teachers' heads read: kept beside their logits when it is asked for, and what students do with it."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.tiny import tiny_backbone
from tests.tiny_bundles import backbone_of
from tests.tiny_records import run_spec
from tests.tiny_tasks import QUICK, Notebook, make_bench, make_task, quick_request
from trunkline.core.errors import TrainingError
from trunkline.core.specs import TaskSpec
from trunkline.model.backbone import Backbone
from trunkline.model.branch import Branch
from trunkline.train.bench import Workbench, source_of
from trunkline.train.loop import Lesson, fit, predict_features_and_logits, predict_logits
from trunkline.train.losses import hidden_loss
from trunkline.train.pipeline import train_task
from trunkline.train.prepare import PreparedTask, prepare
from trunkline.train.spec import Distillation, Preset, RunRecord
from trunkline.train.teach import taught_by

TASKS = ("topic", "topics", "mood", "places")
SPEC = run_spec(hyperparameters=QUICK, cache_dtype="float32", arm="student")
ONE_EPOCH = msgspec.structs.replace(QUICK, epochs=1)


def request_of(distillation: Distillation | None = None, **changes: Any) -> Any:
    preset = Preset(full=ONE_EPOCH, partial=ONE_EPOCH, student=ONE_EPOCH, distillation=distillation or Distillation())
    return quick_request(preset=preset, **changes)


def prepared(folder: Path, name: str = "topic", **fields: Any) -> PreparedTask:
    task = make_task(folder, name, n_train=40, n_dev=8, **fields)
    return prepare(task, backbone_of().tokenizer, selection="train_slice")


def branch_of(task: PreparedTask, backbone: Backbone, *, seed: int = 0) -> Branch:
    branch = Branch.build(
        backbone.config, exit_layer=2, own_layers=2, kind=task.spec.kind, pooling=task.spec.pooling,
        n_outputs=task.n_outputs, seed=seed,
    )  # fmt: skip
    branch.load(backbone.tensors, head=False)
    return branch


def fitted(bench: Workbench, lesson: Lesson, model: Branch, distillation: Distillation) -> Notebook:
    notebook = Notebook()
    fit(
        model,
        lesson,
        spec=msgspec.structs.replace(SPEC, distillation=distillation),
        score=lambda _model: 50.0,
        accelerator=bench.accelerator,
        reporter=notebook,
    )
    return notebook


def distance(features: list[np.ndarray], others: list[np.ndarray]) -> float:
    one, other = (torch.from_numpy(np.concatenate([np.atleast_2d(row) for row in each])) for each in (features, others))
    return float(hidden_loss(one, other))


def test_the_distance_is_that_of_directions() -> None:
    one = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    other = torch.tensor([[1.0, 0.0], [0.0, -5.0], [0.0, 1.0]])
    assert hidden_loss(one, other).item() == pytest.approx((0.0 + 4.0 + (2 - 2**0.5)) / 3)
    assert hidden_loss(one[:0], other[:0]).item() == 0.0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", TASKS)
def test_features_are_what_the_head_reads_and_come_with_the_very_logits(
    tmp_path: Path, name: str, pooling: str
) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path, name, pooling=pooling)
    model = branch_of(task, backbone_of())
    source = source_of(bench, task.fit, SPEC, dtype="float32")
    features, logits = predict_features_and_logits(model, source, task.fit)
    for row, plain in zip(logits, predict_logits(model, source, task.fit), strict=True):
        assert row.tobytes() == plain.tobytes()
    whole = bench.trunk
    for i in range(len(task.fit)):
        row = task.fit.rows[i]
        ids, types = (torch.from_numpy(a.astype(np.int64))[None] for a in (row.token_ids, row.type_ids))
        states = whole(ids, types, torch.ones_like(ids, dtype=torch.bool), exits=(4,))[4][0].numpy()
        if task.fit.positions is not None:
            expected = states[task.fit.positions[i]]
        else:
            expected = states[0] if pooling == "cls" else states.mean(axis=0)
        np.testing.assert_allclose(features[i], expected, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_student_of_a_perfect_start_has_no_hidden_distance(tmp_path: Path, name: str) -> None:
    backbone = tiny_backbone(hidden_dropout=0.0, attention_dropout=0.0)
    bench, task = make_bench(tmp_path, backbone=backbone), prepared(tmp_path, name)
    model, source = branch_of(task, backbone), source_of(bench, task.fit, SPEC, dtype="float32")
    features, logits = predict_features_and_logits(model, source, task.fit)
    lesson = Lesson(task.spec.kind, task.fit, source, logits, features)
    notebook = fitted(bench, lesson, model, Distillation(alpha=0.0, hidden_weight=100.0))
    assert notebook.losses[0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_matching_brings_the_features_nearer_to_the_teachers(tmp_path: Path, name: str) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path, name)
    source = source_of(bench, task.fit, SPEC, dtype="float32")
    teacher = branch_of(task, backbone_of())
    teacher.load(backbone_of(seed=1).tensors, head=False)
    wanted, logits = predict_features_and_logits(teacher, source, task.fit)
    after = {}
    for weight in (0.0, 5.0):
        model = branch_of(task, backbone_of())
        before, _ = predict_features_and_logits(model, source, task.fit)
        lesson = Lesson(task.spec.kind, task.fit, source, logits, wanted)
        fitted(bench, lesson, model, Distillation(hidden_weight=weight))
        after[weight] = distance(predict_features_and_logits(model, source, task.fit)[0], wanted)
        assert after[weight] < distance(before, wanted) or not weight
    assert after[5.0] < 0.9 * after[0.0]


def test_matching_alone_moves_the_layers_and_not_the_head(tmp_path: Path) -> None:
    # With alpha 1 rows without labels have no other term, and what the head reads lies below its parameters.
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    source = source_of(bench, task.fit, SPEC, dtype="float32")
    targets = tuple(np.int64(-1) for _ in task.fit.targets)
    model = branch_of(task, backbone_of())
    features, logits = predict_features_and_logits(model, source, task.fit)
    split = type(task.fit)(task.fit.examples, task.fit.rows, None, targets)  # type: ignore[arg-type]
    before = model.tensors()
    lesson = Lesson("classification", split, source, logits, [row[::-1].copy() for row in features])
    fitted(bench, lesson, model, Distillation(alpha=1.0, hidden_weight=1.0))
    moved = {name for name, value in model.tensors().items() if np.abs(value - before[name]).max() > 1e-3}
    assert any(name.startswith("layers.2.") for name in moved)
    assert any(name.startswith("layers.3.") for name in moved)
    assert not any(name.startswith("head.output") for name in moved)


def test_matching_without_features_is_refused(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(tmp_path)
    source, model = source_of(bench, task.fit, SPEC, dtype="float32"), branch_of(task, backbone_of())
    lesson = Lesson("classification", task.fit, source, predict_logits(model, source, task.fit))
    with pytest.raises(TrainingError, match="no features to match"):
        fitted(bench, lesson, model, Distillation(hidden_weight=1.0))


def teachers(folder: Path, name: str, seeds: tuple[int, ...] = (0,)) -> tuple[Workbench, PreparedTask, list[RunRecord]]:
    bench, task = make_bench(folder), prepared(folder, name)
    return bench, task, train_task(bench, task.spec, request_of(student_layers=(), seeds=seeds))


@pytest.mark.parametrize("name", ["topic", "places"])
def test_features_are_kept_beside_the_logits_when_they_are_asked_for(tmp_path: Path, name: str) -> None:
    bench, task, records = teachers(tmp_path, name)
    plain = taught_by(bench, task, records, task.fit)
    assert plain.features is None
    first = taught_by(bench, task, records, task.fit, features=True)
    again = taught_by(bench, task, records, task.fit, features=True)
    assert (first.flops > 0, again.flops) == (True, 0)
    assert first.features is not None
    assert again.features is not None
    for one, other in zip([*first.logits, *first.features], [*again.logits, *again.features], strict=True):
        assert one.tobytes() == other.tobytes()
        assert one.shape == other.shape
    for row in first.features:
        np.testing.assert_allclose(np.linalg.norm(row, axis=-1), 1.0, rtol=1e-5)
    assert [row.tobytes() for row in plain.logits] == [row.tobytes() for row in first.logits]
    # Whoever wants the logits alone reads them from the same file.
    assert taught_by(bench, task, records, task.fit).flops == 0
    assert len(list(bench.ledger.run_folder(records[0].run_id).glob("logits-*.npz"))) == 1


def test_several_teachers_give_the_mean_of_their_directions(tmp_path: Path) -> None:
    bench, task, records = teachers(tmp_path, "places", seeds=(0, 1))
    each = [taught_by(bench, task, [record], task.fit, features=True).features for record in records]
    found = taught_by(bench, task, records, task.fit, features=True).features
    assert found is not None
    assert each[0] is not None
    assert each[1] is not None
    for mean, one, other in zip(found, *each, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-6)


@pytest.mark.parametrize("label_teacher", ["ensemble", "full"])
def test_students_match_any_label_teacher(tmp_path: Path, label_teacher: str) -> None:
    task: TaskSpec = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    fields: dict[str, Any] = {"label_teacher": label_teacher, "full": label_teacher == "full", "seeds": (0, 1)}
    bench = make_bench(tmp_path)
    plain = train_task(bench, task, request_of(**fields))
    matched = train_task(bench, task, request_of(Distillation(hidden_weight=1.0), **fields))
    before, after = ([record for record in records if record.spec.arm == "student"] for records in (plain, matched))
    assert [record for record in matched if record.spec.arm != "student"] == plain[: -len(before)]
    for one, other in zip(before, after, strict=True):
        assert one.run_id != other.run_id
        assert one.spec.label_teachers == other.spec.label_teachers
        assert (other.curve[1].train_loss or 0) > (one.curve[1].train_loss or 0)
