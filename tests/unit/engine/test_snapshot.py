"""Loading a bundle, and what a newer snapshot shares with the one that it replaces."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import TEXTS, backbone_of, make_bundle, put_branch
from tests.tiny_engines import encoded, run_all
from trunkline.bundle.cut import cut
from trunkline.bundle.merge import attach, detach, merge, replace
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.core.errors import MissingBranchError
from trunkline.engine.backends.torch import TorchBackend
from trunkline.engine.snapshot import Snapshot, load_snapshot
from trunkline.model.backbone import make_backbone

BACKEND = TorchBackend()


class Counting(TorchBackend):
    """Writes down what it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: list[Any] = []

    def embeddings(self, trunk: Any) -> Any:
        self.compiled.append("embeddings")
        return super().embeddings(trunk)

    def layers(self, trunk: Any, layers: range) -> Any:
        self.compiled.append((layers.start, layers.stop))
        return super().layers(trunk, layers)

    def branch(self, branch: Any, config: Any) -> Any:
        self.compiled.append(branch.spec.task)
        return super().branch(branch, config)


def ends(snapshot: Snapshot) -> list[tuple[int, int]]:
    return [(segment.start, segment.stop) for segment in snapshot.trunk.segments]


def with_deep(bundle: Bundle, folder: Path, *, exit_layer: int) -> Bundle:
    fields = {"kind": "classification", "labels": ("a", "b"), "exit_layer": exit_layer, "own_layers": 0}
    attach(bundle, put_branch(folder / "deep", "deep", backbone_of(), **fields), backbone=backbone_of())
    return open_bundle(bundle.path)


