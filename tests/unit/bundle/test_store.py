import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import TASKS, backbone_of, make_branch, make_bundle, put_branch, tree_bytes
from trunkline.bundle.files import files_digest, sha256_hex
from trunkline.bundle.manifest import BRANCH_FILES, encode_manifest
from trunkline.bundle.store import Bundle, open_bundle, read_branch, read_branch_inside, task_entry, write_branch
from trunkline.core.errors import (
    BundleError,
    CheckpointError,
    DigestMismatchError,
    MissingBranchError,
    NonFiniteError,
    SchemaVersionError,
    TrunkMismatchError,
)
from trunkline.core.specs import encode_spec
from trunkline.model.tensors import read_tensors, write_tensors


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles"), "intent", "slots")


@pytest.fixture
def bundle(pristine: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(pristine.path, tmp_path / "bundle", symlinks=True)
    return open_bundle(tmp_path / "bundle")


def read_all(path: Path) -> None:
    bundle = open_bundle(path)
    bundle.trunk()
    for task in bundle.manifest.tasks:
        bundle.branch(task)


def reseal_branch(bundle: Bundle, task: str, name: str, content: bytes) -> None:
    """Damage that took care of every digest: what is left are the checks of the content itself."""
    entry = bundle.manifest.tasks[task]
    files = {**entry.files, name: sha256_hex(content)}
    sealed = msgspec.structs.replace(entry, files=files, branch=files_digest(files))
    folder = bundle.path / "branches" / task
    (folder / entry.branch).rename(folder / sealed.branch)
    (folder / sealed.branch / name).write_bytes(content)
    manifest = msgspec.structs.replace(bundle.manifest, tasks={**bundle.manifest.tasks, task: sealed})
    (bundle.path / "manifest.json").write_bytes(encode_manifest(manifest))


def reseal_trunk(bundle: Bundle, name: str, content: bytes) -> None:
    (bundle.path / "trunk" / name).write_bytes(content)
    trunk = bundle.manifest.trunk
    sealed = msgspec.structs.replace(trunk, files={**trunk.files, name: sha256_hex(content)})
    manifest = msgspec.structs.replace(bundle.manifest, trunk=sealed)
    (bundle.path / "manifest.json").write_bytes(encode_manifest(manifest))


@pytest.mark.parametrize("task", TASKS)
def test_a_branch_reads_back_as_it_was_written(tmp_path: Path, task: str) -> None:
    made = make_branch(task, backbone_of())
    digest = write_branch(tmp_path / "branch", made.spec, made.tensors, made.golden)
    stored = read_branch(tmp_path / "branch")
    assert (stored.spec, stored.golden, stored.digest) == (made.spec, made.golden, digest)
    assert {name: tensor.tobytes() for name, tensor in stored.tensors.items()} == {
        name: tensor.tobytes() for name, tensor in made.tensors.items()
    }


def test_equal_branches_have_equal_digests(tmp_path: Path) -> None:
    made = make_branch("mood", backbone_of())
    digests = {write_branch(tmp_path / name, made.spec, made.tensors, made.golden) for name in "ab"}
    assert len(digests) == 1


def test_a_branch_folder_holds_exactly_its_four_files(tmp_path: Path) -> None:
    put_branch(tmp_path / "branch", "mood", backbone_of())
    assert sorted(path.name for path in (tmp_path / "branch").iterdir()) == sorted(BRANCH_FILES)


def test_a_branch_is_never_written_over_another(tmp_path: Path) -> None:
    put_branch(tmp_path / "branch", "mood", backbone_of())
    before = tree_bytes(tmp_path)
    with pytest.raises(BundleError, match="exists already"):
        put_branch(tmp_path / "branch", "intent", backbone_of())
    assert tree_bytes(tmp_path) == before


def test_a_branch_with_nan_is_not_written(tmp_path: Path) -> None:
    made = make_branch("mood", backbone_of())
    made.tensors["head.output.bias"][0] = np.nan
    with pytest.raises(NonFiniteError, match=r"head\.output\.bias"):
        write_branch(tmp_path / "branch", made.spec, made.tensors, made.golden)
    assert list(tmp_path.iterdir()) == []


def test_golden_answers_of_another_branch_are_not_written(tmp_path: Path) -> None:
    made, other = make_branch("mood", backbone_of()), make_branch("intent", backbone_of())
    with pytest.raises(BundleError, match="width 2"):
        write_branch(tmp_path / "branch", made.spec, made.tensors, other.golden)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingBranchError, match="nowhere: there is no such folder"):
        read_branch(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="nowhere: there is no such folder"):
        open_bundle(tmp_path / "nowhere")


def test_a_folder_without_a_branch_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingBranchError, match="the file is missing"):
        read_branch(tmp_path)


