import shutil
import threading
from pathlib import Path
from typing import Any

import filelock
import msgspec
import numpy as np
import pytest

from tests.tiny import tiny_backbone
from tests.tiny_bundles import backbone_of, make_branch, make_bundle, other_trunk, put_branch, tree_bytes
from trunkline.bundle import merge as merging
from trunkline.bundle.cut import cut
from trunkline.bundle.manifest import layer_cost
from trunkline.bundle.merge import attach, detach, merge, replace
from trunkline.bundle.store import Bundle, StoredBranch, open_bundle, read_branch, write_branch
from trunkline.core.errors import BundleError, DigestMismatchError, MissingBranchError, TrunkMismatchError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles"), "intent", "slots").path.parent


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return open_bundle(tmp_path / "bundle")


def test_a_bundle_names_every_task_in_the_order_given(bundle: Bundle) -> None:
    assert tuple(bundle.manifest.tasks) == ("intent", "slots")
    assert bundle.manifest.backbone == "tiny-bert"
    assert bundle.manifest.n_layers == 4


def test_the_trunk_holds_layers_up_to_the_deepest_exit_only(bundle: Bundle) -> None:
    layers = {name.split(".")[1] for name in bundle.trunk().tensors if name.startswith("layers.")}
    assert layers == {"0", "1"}
    assert bundle.manifest.trunk.depth == 2


def test_branches_are_copied_in_bytes(bundle: Bundle, tmp_path: Path) -> None:
    for task, entry in bundle.manifest.tasks.items():
        assert tree_bytes(bundle.path / "branches" / task / entry.branch) == tree_bytes(tmp_path / f"run-{task}")


def test_the_layer_cost_of_a_bundle_counts_the_trunk_once(bundle: Bundle) -> None:
    assert layer_cost(bundle.manifest) == 2 + 2 + 1


def test_merging_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no branch"):
        merge([], backbone_of(), tmp_path / "bundle")


def test_merging_two_branches_of_one_task_is_refused(tmp_path: Path) -> None:
    folders = [put_branch(tmp_path / f"run-{seed}", "intent", backbone_of(), seed=seed) for seed in (0, 1)]
    with pytest.raises(BundleError, match="'intent' is there twice"):
        merge(folders, backbone_of(), tmp_path / "bundle")


def test_merging_onto_another_backbone_is_refused_with_both_values(tmp_path: Path) -> None:
    folder, other = put_branch(tmp_path / "run", "intent", backbone_of()), backbone_of(seed=1)
    with pytest.raises(TrunkMismatchError) as caught:
        merge([folder], other, tmp_path / "bundle")
    assert backbone_of().chain[1] in str(caught.value)
    assert other.chain[1] in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_merging_into_a_folder_in_use_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    with pytest.raises(BundleError, match="exists already"):
        merge([tmp_path / "run-intent"], backbone_of(), bundle.path)
    assert tree_bytes(bundle.path) == before