def assert_answers_as_loaded_anew(snapshot: Snapshot, bundle: Bundle) -> None:
    fresh = load_snapshot(open_bundle(bundle.path), BACKEND)
    found, expected = (run_all(BACKEND, each, encoded(*TEXTS)) for each in (snapshot, fresh))
    assert found.keys() == expected.keys()
    for task, logits in expected.items():
        for one, other in zip(found[task], logits, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_trunk_is_cut_into_segments_at_the_exits_in_use(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent", "slots", "topics")
    snapshot = load_snapshot(bundle, BACKEND)
    assert ends(snapshot) == [(0, 1), (1, 2)]
    assert [segment.digest for segment in snapshot.trunk.segments] == list(backbone_of().chain[1:3])
    assert list(snapshot.branches) == ["intent", "slots", "topics"]


def test_layers_between_two_exits_are_one_segment(tmp_path: Path) -> None:
    bundle = with_deep(make_bundle(tmp_path, "intent"), tmp_path, exit_layer=4)
    assert ends(load_snapshot(bundle, BACKEND)) == [(0, 1), (1, 4)]


def test_branches_that_read_the_embeddings_need_no_segment(tmp_path: Path) -> None:
    assert ends(load_snapshot(make_bundle(tmp_path, "topics"), BACKEND)) == []


def test_some_tasks_alone_are_read_and_the_trunk_as_deep_as_they_need(tmp_path: Path) -> None:
    backend = Counting()
    snapshot = load_snapshot(make_bundle(tmp_path, "intent", "slots"), backend, tasks=("intent",))
    assert ends(snapshot) == [(0, 1)]
    assert sorted(map(str, backend.compiled)) == ["(0, 1)", "embeddings", "intent"]


def test_a_task_that_the_bundle_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingBranchError, match="'intend'"):
        load_snapshot(make_bundle(tmp_path, "intent"), BACKEND, tasks=("intend",))


def test_the_same_bundle_loaded_again_compiles_nothing(tmp_path: Path) -> None:
    bundle, backend = make_bundle(tmp_path, "intent", "slots"), Counting()
    before = load_snapshot(bundle, backend)
    backend.compiled.clear()
    after = load_snapshot(open_bundle(bundle.path), backend, before=before)
    assert backend.compiled == []
    assert dict(after.branches) == dict(before.branches)
    assert after.trunk.segments == before.trunk.segments


def test_the_same_bundle_loaded_again_does_not_read_the_trunks_weights(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "intent", "slots")
    before = load_snapshot(bundle, BACKEND)
    for path in (bundle.path / "trunk").glob("*.safetensors"):
        path.unlink()
    load_snapshot(open_bundle(bundle.path), BACKEND, before=before)


def test_a_replaced_branch_alone_is_compiled(tmp_path: Path) -> None:
    bundle, backend = make_bundle(tmp_path, "intent", "slots"), Counting()
    before = load_snapshot(bundle, backend)
    backend.compiled.clear()
    replace(bundle, put_branch(tmp_path / "new", "intent", backbone_of(), seed=1))
    after = load_snapshot(open_bundle(bundle.path), backend, before=before)
    assert backend.compiled == ["intent"]
    assert after.branches["slots"] is before.branches["slots"]
    assert after.branches["intent"].digest != before.branches["intent"].digest
    assert_answers_as_loaded_anew(after, bundle)


def test_a_new_exit_within_a_segment_splits_it_and_no_other(tmp_path: Path) -> None:
    backbone, backend = backbone_of(), Counting()
    deep = {"kind": "classification", "labels": ("a", "b"), "own_layers": 0}
    folders = [
        put_branch(tmp_path / "one", "one", backbone, exit_layer=1, **deep),
        put_branch(tmp_path / "four", "four", backbone, exit_layer=4, **deep),
    ]
    bundle = merge(folders, backbone, tmp_path / "bundle")
    before = load_snapshot(bundle, backend)
    assert ends(before) == [(0, 1), (1, 4)]
    backend.compiled.clear()
    attach(bundle, put_branch(tmp_path / "three", "three", backbone, exit_layer=3, **deep))
    after = load_snapshot(open_bundle(bundle.path), backend, before=before)
    assert ends(after) == [(0, 1), (1, 3), (3, 4)]
    assert after.trunk.segments[0] is before.trunk.segments[0]
    assert sorted(map(str, backend.compiled)) == ["(1, 3)", "(3, 4)", "three"]
    assert_answers_as_loaded_anew(after, bundle)


def test_a_deeper_exit_adds_a_segment_to_those_there_are(tmp_path: Path) -> None:
    bundle, backend = make_bundle(tmp_path, "intent", "slots"), Counting()
    before = load_snapshot(bundle, backend)
    backend.compiled.clear()
    bundle = with_deep(bundle, tmp_path, exit_layer=4)
    after = load_snapshot(bundle, backend, before=before)
    assert after.trunk.segments[:2] == before.trunk.segments
    assert sorted(map(str, backend.compiled)) == ["(2, 4)", "deep"]
    assert_answers_as_loaded_anew(after, bundle)


def test_an_exit_that_is_no_longer_used_leaves_its_boundary_and_loads_nothing(tmp_path: Path) -> None:
    bundle, backend = make_bundle(tmp_path, "intent", "slots"), Counting()
    before = load_snapshot(bundle, backend)
    backend.compiled.clear()
    detach(bundle, "intent")
    after = load_snapshot(open_bundle(bundle.path), backend, before=before)
    assert backend.compiled == []
    assert ends(after) == [(0, 1), (1, 2)]
    assert list(after.branches) == ["slots"]
    assert_answers_as_loaded_anew(after, bundle)


def test_a_trunk_that_was_cut_keeps_its_lower_segments(tmp_path: Path) -> None:
    bundle, backend = make_bundle(tmp_path, "intent", "slots"), Counting()
    before = load_snapshot(bundle, backend)
    backend.compiled.clear()
    detach(bundle, "slots")
    cut(bundle.path)
    after = load_snapshot(open_bundle(bundle.path), backend, before=before)
    assert backend.compiled == []
    assert after.trunk.segments == before.trunk.segments[:1]
    assert_answers_as_loaded_anew(after, bundle)


def test_another_trunk_shares_nothing(tmp_path: Path) -> None:
    backend = Counting()
    before = load_snapshot(make_bundle(tmp_path / "a", "intent"), backend)
    backend.compiled.clear()
    other = make_bundle(tmp_path / "b", "intent", backbone=backbone_of("bert", seed=1))
    after = load_snapshot(other, backend, before=before)
    assert sorted(map(str, backend.compiled)) == ["(0, 1)", "embeddings", "intent"]
    assert after.trunk.chain != before.trunk.chain
    assert_answers_as_loaded_anew(after, other)


def test_a_trunk_that_differs_above_an_exit_shares_what_lies_below(tmp_path: Path) -> None:
    backend, backbone = Counting(), backbone_of()
    tensors = dict(backbone.tensors)
    tensors["layers.1.ffn.up.bias"] = tensors["layers.1.ffn.up.bias"] + np.float32(0.5)
    changed = make_backbone(backbone.name, backbone.config, tensors=tensors, tokenizer=backbone.tokenizer)
    assert changed.chain[:2] == backbone.chain[:2]
    before = load_snapshot(make_bundle(tmp_path / "a", "intent", "slots"), backend)
    backend.compiled.clear()
    other = make_bundle(tmp_path / "b", "intent", "slots", backbone=changed)
    after = load_snapshot(other, backend, before=before)
    assert after.trunk.segments[0] is before.trunk.segments[0]
    assert after.trunk.segments[1] is not before.trunk.segments[1]
    assert "embeddings" not in backend.compiled
    assert_answers_as_loaded_anew(after, other)


def test_a_twin_has_the_same_segments_and_masks(tmp_path: Path) -> None:
    trunk = load_snapshot(make_bundle(tmp_path, "intent", "slots"), BACKEND).trunk
    twin = trunk.twin()
    assert [(s.start, s.stop, s.digest) for s in twin.segments] == [(s.start, s.stop, s.digest) for s in trunk.segments]
    assert twin.masks is trunk.masks
    assert twin.chain == trunk.chain