@pytest.mark.parametrize("tolerance", [{"fp32": 1e30}, {"fp32": 1.1e-4}, {"fp32": -1.0}, {"bf16": 0.03}, {"fp1": 0.0}])
def test_a_tolerance_beyond_what_is_allowed_is_neither_written_nor_read(
    bundle: Bundle, tmp_path: Path, tolerance: dict[str, float]
) -> None:
    golden = msgspec.structs.replace(bundle.branch("slots").golden, tolerance=tolerance)
    made = make_branch("slots", backbone_of())
    with pytest.raises(BundleError, match="tolerance"):
        write_branch(tmp_path / "branch", made.spec, made.tensors, golden)
    reseal_branch(bundle, "slots", "golden.json", encode_spec(golden))
    with pytest.raises(BundleError, match=r"golden\.json has tolerance .* allowed are fp32 up to 0\.0001"):
        open_bundle(bundle.path).branch("slots")


@pytest.mark.parametrize("name", ["branch.json", "golden.json"])
def test_json_nested_without_end_is_refused(bundle: Bundle, name: str) -> None:
    reseal_branch(bundle, "slots", name, b"[" * 100_000)
    with pytest.raises(BundleError, match=name):
        open_bundle(bundle.path).branch("slots")


def test_a_branch_with_other_digests_than_expected_is_refused(tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "branch", "mood", backbone_of())
    files = dict(read_branch(folder).files)
    assert read_branch_inside(folder, ".", expected=files).files == files
    files["golden.json"] = "0" * 64
    with pytest.raises(DigestMismatchError, match=r"golden\.json"):
        read_branch_inside(folder, ".", expected=files)


@pytest.mark.parametrize("name", BRANCH_FILES)
def test_a_truncated_file_of_a_branch_on_its_own_is_refused_where_it_is_decoded(tmp_path: Path, name: str) -> None:
    folder = put_branch(tmp_path / "branch", "mood", backbone_of())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    if name == "README.md":
        assert read_branch(folder).digest
        return
    with pytest.raises(BundleError):
        read_branch(folder)


