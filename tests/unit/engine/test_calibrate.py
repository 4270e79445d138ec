"""Calibrating a task of a bundle."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import backbone_of, make_bundle, put_branch, tree_bytes
from tests.tiny_tasks import write_rows
from trunkline.bundle.merge import replace
from trunkline.bundle.store import open_bundle, read_branch
from trunkline.core.errors import BundleError, DataError, SpecError, UnknownNameError
from trunkline.core.specs import BranchSpec, Calibration, DataSpec, TaskSpec
from trunkline.engine import calibrate as calibrating
from trunkline.engine.calibrate import calibrate
from trunkline.engine.engine import Engine
from trunkline.engine.verify import verify

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
    assert verify(bundle.path).largest_difference == 0.0
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


def test_thresholds_never_lower_the_f1_of_their_rows_by_label(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "topics")
    done = calibrate(bundle.path, task_of(tmp_path, "topics", "multilabel"))
    assert done.calibration.thresholds is not None
    assert len(done.calibration.thresholds) == 3
    assert Engine.open(bundle.path).specs["topics"].calibration == done.calibration


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
