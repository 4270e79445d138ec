"""All runs of a task: what is run, resumed, refused and promised."""

import hashlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import backbone_of
from tests.tiny_engines import open_fp32
from tests.tiny_records import run_record, run_spec
from tests.tiny_tasks import QUICK, TASKS, Notebook, make_bench, make_task, quick_request, write_rows
from trunkline.bundle.merge import merge
from trunkline.bundle.store import read_branch
from trunkline.core.errors import SpecError, TrainingError
from trunkline.core.types import Example
from trunkline.engine.engine import Engine
from trunkline.engine.verify import verify
from trunkline.model.backbone import Backbone
from trunkline.model.branch import Branch
from trunkline.train import run as run_module
from trunkline.train.bench import Workbench, source_of
from trunkline.train.candidates import candidates_of
from trunkline.train.loop import predict_logits
from trunkline.train.pipeline import check_request, train_each, train_task, train_tasks
from trunkline.train.plan import plan_runs
from trunkline.train.prepare import prepare
from trunkline.train.run import Start, build_model, learned_rows
from trunkline.train.spec import Distillation, Hyperparameters, Preset, RunRecord
from trunkline.train.start import initial_tensors
from trunkline.train.teach import taught_by

ONE_EPOCH = msgspec.structs.replace(QUICK, epochs=1)
SHORT = Preset(full=ONE_EPOCH, partial=ONE_EPOCH, student=ONE_EPOCH, distillation=Distillation())
request_of = partial(quick_request, preset=SHORT)


def digest(backbone: Backbone) -> str:
    """Of everything that is frozen."""
    found = hashlib.sha256()
    for name, array in sorted(backbone.tensors.items()):
        found.update(name.encode() + array.tobytes())
    return found.hexdigest()


def trained(folder: Path, name: str = "topic", *, notebook: Notebook | None = None, **fields: Any) -> list[RunRecord]:
    bench = make_bench(folder, reporter=notebook)
    return train_task(bench, make_task(folder, name, n_train=40, n_dev=8), request_of(**fields))


def test_every_arm_layer_and_seed_that_was_asked_is_run_in_the_papers_order(tmp_path: Path) -> None:
    records = trained(tmp_path, layers=(1, 2), seeds=(0, 1), full=True, student_layers=(1,), student_exits=(0, 3))
    runs = [(r.spec.arm, r.spec.exit_layer, r.spec.own_layers, r.spec.seed) for r in records]
    assert runs[:2] == [("full", 0, 4, 0), ("full", 0, 4, 1)]
    assert runs[2:6] == [("partial", 3, 1, 0), ("partial", 3, 1, 1), ("partial", 2, 2, 0), ("partial", 2, 2, 1)]
    assert sorted(runs[6:]) == [("student", 0, 1, 0), ("student", 0, 1, 1), ("student", 3, 1, 0), ("student", 3, 1, 1)]
    assert [r.branch_digest is None for r in records] == [True, True, *[False] * 8]


def test_a_second_call_trains_nothing(tmp_path: Path) -> None:
    ask = partial(trained, tmp_path, layers=(2,), full=True, student_layers=(1,))
    first = ask()
    notebook = Notebook()
    content = make_bench(tmp_path).ledger.path.read_bytes()
    assert ask(notebook=notebook) == first
    assert notebook.started == []
    assert notebook.losses == []
    assert [resumed for _, resumed in notebook.finished] == [True] * 3
    assert make_bench(tmp_path).ledger.path.read_bytes() == content


def test_a_larger_request_runs_only_what_is_missing(tmp_path: Path) -> None:
    trained(tmp_path, layers=(2,), student_layers=())
    notebook = Notebook()
    trained(tmp_path, layers=(1, 2), student_layers=(), notebook=notebook)
    assert [(spec.own_layers, n_steps) for spec, n_steps in notebook.started] == [(1, 2)]