def test_a_newer_branch_is_refused(tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "branch", "mood", backbone_of())
    text = (folder / "branch.json").read_text()
    (folder / "branch.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2, "new": 3', 1))
    with pytest.raises(SchemaVersionError, match="version 2"):
        read_branch(folder)


def test_a_bundle_reads_whole(bundle: Bundle) -> None:
    stored = bundle.trunk()
    backbone = backbone_of()
    assert stored.chain == backbone.chain[:3]
    assert stored.config == backbone.config
    assert stored.tokenizer.json == backbone.tokenizer.json
    assert all(np.array_equal(tensor, backbone.tensors[name]) for name, tensor in stored.tensors.items())
    for task, entry in bundle.manifest.tasks.items():
        assert task_entry(bundle.branch(task)) == entry


def test_opening_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(tmp_path)


def test_an_unknown_task_gets_a_hint(bundle: Bundle) -> None:
    with pytest.raises(MissingBranchError, match="did you mean 'intent'"):
        bundle.branch("intend")


def every_file(bundle: Bundle) -> list[Path]:
    return [path for path in sorted(bundle.path.rglob("*")) if path.is_file() and path.name != ".lock"]


def test_a_flipped_byte_of_any_file_is_refused_and_nothing_is_changed(bundle: Bundle) -> None:
    for path in every_file(bundle):
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            before = tree_bytes(bundle.path)
            with pytest.raises(DigestMismatchError, match=path.name):
                read_all(bundle.path)
            assert tree_bytes(bundle.path) == before
        path.write_bytes(content)
    read_all(bundle.path)


def test_a_truncated_file_of_any_kind_is_refused_and_nothing_is_changed(bundle: Bundle) -> None:
    for path in every_file(bundle):
        content = path.read_bytes()
        for length in (0, len(content) - 1):
            path.write_bytes(content[:length])
            before = tree_bytes(bundle.path)
            with pytest.raises(DigestMismatchError, match=path.name):
                read_all(bundle.path)
            assert tree_bytes(bundle.path) == before
        path.write_bytes(content)


def test_a_missing_branch_is_refused(bundle: Bundle) -> None:
    shutil.rmtree(bundle.path / "branches" / "slots")
    with pytest.raises(MissingBranchError, match="missing"):
        read_all(bundle.path)


def test_a_missing_trunk_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / "trunk" / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json.*missing"):
        read_all(bundle.path)


def test_a_foreign_trunk_is_refused_with_both_values(bundle: Bundle) -> None:
    tensors = read_tensors((bundle.path / "trunk" / "model.safetensors").read_bytes(), "trunk")
    foreign = {name: tensor + np.float32(0.125) for name, tensor in tensors.items()}
    reseal_trunk(bundle, "model.safetensors", write_tensors(foreign))
    with pytest.raises(TrunkMismatchError, match=bundle.manifest.trunk.chain[-1]):
        open_bundle(bundle.path).trunk()


def test_a_foreign_tokenizer_is_refused(bundle: Bundle) -> None:
    text = (bundle.path / "trunk" / "tokenizer.json").read_text()
    reseal_trunk(bundle, "tokenizer.json", text.replace('"lowercase":true', '"lowercase":false').encode())
    with pytest.raises(TrunkMismatchError, match="another trunk"):
        open_bundle(bundle.path).trunk()


def test_nan_in_the_trunk_is_refused(bundle: Bundle) -> None:
    tensors = dict(read_tensors((bundle.path / "trunk" / "model.safetensors").read_bytes(), "trunk"))
    tensors["layers.0.ffn.up.bias"] = np.full_like(tensors["layers.0.ffn.up.bias"], np.nan)
    reseal_trunk(bundle, "model.safetensors", write_tensors(tensors))
    with pytest.raises(NonFiniteError, match=r"layers\.0\.ffn\.up\.bias"):
        open_bundle(bundle.path).trunk()


def test_a_trunk_that_lacks_a_tensor_is_refused(bundle: Bundle) -> None:
    tensors = dict(read_tensors((bundle.path / "trunk" / "model.safetensors").read_bytes(), "trunk"))
    del tensors["layers.1.ffn.up.bias"]
    reseal_trunk(bundle, "model.safetensors", write_tensors(tensors))
    with pytest.raises(BundleError, match=r"layers\.1\.ffn\.up\.bias"):
        open_bundle(bundle.path).trunk()


def test_nan_in_a_branch_is_refused(bundle: Bundle) -> None:
    tensors = dict(bundle.branch("intent").tensors)
    tensors["head.output.bias"] = np.full_like(tensors["head.output.bias"], np.inf)
    reseal_branch(bundle, "intent", "branch.safetensors", write_tensors(tensors))
    with pytest.raises(NonFiniteError, match=r"head\.output\.bias"):
        open_bundle(bundle.path).branch("intent")


def test_a_newer_branch_in_a_bundle_is_refused(bundle: Bundle) -> None:
    entry = bundle.manifest.tasks["intent"]
    text = (bundle.path / "branches" / "intent" / entry.branch / "branch.json").read_text()
    newer = text.replace('"schema_version": 1', '"schema_version": 9', 1).encode()
    reseal_branch(bundle, "intent", "branch.json", newer)
    with pytest.raises(SchemaVersionError, match="version 9"):
        open_bundle(bundle.path).branch("intent")


def test_a_branch_of_another_trunk_is_refused_with_both_values(bundle: Bundle) -> None:
    entry = bundle.manifest.tasks["intent"]
    text = (bundle.path / "branches" / "intent" / entry.branch / "branch.json").read_text()
    wanted = bundle.manifest.trunk.chain[1]
    reseal_branch(bundle, "intent", "branch.json", text.replace(wanted, "f" * 64).encode())
    with pytest.raises(TrunkMismatchError) as caught:
        open_bundle(bundle.path).branch("intent")
    assert "f" * 64 in str(caught.value)
    assert wanted in str(caught.value)


def test_a_manifest_says_where_a_branch_comes_from_and_how_long_its_rows_are(bundle: Bundle) -> None:
    entry, spec = bundle.manifest.tasks["intent"], bundle.branch("intent").spec
    assert (entry.provenance, entry.max_length) == (spec.provenance, spec.max_length)
    assert entry.dev_metric == spec.provenance.dev_metric == 79.5


def test_a_manifest_that_disagrees_with_a_branch_is_refused(bundle: Bundle) -> None:
    entry = msgspec.structs.replace(bundle.manifest.tasks["intent"], labels=("x", "y", "z"))
    manifest = msgspec.structs.replace(bundle.manifest, tasks={**bundle.manifest.tasks, "intent": entry})
    (bundle.path / "manifest.json").write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError, match="different things"):
        open_bundle(bundle.path).branch("intent")


def test_a_config_that_disagrees_with_the_manifest_is_refused(bundle: Bundle) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, n_layers=12)
    (bundle.path / "manifest.json").write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError, match="4 layers, the manifest 12"):
        open_bundle(bundle.path).trunk()


def test_a_link_out_of_the_bundle_is_refused_even_with_the_right_bytes(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "trunk").rename(tmp_path / "elsewhere")
    (bundle.path / "trunk").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="leads out"):
        open_bundle(bundle.path).trunk()


def test_a_bundle_may_itself_be_reached_through_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle.path)
    read_all(tmp_path / "current")


def test_damage_keeps_the_first_cause(tmp_path: Path) -> None:
    folder = put_branch(tmp_path / "branch", "mood", backbone_of())
    (folder / "branch.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DigestMismatchError) as caught:
        read_branch(folder)
    assert isinstance(caught.value.__cause__, CheckpointError)
