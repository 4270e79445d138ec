from pathlib import Path

import pytest

from tests.tiny_bundles import TEXTS, backbone_of, make_bundle, put_branch, tree_bytes
from tests.tiny_engines import open_fp32
from trunkline.bundle.cut import cut
from trunkline.bundle.merge import attach, detach
from trunkline.bundle.store import Bundle, open_bundle
from trunkline.core.errors import BundleError
from trunkline.engine.verify import verify


def deepened(folder: Path, *exits: int) -> Bundle:
    """A bundle of intent (exit 1) and slots (exit 2), and for each of ``exits`` a deeper task and a trunk file."""
    bundle = make_bundle(folder, "intent", "slots")
    for number in exits:
        fields = {"kind": "classification", "labels": ("a", "b"), "exit_layer": number, "own_layers": 0}
        attach(
            bundle,
            put_branch(folder / f"run-{number}", f"deep-{number}", backbone_of(), **fields),
            backbone=backbone_of(),
        )
    return open_bundle(bundle.path)


def answers(path: Path) -> dict[str, list[bytes]]:
    with open_fp32(path) as engine:
        return {task: [row.tobytes() for row in engine.logits(TEXTS, task)] for task in engine.specs}


@pytest.mark.parametrize(
    ("exits", "gone", "depth"),
    [
        ((), ("slots",), 1),
        ((4,), ("deep-4",), 2),
        ((3, 4), ("deep-4",), 3),
        ((3, 4), ("deep-4", "deep-3", "slots"), 1),
        ((), ("slots", "intent"), 0),
    ],
)
def test_a_cut_trunk_keeps_the_chain_and_every_answer_in_bits(
    tmp_path: Path, exits: tuple[int, ...], gone: tuple[str, ...], depth: int
) -> None:
    bundle = deepened(tmp_path, *exits)
    for task in gone:
        detach(bundle, task)
    before, files = answers(bundle.path), tree_bytes(bundle.path)
    shorter = cut(bundle.path)
    after = tree_bytes(bundle.path)
    assert answers(bundle.path) == before
    assert shorter == open_bundle(bundle.path)
    assert shorter.manifest.trunk.depth == depth
    assert shorter.trunk().chain == backbone_of().chain[: depth + 1]
    assert shorter.manifest.tasks == {task: bundle.manifest.tasks[task] for task in before}
    assert {name for name in files if files[name] != after[name]} == {"manifest.json"}
    assert {int(name.split(".")[1]) for name in shorter.trunk().tensors if name.startswith("layers.")} == set(
        range(depth)
    )
    verify(bundle.path)


def test_a_layer_file_that_is_read_in_part_is_cut_inside(tmp_path: Path) -> None:
    bundle = deepened(tmp_path, 4)
    fields = {"kind": "classification", "labels": ("a", "b"), "exit_layer": 3, "own_layers": 0}
    attach(bundle, put_branch(tmp_path / "run", "middle", backbone_of(), **fields))
    detach(bundle, "deep-4")
    before = answers(bundle.path)
    names = set(cut(bundle.path).manifest.trunk.files)
    assert {name[:10] for name in names} == {"config.jso", "tokenizer.", "model.safe", "layers-2-2"}
    assert answers(bundle.path) == before


def test_where_nothing_is_to_cut_nothing_is_written(tmp_path: Path) -> None:
    bundle = deepened(tmp_path)
    before = tree_bytes(bundle.path)
    assert cut(bundle.path) == bundle
    assert tree_bytes(bundle.path) == before


def test_a_cut_trunk_is_extended_again_to_the_same_chain(tmp_path: Path) -> None:
    bundle = deepened(tmp_path)
    whole = answers(bundle.path)
    detach(bundle, "slots")
    cut(bundle.path)
    attach(bundle, tmp_path / "run-slots", backbone=backbone_of())
    assert open_bundle(bundle.path).trunk().chain == bundle.manifest.trunk.chain
    assert answers(bundle.path) == whole


def test_whoever_opened_the_bundle_before_a_cut_still_reads_it(tmp_path: Path) -> None:
    bundle = deepened(tmp_path)
    detach(bundle, "slots")
    cut(bundle.path)
    assert bundle.trunk().chain == backbone_of().chain[:3]
    assert bundle.branch("slots").spec.task == "slots"


def test_a_damaged_trunk_is_not_cut(tmp_path: Path) -> None:
    bundle = deepened(tmp_path)
    detach(bundle, "slots")
    path = bundle.path / "trunk" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = tree_bytes(bundle.path)
    with pytest.raises(BundleError):
        cut(bundle.path)
    assert tree_bytes(bundle.path) == before