def test_merging_compares_recorded_digests(tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "run", "intent", backbone_of())
    digest = read_branch(folder).digest
    (folder / "README.md").write_text("edited")
    with pytest.raises(DigestMismatchError, match=digest):
        merge([folder], backbone_of(), tmp_path / "bundle", digests=[digest])


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_branch(tmp_path / "run", "intent", backbone_of())

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "copy_branch", full)
    with pytest.raises(BundleError, match="No space left"):
        merge([folder], backbone_of(), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    made = make_branch("intent", backbone_of())
    made.tensors["head.output.weight"] = np.zeros((3, 8), np.float32)
    write_branch(tmp_path / "run", made.spec, made.tensors, made.golden)
    with pytest.raises(BundleError, match=r"head\.output\.weight.*\(3, 8\).*\(3, 16\)"):
        merge([tmp_path / "run"], backbone_of(), tmp_path / "bundle")


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    made = make_branch("intent", backbone_of())
    made.tensors["embeddings.word.weight"] = np.zeros((3, 8), np.float32)
    write_branch(tmp_path / "run", made.spec, made.tensors, made.golden)
    with pytest.raises(BundleError, match=r"embeddings\.word\.weight.*no such tensor"):
        merge([tmp_path / "run"], backbone_of(), tmp_path / "bundle")


def test_rows_longer_than_the_position_table_are_refused(tmp_path: Path) -> None:
    made = make_branch("intent", backbone_of())
    spec = msgspec.structs.replace(made.spec, max_length=65)
    write_branch(tmp_path / "run", spec, made.tensors, made.golden)
    with pytest.raises(BundleError, match="max_length 65"):
        merge([tmp_path / "run"], backbone_of(), tmp_path / "bundle")


def test_a_task_whose_name_is_a_path_is_refused_before_its_files_are_copied(tmp_path: Path) -> None:
    fields = {"kind": "classification", "labels": ("a", "b"), "exit_layer": 1, "own_layers": 1}
    folder = put_branch(tmp_path / "run", "../../../up", backbone_of(), **fields)
    with pytest.raises(BundleError, match="task name"):
        merge([folder], backbone_of(), tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_merging_below_the_backbones_depth_names_it_and_both_values(tmp_path: Path) -> None:
    small = tiny_backbone(n_layers=2)
    folder = put_branch(tmp_path / "run", "mood", backbone_of(), exit_layer=3)
    with pytest.raises(TrunkMismatchError, match=r"backbone 'tiny-bert' ends after layer 2") as caught:
        merge([folder], small, tmp_path / "bundle")
    assert backbone_of().chain[3] in str(caught.value)
    assert small.chain[2] in str(caught.value)


def test_a_branch_that_changes_after_it_was_read_is_taken_as_it_was_read(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_branch(tmp_path / "run", "mood", backbone_of())

    def read_and_change(path: Path) -> StoredBranch:
        stored = read_branch(path)
        (path / "README.md").write_text("another")
        return stored

    monkeypatch.setattr(merging, "read_branch", read_and_change)
    digest = read_branch(folder).digest
    attach(bundle, folder)
    assert (folder / "README.md").read_text() == "another"
    assert open_bundle(bundle.path).branch("mood").digest == digest


def test_attaching_adds_a_task_and_touches_no_other_file(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    manifest = attach(bundle, put_branch(tmp_path / "run-mood", "mood", backbone_of()))
    after = tree_bytes(bundle.path)
    assert tuple(manifest.tasks) == ("intent", "slots", "mood")
    assert open_bundle(bundle.path).manifest == manifest
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert open_bundle(bundle.path).branch("mood").spec.task == "mood"


def test_attaching_a_task_that_is_there_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    with pytest.raises(BundleError, match="use replace"):
        attach(bundle, tmp_path / "run-intent")
    assert tree_bytes(bundle.path) == before


def test_attaching_a_branch_of_another_trunk_is_refused_with_both_values(bundle: Bundle, tmp_path: Path) -> None:
    made = make_branch("mood", backbone_of())
    write_branch(tmp_path / "run", other_trunk(made.spec), made.tensors, made.golden)
    before = tree_bytes(bundle.path)
    with pytest.raises(TrunkMismatchError) as caught:
        attach(bundle, tmp_path / "run")
    assert "f" * 64 in str(caught.value)
    assert bundle.manifest.trunk.chain[2] in str(caught.value)
    assert tree_bytes(bundle.path) == before


def test_attaching_deeper_than_the_trunk_needs_the_backbone(bundle: Bundle, tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "run", "mood", backbone_of(), exit_layer=3)
    before = tree_bytes(bundle.path)
    with pytest.raises(TrunkMismatchError, match="give the backbone"):
        attach(bundle, folder)
    assert tree_bytes(bundle.path) == before


def test_attaching_with_the_backbone_extends_the_trunk_by_a_file(bundle: Bundle, tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "run", "mood", backbone_of(), exit_layer=4, own_layers=0)
    before = tree_bytes(bundle.path)
    manifest = attach(bundle, folder, backbone=backbone_of())
    after = tree_bytes(bundle.path)
    assert manifest.trunk.depth == 4
    assert manifest.trunk.chain == backbone_of().chain
    added = {name for name in after if name.startswith("trunk/") and name not in before}
    assert [name[:18] for name in added] == ["trunk/layers-2-3-" + next(iter(added))[17]]
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert open_bundle(bundle.path).trunk().chain == backbone_of().chain


def test_a_trunk_may_be_extended_twice(bundle: Bundle, tmp_path: Path) -> None:
    attach(bundle, put_branch(tmp_path / "a", "mood", backbone_of(), exit_layer=3), backbone=backbone_of())
    attach(
        bundle, put_branch(tmp_path / "b", "topics", backbone_of(), exit_layer=4, own_layers=0), backbone=backbone_of()
    )
    trunk = open_bundle(bundle.path).trunk()
    assert trunk.chain == backbone_of().chain
    assert len(open_bundle(bundle.path).manifest.trunk.files) == 5


def test_extending_by_another_backbone_is_refused_with_both_values(bundle: Bundle, tmp_path: Path) -> None:
    other = backbone_of(seed=1)
    folder = put_branch(tmp_path / "run", "mood", other, exit_layer=3)
    before = tree_bytes(bundle.path)
    with pytest.raises(TrunkMismatchError) as caught:
        attach(bundle, folder, backbone=other)
    assert bundle.manifest.trunk.chain[2] in str(caught.value)
    assert other.chain[2] in str(caught.value)
    assert tree_bytes(bundle.path) == before


def test_replacing_swaps_one_branch_and_touches_no_other_file(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    manifest = replace(bundle, put_branch(tmp_path / "run", "intent", backbone_of(), seed=7))
    after = tree_bytes(bundle.path)
    assert tuple(manifest.tasks) == ("intent", "slots")
    assert manifest.tasks["slots"] == bundle.manifest.tasks["slots"]
    assert manifest.tasks["intent"].branch != bundle.manifest.tasks["intent"].branch
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}


def test_replacing_an_unknown_task_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    with pytest.raises(MissingBranchError, match="attach adds a new one"):
        replace(bundle, put_branch(tmp_path / "run", "mood", backbone_of()))
    assert tree_bytes(bundle.path) == before


def test_replacing_by_a_branch_of_another_trunk_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    with pytest.raises(TrunkMismatchError):
        replace(bundle, put_branch(tmp_path / "run", "intent", backbone_of(seed=1)))
    assert tree_bytes(bundle.path) == before


def test_replacing_a_branch_that_is_no_longer_the_expected_one_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    expected = bundle.manifest.tasks["intent"].branch
    replace(bundle, put_branch(tmp_path / "first", "intent", backbone_of(), seed=7), expected=expected)
    before = tree_bytes(bundle.path)
    with pytest.raises(BundleError, match=f"{expected} was to be replaced, and another writer came first"):
        replace(bundle, put_branch(tmp_path / "second", "intent", backbone_of(), seed=8), expected=expected)
    assert tree_bytes(bundle.path) == before


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"labels": ("book", "music", "news")}, r"'weather'.*version 1.*'news'.*above 1"),
        ({"labels": ("weather", "music", "book")}, r"'weather'\).*'book'\)"),
        ({"kind": "multilabel"}, "kind 'classification'.*'multilabel'"),
        ({"input": "pair"}, "input 'text'.*'pair'"),
    ],
)
def test_replacing_what_answers_mean_needs_a_higher_schema_version(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], values: str
) -> None:
    before = tree_bytes(bundle.path)
    with pytest.raises(BundleError, match=values):
        replace(bundle, put_branch(tmp_path / "same", "intent", backbone_of(), **changes))
    assert tree_bytes(bundle.path) == before
    raised = put_branch(tmp_path / "raised", "intent", backbone_of(), label_schema_version=2, **changes)
    assert replace(bundle, raised).tasks["intent"].label_schema_version == 2


