"""Calibrating a task of a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import backbone_of, make_bundle, put_branch, tree_bytes
from tests.tiny_tasks import write_rows
from trunkline.bundle.merge import replace
from trunkline.bundle.store import open_bundle, read_branch
from trunkline.core.errors import BundleError, DataError, SpecError, UnknownNameError
from trunkline.core.specs import BranchSpec, Calibration, DataSpec, TaskSpec
from trunkline.data.read import read_part
from trunkline.data.split import selection_slice
from trunkline.engine import calibrate as calibrating
from trunkline.engine.calibrate import calibrate, calibrate_tasks
from trunkline.engine.engine import Engine
from trunkline.engine.evaluate import evaluate
from trunkline.engine.verify import verify
from trunkline.model.score import answer

Open = Callable[..., Engine]
LABELS = {"intent": ("book", "music", "weather"), "topics": ("food", "news", "travel")}


def task_of(folder: Path, name: str, kind: str = "classification", *, count: int = 40) -> TaskSpec:
    rng = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join(rng.choice(["play", "rain", "paris", "music"], 3)),
            "label": str(rng.choice(LABELS.get(name, LABELS["intent"]))),
            "labels": [label for label in LABELS["topics"] if rng.random() < 0.5],
        }
        for _ in range(count)
    ]
    path = write_rows(folder / f"{name}.jsonl", rows)
    return msgspec.convert(
        {"name": name, "kind": kind, "data": msgspec.to_builtins(DataSpec(train=str(path)))}, TaskSpec
    )


def test_the_branch_is_replaced_with_its_new_calibration_and_nothing_else(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent", "topics")
    before = bundle.branch("intent")
    done = calibrate(bundle.path, task_of(tmp_path, "intent"))
    after = open_bundle(bundle.path).branch("intent")
    assert after.digest == done.branch != before.digest
    assert after.spec == msgspec.structs.replace(before.spec, calibration=done.calibration)
    assert all(after.tensors[name].tobytes() == before.tensors[name].tobytes() for name in before.tensors)
    assert open_bundle(bundle.path).manifest.tasks["topics"] == bundle.manifest.tasks["topics"]
    verify(bundle.path)
    assert done.n_rows == 20


def test_calibrating_twice_changes_nothing_more(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent")
    first = calibrate(bundle.path, task_of(tmp_path, "intent"))
    tree = tree_bytes(bundle.path)
    assert calibrate(bundle.path, task_of(tmp_path, "intent")).branch == first.branch
    assert tree_bytes(bundle.path) == tree


def test_a_branch_that_another_writer_put_there_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, "intent")
    newer = put_branch(tmp_path / "newer", "intent", backbone_of(), seed=7)

    def fit_while_another_replaces(branch: BranchSpec, *_: object) -> Calibration:
        replace(bundle, newer)
        return branch.calibration

    monkeypatch.setattr(calibrating, "fit_calibration", fit_while_another_replaces)
    with pytest.raises(BundleError, match="another writer came first"):
        calibrate(bundle.path, task_of(tmp_path, "intent"))
    assert open_bundle(bundle.path).branch("intent").digest == read_branch(newer).digest


def test_thresholds_never_lower_the_f1_of_their_rows_by_label(tmp_path: Path, open_engine: Open) -> None:
    bundle = make_bundle(tmp_path, "topics")
    task = task_of(tmp_path, "topics", "multilabel")
    stored = bundle.branch("topics").spec
    engine = open_engine(bundle.path)
    train = read_part(task, "train")
    scores = np.stack(engine.logits(train, "topics"))
    right = scores > 0.5  # So that 0.5, which stands for a logit of 0, is not the best threshold of every label.
    labelled = [
        {"text": row.text, "labels": [label for label, given in zip(stored.labels, line, strict=True) if given]}
        for row, line in zip(train, right, strict=True)
    ]
    write_rows(Path(str(task.data.train)), labelled)
    rows = selection_slice(read_part(task, "train"))[1]
    logits = engine.logits(rows, "topics")
    done = calibrate(bundle.path, task)
    after = open_engine(bundle.path).specs["topics"]
    assert after.calibration == done.calibration
    halves = msgspec.structs.replace(done.calibration, thresholds=(0.5,) * 3)
    for index, label in enumerate(stored.labels):
        wanted = np.array([label in (row.target or ()) for row in rows])  # type: ignore[operator]
        best, plain = (
            f1(np.array([label in answer(row, spec) for row in logits]), wanted)  # type: ignore[operator]
            for spec in (after, msgspec.structs.replace(after, calibration=halves))
        )
        assert best >= plain, (index, label)
    assert done.calibration.thresholds != (0.5,) * 3


def f1(given: np.ndarray, wanted: np.ndarray) -> float:
    return float(2 * (given & wanted).sum() / max(1, given.sum() + wanted.sum()))


def test_figures_of_former_thresholds_are_not_kept(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "topics")
    assert bundle.branch("topics").spec.provenance.dev_metric == 79.5
    done = calibrate(bundle.path, task_of(tmp_path, "topics", "multilabel"))
    provenance = open_bundle(bundle.path).branch("topics").spec.provenance
    assert (provenance.selection_metric, provenance.dev_metric) == (done.metric_after, None)
    assert open_bundle(bundle.path).manifest.tasks["topics"].dev_metric is None


@pytest.mark.parametrize(("name", "kind"), [("intent", "classification"), ("topics", "multilabel")])
def test_the_dev_metric_is_measured_again_where_there_are_dev_rows(
    tmp_path: Path, open_engine: Open, name: str, kind: str
) -> None:
    bundle = make_bundle(tmp_path, name)
    task = task_of(tmp_path, name, kind)
    task = msgspec.structs.replace(task, data=DataSpec(train=task.data.train, dev=task.data.train))
    calibrate(bundle.path, task)
    measured = evaluate(open_engine(bundle.path), task, "dev").points
    assert open_bundle(bundle.path).branch(name).spec.provenance.dev_metric == measured != 79.5


def test_rows_that_are_not_fitted_on_are_not_counted_and_unknown_labels_are(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent")
    task = task_of(tmp_path, "intent")
    path = Path(str(task.data.train))
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    sliced = {row.text for row in selection_slice(read_part(task, "train"))[1]}
    assert len(sliced) > 2
    strange, unlabelled = sorted(sliced)[:2]
    for row in rows:
        row["label"] = {strange: "flight", unlabelled: None}.get(row["text"], row["label"])
    write_rows(path, rows)
    texts = [row.text for row in selection_slice(read_part(task, "train"))[1]]
    done = calibrate(bundle.path, task)
    assert done.n_unseen_labels == texts.count(strange) > 0
    assert done.n_rows == len(texts) - texts.count(strange) - texts.count(unlabelled)


def test_a_slice_without_errors_puts_the_temperature_at_the_edge_and_this_is_said(
    tmp_path: Path, open_engine: Open
) -> None:
    bundle = make_bundle(tmp_path, "intent")
    task = task_of(tmp_path, "intent")
    assert not calibrate(bundle.path, task).temperature_at_edge
    engine = open_engine(bundle.path)
    rows = [{"text": row.text, "label": engine.answers([row], "intent")[0]} for row in read_part(task, "train")]
    write_rows(Path(str(task.data.train)), rows)
    done = calibrate(bundle.path, task)
    assert done.temperature_at_edge
    assert done.calibration.temperature == pytest.approx(0.05, rel=1e-3)


def test_a_task_that_cannot_be_calibrated_leaves_those_before_it_as_they_were(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent", "topics")
    tree = tree_bytes(bundle.path)
    broken = task_of(tmp_path, "topics", "multilabel")
    write_rows(Path(str(broken.data.train)), [{"text": "no"}])
    with pytest.raises(DataError, match="labels"):
        calibrate_tasks(bundle.path, [task_of(tmp_path, "intent"), broken])
    assert tree_bytes(bundle.path) == tree


def test_all_tasks_are_checked_before_rows_are_read(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent", "slots")
    absent = TaskSpec(name="intent", kind="classification", data=DataSpec(train=str(tmp_path / "absent.jsonl")))
    with pytest.raises(UnknownNameError, match="topic"):
        calibrate_tasks(bundle.path, [absent, TaskSpec(name="topic", kind="classification")])
    with pytest.raises(SpecError, match="has no train data"):
        calibrate_tasks(bundle.path, [absent, TaskSpec(name="slots", kind="tagging")])
    slots = TaskSpec(name="slots", kind="tagging", data=absent.data)
    with pytest.raises(DataError, match="a tagging branch has no probabilities"):
        calibrate_tasks(bundle.path, [absent, slots])


def test_a_replacement_that_fails_later_says_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path, "intent", "topics")
    newer = put_branch(tmp_path / "newer", "topics", backbone_of(), seed=7)
    fit = calibrating.fit_calibration

    def fit_while_another_replaces(branch: BranchSpec, *rows: Any) -> Calibration:
        if branch.task == "topics":
            replace(bundle, newer)
        return fit(branch, *rows)

    monkeypatch.setattr(calibrating, "fit_calibration", fit_while_another_replaces)
    before = bundle.branch("intent").digest
    with pytest.raises(BundleError, match=r"came first.*replaced before: intent; as they were: topics"):
        calibrate_tasks(bundle.path, [task_of(tmp_path, "intent"), task_of(tmp_path, "topics", "multilabel")])
    assert open_bundle(bundle.path).branch("intent").digest != before
    assert open_bundle(bundle.path).branch("topics").digest == read_branch(newer).digest


@pytest.mark.parametrize("abstain_below", [-0.1, 1.5, float("nan")])
def test_abstention_outside_0_to_1_is_refused_before_anything_is_done(tmp_path: Path, abstain_below: float) -> None:
    bundle = make_bundle(tmp_path, "intent")
    absent = TaskSpec(name="intent", kind="classification", data=DataSpec(train=str(tmp_path / "absent.jsonl")))
    with pytest.raises(SpecError, match=r"abstain_below: .* is outside 0\.\.1"):
        calibrate(bundle.path, absent, abstain_below=abstain_below)


def test_only_classification_abstains(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "topics")
    with pytest.raises(SpecError, match="a multilabel branch cannot abstain"):
        calibrate(bundle.path, task_of(tmp_path, "topics", "multilabel"), abstain_below=0.5)


def test_an_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent")
    with pytest.raises(UnknownNameError, match="did you mean 'intent'"):
        calibrate(bundle.path, task_of(tmp_path, "intents"))


def test_a_task_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent")
    with pytest.raises(SpecError, match="the task file says multilabel of text; the branch is classification of text"):
        calibrate(bundle.path, task_of(tmp_path, "intent", "multilabel"))


def test_kinds_without_probabilities_are_refused_before_their_rows_are_read(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "urgency")
    task = TaskSpec(name="urgency", kind="regression", data=DataSpec(train=str(tmp_path / "absent.jsonl")))
    with pytest.raises(DataError, match="a regression branch has no probabilities to calibrate"):
        calibrate(bundle.path, task)