def test_a_killed_run_leaves_no_record_and_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole", layers=(2,), student_layers=())

    def killed(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    bench = make_bench(tmp_path)
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    ask = partial(train_task, bench, task, request_of(student_layers=()))
    with monkeypatch.context() as patch:
        patch.setattr(Notebook, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, layers=(2,), student_layers=(), notebook=Notebook())
    assert bench.ledger.records() == []
    with monkeypatch.context() as patch:
        # Killed after the branch was written and before its record was: the branch is not trusted, but made again.
        patch.setattr(run_module, "RunRecord", killed)
        with pytest.raises(KeyboardInterrupt):
            ask()
    assert bench.ledger.records() == []
    (record,) = ask()
    assert (record.curve, record.dev_metric) == (whole[0].curve, whole[0].dev_metric)
    assert read_branch(bench.ledger.branch_folder(record.run_id)).digest == record.branch_digest


def test_a_removed_branch_is_trained_again_and_teaches(tmp_path: Path) -> None:
    (teacher,) = trained(tmp_path, student_layers=())
    bench = make_bench(tmp_path)
    shutil.rmtree(bench.ledger.branch_folder(teacher.run_id))
    again, student = trained(tmp_path, student_layers=(1,))
    assert again.run_id == teacher.run_id
    assert again.curve == teacher.curve
    assert student.spec.label_teachers == (teacher.run_id,)
    (planned,) = plan_runs(bench.ledger.folder, min_gain=0.0).tasks
    assert planned.branch_digest == read_branch(Path(planned.branch)).digest


def test_a_changed_teacher_is_trained_again_and_its_old_logits_are_not_taught(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    teacher, first = trained(tmp_path, student_layers=(1,))
    folder = bench.ledger.run_folder(teacher.run_id)
    (old,) = folder.glob("logits-*.npz")
    weights = folder / "branch" / "branch.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 0x10
    weights.write_bytes(content)
    shutil.rmtree(bench.ledger.branch_folder(first.run_id))
    again, student = trained(tmp_path, student_layers=(1,))
    assert again.run_id == teacher.run_id
    assert read_branch(bench.ledger.branch_folder(again.run_id)).digest == again.branch_digest
    assert len(list(folder.glob("logits-*.npz"))) == 1 + (again.branch_digest != teacher.branch_digest)
    assert old.exists()
    assert student.curve == first.curve


def test_damaged_logits_are_computed_again(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    task = prepare(make_task(tmp_path, "topic", n_train=40, n_dev=8), bench.backbone.tokenizer, selection="train_slice")
    (record,) = train_task(bench, task.spec, request_of(student_layers=()))
    whole = taught_by(bench, task, [record], task.fit).logits
    (path,) = bench.ledger.run_folder(record.run_id).glob("logits-*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    again = taught_by(bench, task, [record], task.fit).logits
    assert [row.tobytes() for row in again] == [row.tobytes() for row in whole]


def test_what_a_killed_run_left_beside_its_branch_is_swept(tmp_path: Path) -> None:
    (record,) = trained(tmp_path, student_layers=())
    ledger = make_bench(tmp_path).ledger
    left = ledger.run_folder(record.run_id) / ".branch.tmp-0123456789ab"
    left.mkdir()
    shutil.rmtree(ledger.branch_folder(record.run_id))
    trained(tmp_path, student_layers=())
    assert not left.exists()


def test_new_heads_are_named(tmp_path: Path) -> None:
    notebook = Notebook()
    trained(tmp_path, full=True, student_layers=(1,), notebook=notebook)
    cls_head = "head.pooler.weight, head.pooler.bias, head.output.weight, head.output.bias"
    # Full and partial fine-tuning start with a new head; the student starts with its teacher's.
    assert [note for note in notebook.notes if "new head" in note] == [f"task 'topic': new head: {cls_head}"] * 2


def test_a_student_from_the_backbone_has_a_new_head_too(tmp_path: Path) -> None:
    notebook = Notebook()
    trained(tmp_path, "places", student_inits=("backbone",), notebook=notebook)
    heads = [note for note in notebook.notes if "new head" in note]
    assert heads == ["task 'places': new head: head.output.weight, head.output.bias"] * 2


def test_cut_rows_unseen_labels_and_the_teacher_are_told(tmp_path: Path) -> None:
    notebook = Notebook()
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8, max_length=8)
    path = Path(task.data.dev or "")
    path.write_text(
        path.read_text() + '{"text": "no", "label": "unheard"}\n' + '{"text": "a b c d e f g h i j", "label": "rain"}\n'
    )
    train_task(make_bench(tmp_path, reporter=notebook), task, request_of())
    assert "task 'topic': 1 of 50 rows were cut to max_length tokens" in notebook.notes
    assert "task 'topic': 1 dev labels are not in train and count as errors" in notebook.notes
    assert any(note.startswith("task 'topic': the teacher has 2 layers (accuracy ") for note in notebook.notes)


def test_students_that_do_not_fit_above_the_teachers_exit_are_told_and_passed_over(tmp_path: Path) -> None:
    notebook = Notebook()
    records = trained(tmp_path, layers=(1,), student_layers=(1, 2), notebook=notebook)
    assert [r.spec.own_layers for r in records if r.spec.arm == "student"] == [1]
    assert any(
        "no student of 2 layers at the teacher's exit layer 3, which leaves 1" in note for note in notebook.notes
    )


def test_students_without_a_teacher_are_told_and_passed_over(tmp_path: Path) -> None:
    notebook = Notebook()
    assert [r.spec.arm for r in trained(tmp_path, layers=(), full=True, notebook=notebook)] == ["full"]
    assert any("no students, which need a partially fine-tuned teacher (--layers)" in note for note in notebook.notes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": ()}, "nothing to do; give at least one of --layers, or --full"),
        ({"seeds": ()}, "no seeds"),
        ({"seeds": (0, -1)}, "seed -1 is below 0"),
        ({"seeds": (0, 1, 0)}, "--seeds 0, 1, 0 names one twice"),
        ({"layers": (2, 2)}, "--layers 2, 2 names one twice"),
        ({"layers": (5,)}, r"--layers 5 is outside 1\.\.4"),
        ({"layers": (0,)}, r"--layers 0 is outside 1\.\.4"),
        ({"student_layers": (-1,)}, "--students -1 is below 0"),
        ({"student_layers": (3, 4)}, r"--students 3 is more layers than any teacher tunes; .* have 0\.\.2"),
        ({"student_layers": (2,), "student_exits": (3,)}, "a student of 2 layers at exit layer 3 does not fit"),
        ({"student_exits": (-1,)}, "at exit layer -1 does not fit"),
        ({"teacher_layers": (3,)}, "teacher_layers 3 is not among --layers 2"),
        ({"teacher_layers": ()}, "teacher_layers is empty; students need a teacher"),
        ({"layers": (2, 4), "teacher_layers": (2,), "student_layers": (3,)}, r"have 0\.\.2"),
    ],
    ids=str,
)
def test_requests_that_the_backbone_cannot_meet_are_refused_before_any_work(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_request(request_of(**fields), 4)
    with pytest.raises(SpecError, match=message):
        trained(tmp_path, **fields)
    assert make_bench(tmp_path).ledger.records() == []


def test_rows_longer_than_the_backbone_has_positions_for_are_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path, "topic", max_length=65)
    with pytest.raises(SpecError, match="max_length 65 is more than the 64 tokens"):
        train_task(make_bench(tmp_path), task, request_of())


def test_a_ledger_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(TrainingError, match=r"ledger .* cannot be written"):
        make_bench(tmp_path)


def test_frozen_parameters_are_the_same_after_training(tmp_path: Path) -> None:
    backbone = backbone_of("mpnet")
    before = digest(backbone)
    bench = make_bench(tmp_path, backbone=backbone)
    trunk_before = {name: value.clone() for name, value in bench.trunk.state_dict().items()}
    train_task(bench, make_task(tmp_path, "topic", n_train=40, n_dev=8), request_of(full=True))
    assert digest(backbone) == before
    for name, value in bench.trunk.state_dict().items():
        assert value.numpy().tobytes() == trunk_before[name].numpy().tobytes(), name


def step_0(bench: Workbench, folder: Path, *, exit_layer: int, own_layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a student before its first step, and of its teacher without the layers above the student's."""
    task = prepare(make_task(folder, "topic", n_train=40, n_dev=8), bench.backbone.tokenizer, selection="train_slice")
    (record,) = train_task(bench, task.spec, request_of(layers=(3,), student_layers=()))
    teacher = read_branch(bench.ledger.branch_folder(record.run_id)).tensors
    last = exit_layer + own_layers
    start = initial_tensors(bench.backbone, teacher, exit_layer=exit_layer, own_layers=own_layers)
    found = []
    for exit_, start_ in ((exit_layer, start), (1, Start(teacher, head=True))):
        spec = msgspec.structs.replace(record.spec, exit_layer=exit_, own_layers=last - exit_)
        model = build_model(bench, task, spec, start_)
        assert isinstance(model, Branch)
        found.append(np.stack(predict_logits(model, source_of(bench, task.fit, spec, dtype="float32"), task.fit)))
    return found[0], found[1]


@pytest.mark.parametrize(("exit_layer", "own_layers"), [(1, 1), (1, 2), (0, 2), (0, 3)])
def test_a_student_at_step_0_equals_the_teachers_bottommost_layers(
    tmp_path: Path, exit_layer: int, own_layers: int
) -> None:
    # The teacher leaves at layer 1. A student that leaves below starts with the backbone's own layer 0, which is what
    # the teacher has there.
    student, teacher = step_0(make_bench(tmp_path), tmp_path, exit_layer=exit_layer, own_layers=own_layers)
    np.testing.assert_allclose(student, teacher, atol=1e-5)
    if exit_layer == 1:
        assert student.tobytes() == teacher.tobytes()


def test_layers_that_the_teacher_did_not_tune_start_from_the_backbone() -> None:
    backbone = backbone_of()
    teacher = {name: array + 1 for name, array in backbone.tensors.items() if name.startswith("layers.3.")}
    teacher["head.output.weight"] = np.ones((2, 16), dtype=np.float32)
    start = initial_tensors(backbone, teacher, exit_layer=2, own_layers=2)
    assert start.head
    for name, array in start.tensors.items():
        source = backbone.tensors if name.startswith("layers.2.") else teacher
        assert (array == source[name]).all(), name
    assert not initial_tensors(backbone, None, exit_layer=2, own_layers=2).head


def test_the_teachers_logits_are_those_of_its_best_epoch(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    task = prepare(make_task(tmp_path, "topic", n_train=40, n_dev=8), bench.backbone.tokenizer, selection="train_slice")
    (record,) = train_task(bench, task.spec, request_of(student_layers=()))
    taught = taught_by(bench, task, [record], task.fit).logits
    again = taught_by(bench, task, [record], task.fit)
    assert again.flops == 0
    kept = again.logits
    assert [row.tobytes() for row in kept] == [row.tobytes() for row in taught]
    folder = bench.ledger.branch_folder(record.run_id)
    with open_fp32(merge([folder], bench.backbone, tmp_path / "bundle").path) as engine:
        served = engine.logits(task.fit.examples, "topic")
    np.testing.assert_allclose(np.stack(taught), np.stack(served), atol=1e-4)


def bare(record: RunRecord) -> Any:
    return record.curve, record.dev_metric, record.selection_metric, record.best_epoch


def test_seeds_reproduce_every_figure_and_bit(tmp_path: Path) -> None:
    folders = (tmp_path / "first", tmp_path / "second")
    runs = [trained(folder, "places", seeds=(7,), student_layers=(1,)) for folder in folders]
    assert [bare(r) for r in runs[0]] == [bare(r) for r in runs[1]]
    for record in runs[0]:
        first, second = (read_branch(folder / "runs" / "runs" / record.run_id / "branch") for folder in folders)
        assert first.tensors.keys() == second.tensors.keys()
        assert all(first.tensors[name].tobytes() == second.tensors[name].tobytes() for name in first.tensors)
        assert first.golden == second.golden


def test_a_record_holds_the_figures_of_the_best_epoch(tmp_path: Path) -> None:
    notebook = Notebook()
    request = quick_request(student_layers=(), layers=(2,))
    bench = make_bench(tmp_path, reporter=notebook)
    (record,) = train_task(bench, make_task(tmp_path, "topic", n_train=40, n_dev=8), request)
    assert [point.epoch for point in record.curve] == [0, 1, 2, 3, 4]
    assert record.selection_metric == record.curve[record.best_epoch].selection_metric
    assert record.selection_metric == max(point.selection_metric for point in record.curve[1:])
    assert (record.n_train_rows, record.sizes.n_layers, record.backbone) == (20, 4, "tiny-bert")
    assert notebook.finished == [(record, False)]
    spec = read_branch(bench.ledger.branch_folder(record.run_id)).spec
    assert (spec.provenance.selection_metric, spec.provenance.dev_metric) == (
        record.selection_metric,
        record.dev_metric,
    )
    assert spec.provenance.run_id == record.run_id


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, Engine]]:
    """All tasks trained, planned and merged: the folder, the plan, the engine."""
    folder = tmp_path_factory.mktemp("merged")
    bench = make_bench(folder)
    for index, name in enumerate(TASKS):
        task = make_task(folder, name, n_train=40, n_dev=8)
        train_task(bench, task, request_of(layers=(1 + index % 3,), student_layers=(0, 1)))
    plan = plan_runs(bench.ledger.folder, min_gain=1.0)
    bundle = merge(
        [Path(task.branch) for task in plan.tasks],
        bench.backbone,
        folder / "bundle",
        digests=[task.branch_digest for task in plan.tasks],
    )
    with open_fp32(bundle.path) as engine:
        yield folder, plan, engine


def test_the_merged_bundle_is_what_was_planned_and_verifies(merged: tuple[Path, Any, Engine]) -> None:
    folder, plan, engine = merged
    assert tuple(engine.specs) == tuple(task.task for task in plan.tasks)
    assert [(s.exit_layer, s.own_layers) for s in engine.specs.values()] == [
        (task.exit_layer, task.own_layers) for task in plan.tasks
    ]
    assert verify(folder / "bundle").largest_difference <= 1e-4


@pytest.mark.parametrize("name", TASKS)
def test_merged_output_equals_the_single_task_output_in_bits(merged: tuple[Path, Any, Engine], name: str) -> None:
    folder, plan, engine = merged
    (planned,) = [task for task in plan.tasks if task.task == name]
    alone_path = folder / f"alone-{name}"
    alone_bundle = merge([Path(planned.branch)], backbone_of(), alone_path)
    pair = "yes we do" if name == "reply" else None
    rows = [Example(text=text, text_pair=pair) for text in ("play music", "it is a rain day in new york", "no")]
    with open_fp32(alone_bundle.path) as alone:
        for one, other in zip(engine.logits(rows, name), alone.logits(rows, name), strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_run_spec_names_everything_that_decides_the_run(tmp_path: Path) -> None:
    (record,) = trained(tmp_path, student_layers=())
    assert record.spec.backbone_digest == backbone_of().chain[-1]
    assert record.run_id == record.spec.run_id
    (other,) = trained(tmp_path, student_layers=(), selection="dev")
    assert other.run_id != record.run_id


def test_another_dropout_is_another_run(tmp_path: Path) -> None:
    (record,) = trained(tmp_path, student_layers=())
    backbone = backbone_of()
    wetter = replace(backbone, config=msgspec.structs.replace(backbone.config, hidden_dropout=0.5))
    assert wetter.chain == backbone.chain
    bench = make_bench(tmp_path, backbone=wetter)
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    (other,) = train_task(bench, task, request_of(student_layers=()))
    assert other.run_id != record.run_id
    assert other.curve != record.curve


def test_words_without_a_token_do_not_shift_the_kept_logits_of_a_teacher(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    spec = make_task(tmp_path, "places", n_train=40, n_dev=8)
    path = Path(spec.data.train or "")
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    # Cut to eight tokens, the words behind them have none.
    long = [{"tokens": row["tokens"] * 3, "tags": row["tags"] * 3} for row in rows]
    write_rows(path, long)
    task = prepare(msgspec.structs.replace(spec, max_length=8), bench.backbone.tokenizer, selection="train_slice")
    (record,) = train_task(bench, task.spec, request_of(student_layers=()))
    assert any((places < 0).any() for places in task.fit.positions or ())
    taught = taught_by(bench, task, [record], task.fit).logits
    again = taught_by(bench, task, [record], task.fit)
    kept = again.logits
    assert [row.shape for row in kept] == [row.shape for row in taught]
    assert all((a == b).all() for a, b in zip(kept, taught, strict=True))


def test_what_was_asked_for_last_is_planned_even_if_it_was_run_before(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    first = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    shorter = msgspec.structs.replace(first, max_length=8)
    runs = [train_task(bench, task, request_of(student_layers=()))[0] for task in (first, shorter, first)]
    assert runs[0].run_id == runs[2].run_id != runs[1].run_id
    plan = plan_runs(bench.ledger.folder, min_gain=1.0)
    assert [task.run_id for task in plan.tasks] == [runs[0].run_id]
    assert plan.n_runs_left_out == 1


@pytest.mark.parametrize("teacher", [1, 2, 3])
def test_only_those_layers_teach_that_may(tmp_path: Path, teacher: int) -> None:
    records = trained(tmp_path, layers=(1, 2, 3), teacher_layers=(teacher,), student_layers=(1,))
    (taught_by,) = records[-1].spec.label_teachers
    assert [r.spec.own_layers for r in records if r.run_id == taught_by] == [teacher]
    assert records[-1].spec.exit_layer == 4 - teacher


def test_each_task_may_have_a_request_of_its_own_and_a_deadline_ends_both(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    tasks = [make_task(tmp_path, name, n_train=40, n_dev=8) for name in ("topic", "mood")]
    asked = [(task, request_of(layers=(n,), student_layers=())) for n, task in enumerate(tasks, start=1)]
    assert train_each(bench, asked, deadline=time.monotonic() - 1) == []
    assert [(r.spec.task, r.spec.own_layers) for r in train_each(bench, asked)] == [("topic", 1), ("mood", 2)]


def test_every_task_is_checked_before_the_first_run(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    good = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    bad = msgspec.structs.replace(good, name="other", max_length=4096)
    with pytest.raises(SpecError, match="'other': max_length 4096"):
        train_tasks(bench, [good, bad], request_of())
    assert bench.ledger.records() == []


def test_a_candidate_of_three_seeds_outranks_a_lucky_one() -> None:
    steady = [run_record(points, seed=seed) for seed, points in enumerate((80.0, 60.0, 61.0))]
    lucky = run_record(70.0, hyperparameters=Hyperparameters(learning_rate=1e-5))
    (candidate,) = candidates_of([*steady, lucky])
    assert candidate.seeds == (0, 1, 2)


def test_poolings_of_one_task_compete(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    for pooling in ("cls", "mean"):
        train_task(bench, msgspec.structs.replace(task, pooling=pooling), request_of(student_layers=()))
    assert plan_runs(bench.ledger.folder, min_gain=1.0).n_runs_left_out == 0
    assert {c.pooling for c in candidates_of(bench.ledger.records())} == {"cls", "mean"}


def test_rows_without_a_label_are_learned_from_the_teacher_alone(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    task = make_task(tmp_path, "topic", n_train=60, n_dev=8)
    path = Path(task.data.train or "")
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    path.write_bytes(
        b"".join(msgspec.json.encode(row | ({"label": None} if i % 2 else {})) + b"\n" for i, row in enumerate(rows))
    )
    prepared = prepare(task, bench.backbone.tokenizer, selection="train_slice")
    assert len(prepared.selection) == 15
    assert all(example.target is not None for example in prepared.selection.examples)
    assert sum(example.target is None for example in prepared.fit.examples) == 30
    partial_run, student = train_task(bench, task, request_of(student_layers=(1,)))
    assert (partial_run.spec.arm, partial_run.n_train_rows) == ("partial", 15)
    assert (student.spec.arm, student.n_train_rows) == ("student", 45)


def test_students_of_a_task_come_before_the_next_task(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    tasks = [make_task(tmp_path, name, n_train=40, n_dev=8) for name in ("topic", "mood")]
    records = train_tasks(bench, tasks, request_of(layers=(1, 2), student_layers=(1,)))
    order = [(record.spec.task, record.spec.arm) for record in bench.ledger.records()]
    assert order == [(task, arm) for task in ("topic", "mood") for arm in ("partial", "partial", "student")]
    assert [record.run_id for record in records] == [record.run_id for record in bench.ledger.records()]


def test_no_run_begins_after_the_deadline(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    assert train_each(bench, [(task, request_of())], deadline=time.monotonic() - 1) == []
    assert bench.ledger.records() == []


def test_rows_without_a_label_leave_a_subset_its_labelled_rows(tmp_path: Path) -> None:
    task = make_task(tmp_path, "topic", n_train=60, n_dev=8)
    path = Path(task.data.train or "")
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    bare_rows = [{"text": row["text"] + " indeed", "label": None} for row in rows for _ in range(3)]
    write_rows(path, [*rows, *bare_rows])
    prepared = prepare(task, make_bench(tmp_path).backbone.tokenizer, selection="train_slice")
    subset = learned_rows(prepared, run_spec(fit_rows=20))
    assert len(subset) == 20
    assert all(example.target is not None for example in subset.examples)