def test_an_open_bundle_still_reads_after_a_replace(bundle: Bundle, tmp_path: Path) -> None:
    digest = bundle.branch("intent").digest
    replace(bundle, put_branch(tmp_path / "run", "intent", backbone_of(), seed=7))
    assert bundle.branch("intent").digest == digest


def test_detaching_changes_the_manifest_alone(bundle: Bundle) -> None:
    before = tree_bytes(bundle.path)
    manifest = detach(bundle, "intent")
    after = tree_bytes(bundle.path)
    assert tuple(manifest.tasks) == ("slots",)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"manifest.json"}


def test_detaching_an_unknown_task_names_the_nearest(bundle: Bundle) -> None:
    before = tree_bytes(bundle.path)
    with pytest.raises(MissingBranchError, match=r"did you mean 'slots'\?$"):
        detach(bundle, "slot")
    assert tree_bytes(bundle.path) == before


def test_a_detached_branch_may_be_attached_again(bundle: Bundle, tmp_path: Path) -> None:
    before = tree_bytes(bundle.path)
    detach(bundle, "slots")
    attach(bundle, tmp_path / "run-slots")
    assert tree_bytes(bundle.path) == before


def test_a_damaged_leftover_is_not_attached_again(bundle: Bundle, tmp_path: Path) -> None:
    entry = detach(bundle, "slots") and bundle.manifest.tasks["slots"]
    (bundle.path / "branches" / "slots" / entry.branch / "golden.json").write_bytes(b"damaged")
    with pytest.raises(DigestMismatchError, match=r"golden\.json"):
        attach(bundle, tmp_path / "run-slots")


