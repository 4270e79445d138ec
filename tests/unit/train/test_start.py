"""Warm starts: which layers and which lines of the head come from an older branch."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import backbone_of, put_branch
from tests.tiny_records import run_spec
from tests.tiny_tasks import QUICK, Notebook, make_bench, make_task, quick_request, rows_of, write_rows
from trunkline.bundle.store import StoredBranch, read_branch
from trunkline.core.errors import MissingBranchError, TrunkMismatchError
from trunkline.core.specs import TaskSpec, read_task
from trunkline.model.branch import Branch
from trunkline.model.heads import init_head
from trunkline.train.bench import Workbench, source_of
from trunkline.train.candidates import best_partial, candidates_of
from trunkline.train.loop import predict_logits
from trunkline.train.pipeline import train_task
from trunkline.train.prepare import PreparedTask, prepare
from trunkline.train.run import Start, build_model
from trunkline.train.spec import Distillation, Hyperparameters, Preset, RunRecord, RunSpec
from trunkline.train.start import read_start, taken_over, warm_start

ONE_EPOCH = msgspec.structs.replace(QUICK, epochs=1)
SHORT = Preset(full=ONE_EPOCH, partial=ONE_EPOCH, student=ONE_EPOCH, distillation=Distillation())
BACKBONE = backbone_of()


def redefined(folder: Path, name: str = "topic", **renamed: str) -> TaskSpec:
    """One of the sample tasks with other labels: ``rain="storm"`` renames one, and so adds a new one."""
    task = make_task(folder, name, n_train=40, n_dev=8)
    for part, seed in ((task.data.train, 0), (task.data.dev, 1)):
        rows = rows_of(name, 40 if seed == 0 else 8, seed=seed)
        key = {"topics": "labels", "places": "tags"}.get(name, "label")
        for row in rows:
            row[key] = [renamed.get(v, v) for v in row[key]] if key != "label" else renamed.get(row[key], row[key])
        write_rows(Path(part or ""), rows)
    return read_task(folder / f"{name}.yaml")


def prepared(task: TaskSpec) -> PreparedTask:
    return prepare(task, BACKBONE.tokenizer, selection="train_slice")


def old_branch(folder: Path, **changes: Any) -> StoredBranch:
    """A branch of task topic that tuned layers 1 and 2."""
    fields: dict[str, Any] = {"kind": "classification", "labels": ("movie", "music", "rain"), "pooling": "cls"}
    fields |= {"exit_layer": 1, "own_layers": 2}
    return read_branch(put_branch(folder, str(changes.pop("task", "topic")), BACKBONE, **(fields | changes)))


def spec_of(task: PreparedTask, *, exit_layer: int = 1, seed: int = 3) -> RunSpec:
    return run_spec(
        task=task.spec.name, exit_layer=exit_layer, own_layers=4 - exit_layer, seed=seed, init="branch",
        pooling=task.spec.pooling, cache_dtype="float32",
    )  # fmt: skip


def fresh_head(task: PreparedTask, spec: RunSpec) -> dict[str, np.ndarray]:
    branch = Branch.build(
        BACKBONE.config, exit_layer=4, own_layers=0, kind=task.spec.kind, pooling=spec.pooling,
        n_outputs=task.n_outputs, seed=0,
    )  # fmt: skip
    init_head(branch.head, seed=spec.seed)
    return branch.tensors()


def step_0(bench: Workbench, task: PreparedTask, *starts: Start) -> list[np.ndarray]:
    """What runs of three layers answer before their first step."""
    spec = spec_of(task)
    source = source_of(bench, task.fit, spec, dtype="float32")
    return [np.stack(predict_logits(build_model(bench, task, spec, start), source, task.fit)) for start in starts]


def test_layers_that_the_branch_tuned_start_from_it_and_others_from_the_backbone(tmp_path: Path) -> None:
    branch, task = old_branch(tmp_path / "old"), prepared(make_task(tmp_path, "topic"))
    for exit_layer in range(5):
        start = warm_start(BACKBONE, task, branch, spec_of(task, exit_layer=exit_layer))
        layers = {name for name in start.tensors if name.startswith("layers.")}
        assert {int(name.split(".")[1]) for name in layers} == set(range(exit_layer, 4))
        for name in layers:
            source = branch.tensors if name.startswith(("layers.1.", "layers.2.")) else BACKBONE.tensors
            assert start.tensors[name].tobytes() == source[name].tobytes(), name


def test_with_equal_labels_step_0_answers_as_the_branch_did(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(make_task(tmp_path, "topic", n_train=40))
    branch = old_branch(tmp_path / "old", exit_layer=1, own_layers=3)
    warm, old = step_0(bench, task, warm_start(BACKBONE, task, branch, spec_of(task)), Start(branch.tensors, head=True))
    assert warm.tobytes() == old.tobytes()


def test_lines_of_the_head_are_taken_over_by_the_name_of_their_label(tmp_path: Path) -> None:
    # movie, music, rain become drama, music, movie in the order of the new labels: drama, movie, music.
    branch = old_branch(tmp_path / "old")
    task = prepared(redefined(tmp_path, movie="drama", rain="movie"))
    assert task.labels == ("drama", "movie", "music")
    spec = spec_of(task)
    start, fresh = warm_start(BACKBONE, task, branch, spec), fresh_head(task, spec)
    assert start.head
    for part in ("head.output.weight", "head.output.bias"):
        found, old = start.tensors[part], branch.tensors[part]
        assert (found[0] == fresh[part][0]).all()
        assert (found[1] == old[0]).all()
        assert (found[2] == old[1]).all()
    for part in ("head.pooler.weight", "head.pooler.bias"):
        assert (start.tensors[part] == branch.tensors[part]).all()


def test_the_lines_of_new_labels_are_drawn_with_the_seed_of_the_run(tmp_path: Path) -> None:
    branch, task = old_branch(tmp_path / "old"), prepared(redefined(tmp_path, rain="storm"))
    first, second = (
        warm_start(BACKBONE, task, branch, spec_of(task, seed=seed)).tensors["head.output.weight"] for seed in (1, 2)
    )
    assert (first[:2] == second[:2]).all()
    assert (first[2] != second[2]).all()


def test_a_new_label_among_several_starts_at_its_share_of_the_rows(tmp_path: Path) -> None:
    branch = old_branch(tmp_path / "old", task="topics", kind="multilabel")
    task = prepared(redefined(tmp_path, "topics", rain="storm"))
    bias = warm_start(BACKBONE, task, branch, spec_of(task)).tensors["head.output.bias"]
    share = np.mean([target[2] for target in task.fit.targets])
    assert task.labels == ("movie", "music", "storm")
    assert bias[:2].tolist() == branch.tensors["head.output.bias"][:2].tolist()
    assert bias[2] == pytest.approx(np.log(share / (1 - share)), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"labels": ("good", "bad")}, {"kind": "multilabel"}, {"pooling": "mean"}],
    ids=str,
)
def test_a_head_that_does_not_fit_starts_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    branch, task = old_branch(tmp_path / "old", **changes), prepared(make_task(tmp_path, "topic"))
    start = warm_start(BACKBONE, task, branch, spec_of(task))
    assert not start.head
    assert not any(name.startswith("head.") for name in start.tensors)
    assert "new head" in taken_over(task, branch.spec, spec_of(task))


def test_a_tagger_takes_over_the_lines_of_its_tags(tmp_path: Path) -> None:
    labels = ("O", "B-town", "I-town", "B-city", "I-city")
    branch = old_branch(tmp_path / "old", task="places", kind="tagging", labels=labels, pooling="mean")
    task = prepared(make_task(tmp_path, "places"))
    start = warm_start(BACKBONE, task, branch, spec_of(task))
    assert task.labels == ("O", "B-city", "I-city")
    assert (start.tensors["head.output.weight"] == branch.tensors["head.output.weight"][[0, 3, 4]]).all()


def test_a_regression_says_the_same_scores_in_its_new_standard_unit(tmp_path: Path) -> None:
    bench, task = make_bench(tmp_path), prepared(make_task(tmp_path, "mood"))
    branch = old_branch(
        tmp_path / "old", task="mood", kind="regression", labels=(), exit_layer=1, own_layers=3,
        score_mean=-7.0, score_std=3.0,
    )  # fmt: skip
    new, old = step_0(bench, task, warm_start(BACKBONE, task, branch, spec_of(task)), Start(branch.tensors, head=True))
    np.testing.assert_allclose(new * task.score_std + task.score_mean, old * 3.0 - 7.0, rtol=1e-4, atol=1e-4)


def test_the_score_of_another_regression_is_not_taken_over(tmp_path: Path) -> None:
    branch = old_branch(tmp_path / "old", task="urgency", kind="regression", labels=())
    task = prepared(make_task(tmp_path, "mood"))
    assert not warm_start(BACKBONE, task, branch, spec_of(task)).head


def test_what_is_taken_over_is_told(tmp_path: Path) -> None:
    branch, task = old_branch(tmp_path / "old"), prepared(redefined(tmp_path, rain="storm"))
    assert taken_over(task, branch.spec, spec_of(task, exit_layer=2)) == (
        "task 'topic': start of 2 layers: layer 2 from branch run-topic of task 'topic'; layer 3 from the backbone; "
        "layer 1, which the branch tuned too, left to the trunk as in the backbone; head taken over for 2 of 3 labels; "
        "new: storm"
    )
    assert "start of 1 layers: no layer from branch run-topic" in taken_over(
        task, branch.spec, spec_of(task, exit_layer=3)
    )
    whole = taken_over(task, branch.spec, spec_of(task, exit_layer=0))
    assert "layers 1, 2 from branch run-topic" in whole
    assert "layers 0, 3 from the backbone" in whole
    assert "left to the trunk" not in whole


def test_a_branch_on_another_trunk_is_refused_with_both_values(tmp_path: Path) -> None:
    other = backbone_of("bert", seed=1)
    folder = put_branch(tmp_path / "old", "mood", other)
    with pytest.raises(TrunkMismatchError) as refused:
        read_start(folder, BACKBONE)
    assert other.chain[2] in str(refused.value)
    assert BACKBONE.chain[2] in str(refused.value)


def trained(folder: Path, task: TaskSpec, notebook: Notebook | None = None, **changes: Any) -> list[RunRecord]:
    fields = {"student_layers": (), "layers": (2,), "preset": SHORT}
    return train_task(make_bench(folder, reporter=notebook), task, quick_request(**(fields | changes)))


def test_a_branch_that_cannot_be_started_in_is_refused_before_any_work(tmp_path: Path) -> None:
    task = make_task(tmp_path, "topic", n_train=40, n_dev=8)
    foreign = put_branch(tmp_path / "foreign", "mood", backbone_of("bert", seed=1))
    for folder, error in ((tmp_path / "none", MissingBranchError), (foreign, TrunkMismatchError)):
        with pytest.raises(error):
            trained(tmp_path, task, init_from=str(folder))
    assert make_bench(tmp_path).ledger.records() == []


def test_a_redefined_task_starts_in_its_old_branch(tmp_path: Path) -> None:
    fast = Hyperparameters(learning_rate=1e-2, head_learning_rate=2e-2, batch_size=8, epochs=4)
    preset = Preset(full=fast, partial=fast, student=fast, distillation=Distillation())
    old_task = make_task(tmp_path / "old", "topic", n_train=240, n_dev=8, pooling="mean")
    (old,) = trained(tmp_path, old_task, preset=preset)
    folder = make_bench(tmp_path).ledger.branch_folder(old.run_id)
    task, notebook = msgspec.structs.replace(redefined(tmp_path / "new", rain="storm"), pooling="mean"), Notebook()
    cold, _ = trained(tmp_path, task, student_layers=(1,))
    warm, student = trained(tmp_path, task, notebook, init_from=str(folder), student_layers=(1,))
    assert (warm.spec.init, warm.spec.init_from) == ("branch", old.run_id)
    assert warm.run_id != cold.run_id
    assert warm.spec.variant == cold.spec.variant
    # Two of three labels are known before the first step.
    assert warm.curve[0].selection_metric > cold.curve[0].selection_metric + 10
    assert student.spec.label_teachers == (warm.run_id,)
    assert student.spec.init == "teacher"
    (note,) = [note for note in notebook.notes if "start of 2 layers" in note]
    assert (
        f"layers 2, 3 from branch {old.run_id} of task 'topic'; head taken over for 2 of 3 labels; new: storm" in note
    )
    assert not [note for note in notebook.notes if "new head" in note]
    both = candidates_of([cold, warm])
    assert {candidate.init for candidate in both} == {"backbone", "branch"}
    assert best_partial(both).selection_mean == max(cold.selection_metric, warm.selection_metric)


def test_full_fine_tuning_never_starts_in_a_branch(tmp_path: Path) -> None:
    old_branch(tmp_path / "old")
    full, warm = trained(
        tmp_path, make_task(tmp_path, "topic", n_train=40, n_dev=8), full=True, init_from=str(tmp_path / "old")
    )
    assert (full.spec.init, full.spec.init_from) == ("backbone", None)
    assert (warm.spec.init, warm.spec.init_from) == ("branch", "run-topic")