def test_the_last_task_may_be_detached(bundle: Bundle) -> None:
    detach(bundle, "intent")
    assert detach(bundle, "slots").tasks == {}


def test_a_change_from_an_old_view_keeps_what_others_did_since(bundle: Bundle, tmp_path: Path) -> None:
    attach(bundle, put_branch(tmp_path / "run", "mood", backbone_of()))
    assert tuple(detach(bundle, "intent").tasks) == ("slots", "mood")


def test_writers_at_the_same_time_lose_nothing(bundle: Bundle, tmp_path: Path) -> None:
    names = [f"mood-{number}" for number in range(4)]
    fields = {"kind": "classification", "labels": ("a", "b"), "exit_layer": 1, "own_layers": 1}
    folders = [put_branch(tmp_path / name, name, backbone_of(), **fields) for name in names]
    threads = [threading.Thread(target=attach, args=(bundle, folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(open_bundle(bundle.path).manifest.tasks) == {"intent", "slots", *names}


def test_a_writer_that_holds_the_lock_too_long_is_reported(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "LOCK_TIMEOUT_S", 0.01)
    with filelock.FileLock(bundle.path / ".lock"), pytest.raises(BundleError, match="another writer"):
        detach(bundle, "intent")


def test_changing_a_folder_that_is_no_bundle_leaves_no_lock(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        detach(Bundle(path=tmp_path / "empty", manifest=bundle.manifest), "intent")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_trunk_that_lies_outside_is_not_written_to(bundle: Bundle, tmp_path: Path) -> None:
    # Its files lead back inside, so that reading them is allowed.
    trunk, outside = bundle.path / "trunk", tmp_path / "outside"
    trunk.rename(bundle.path / "inside")
    outside.mkdir()
    for path in (bundle.path / "inside").iterdir():
        (outside / path.name).symlink_to(path)
    trunk.symlink_to(outside)
    before = tree_bytes(outside)
    deep = put_branch(tmp_path / "run", "mood", backbone_of(), exit_layer=3)
    with pytest.raises(BundleError, match=r"trunk: is a link that leads out"):
        attach(bundle, deep, backbone=backbone_of())
    detach(bundle, "slots")
    with pytest.raises(BundleError, match=r"trunk: is a link that leads out"):
        cut(bundle.path)
    assert tree_bytes(outside) == before


def test_the_next_change_removes_what_a_killed_writer_left(bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".kept.tmp-0123").write_bytes(b"theirs")
    (bundle.path / "branches" / "elsewhere").symlink_to(outside)
    left = [bundle.path / place / ".x.tmp-0123" for place in ("trunk", "branches/intent")]
    left.append(bundle.path / ".manifest.json.tmp-0123")
    for path in left:
        path.write_bytes(b"half")
    detach(bundle, "slots")
    assert not any(path.exists() for path in left)
    assert (outside / ".kept.tmp-0123").exists()


def test_a_link_that_leads_out_is_not_written_through(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bundle.path / "branches" / "mood").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leads out"):
        attach(bundle, put_branch(tmp_path / "run", "mood", backbone_of()))
    assert list((tmp_path / "outside").iterdir()) == []
