"""Foreign checkpoints: what is read, and every reason to refuse one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import ARCHITECTURES, tiny_backbone, write_checkpoint
from trunkline.core.errors import CheckpointError
from trunkline.model.checkpoint import PREFIXES, foreign_name, read_checkpoint
from trunkline.model.config import Architecture
from trunkline.model.tensors import read_tensors, write_tensors

Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole BERT checkpoint."""
    return write_checkpoint(tmp_path / "checkpoint", tiny_backbone("bert"))


def change_config(folder: Path, **changes: Any) -> None:
    facts = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in facts.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(write_tensors(change(read_tensors(path.read_bytes(), "test"))))


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prefixed", [False, True])
def test_names_with_and_without_the_models_prefix_are_known(
    architecture: Architecture, prefixed: bool, tmp_path: Path
) -> None:
    backbone = tiny_backbone(architecture)
    folder = write_checkpoint(tmp_path / "checkpoint", backbone)
    prefix = PREFIXES[architecture] if prefixed else ""
    change_tensors(folder, lambda tensors: {prefix + name: array for name, array in tensors.items()})
    config, tensors = read_checkpoint(folder)
    assert config == backbone.config
    assert_same(tensors, backbone.tensors)


def test_extra_heads_and_buffers_are_ignored(folder: Path) -> None:
    extra = {
        "pooler.dense.weight": np.zeros((16, 16), dtype=np.float32),
        "cls.predictions.bias": np.full(3, np.nan, dtype=np.float32),
        "embeddings.position_ids": np.arange(64, dtype=np.int64)[None],
    }
    change_tensors(folder, lambda tensors: tensors | extra)
    assert_same(read_checkpoint(folder)[1], tiny_backbone("bert").tensors)


def test_norms_by_their_old_names_are_known(folder: Path) -> None:
    def rename(tensors: Tensors) -> Tensors:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {
            next((name.replace(new, was) for new, was in old.items() if new in name), name): array
            for name, array in tensors.items()
        }

    change_tensors(folder, rename)
    assert_same(read_checkpoint(folder)[1], tiny_backbone("bert").tensors)


def test_shards_are_read_through_their_index(folder: Path) -> None:
    whole = folder / "model.safetensors"
    tensors = sorted(read_tensors(whole.read_bytes(), "test").items())
    whole.unlink()
    shards = {"model-00001-of-00002.safetensors": tensors[:9], "model-00002-of-00002.safetensors": tensors[9:]}
    for name, part in shards.items():
        (folder / name).write_bytes(write_tensors(dict(part)))
    weight_map = {tensor: shard for shard, part in shards.items() for tensor, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(read_checkpoint(folder)[1], tiny_backbone("bert").tensors)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_that_names_other_files_is_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="only safetensors files of the same folder are allowed"):
        read_checkpoint(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{"])
def test_a_damaged_index_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="has no weight_map"):
        read_checkpoint(folder)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"there is no model-1\.safetensors"):
        read_checkpoint(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        read_checkpoint(tmp_path / "nowhere")


def test_a_missing_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_a_config_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json is not a JSON object"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"only pickled weights are there \({name}\).*save_pretrained"):
        read_checkpoint(folder)


def test_no_weights_at_all_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there is no model\.safetensors"):
        read_checkpoint(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"file 'model\.safetensors': not a whole safetensors file"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "distilbret"}, "model_type 'distilbret' is not supported; .*did you mean 'distilbert'"),
        ({"model_type": "t5"}, "supported are bert, roberta, xlm-roberta, mpnet, electra, distilbert"),
        ({"model_type": ...}, "model_type None is not supported"),
        ({"model_type": 3}, "model_type 3 is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder is set"),
        ({"add_cross_attention": True}, "add_cross_attention is set"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "no code of a checkpoint is ever run"),
        ({"hidden_act": "gelu_10"}, "activation 'gelu_10' is not supported; did you mean"),
        ({"hidden_size": ...}, "does not say embedding_width, width"),
        ({"num_hidden_layers": "four"}, r"config\.json: Expected `int`, got `str`"),
        ({"num_hidden_layers": -1}, "n_layers is -1"),
        ({"num_attention_heads": 5}, "width 16 is not a multiple of n_heads 5"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_before_weights_are_read(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    (folder / "model.safetensors").unlink()
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(folder)


def test_another_number_of_relative_buckets_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone("mpnet"))
    change_config(folder, relative_attention_num_buckets=64)
    with pytest.raises(CheckpointError, match="relative_attention_num_buckets is 64; only 32 is supported"):
        read_checkpoint(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_missing_tensor_is_named_as_we_and_as_they_call_it(architecture: Architecture, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone(architecture))
    ours = "layers.1.ffn.down.bias"
    theirs = foreign_name(architecture, ours)
    change_tensors(folder, lambda tensors: {name: array for name, array in tensors.items() if name != theirs})
    with pytest.raises(CheckpointError, match=rf"1 of \d+ tensors are missing: {ours} \(there: {theirs}\)"):
        read_checkpoint(folder)


def test_a_config_with_more_layers_than_weights_is_refused(folder: Path) -> None:
    change_config(folder, num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"16 of \d+ tensors are missing: layers\.4\."):
        read_checkpoint(folder)


def test_a_wrong_shape_is_refused(folder: Path) -> None:
    change_config(folder, vocab_size=500)
    with pytest.raises(CheckpointError, match=r"'embeddings\.word\.weight' has shape .* the config allows \(500, 16\)"):
        read_checkpoint(folder)


def test_nan_weights_are_refused(folder: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    change_tensors(folder, lambda tensors: tensors | {name: np.full_like(tensors[name], np.nan)})
    with pytest.raises(CheckpointError, match=r"tensor 'layers\.0\.ffn\.down\.weight' holds 512 values that are NaN"):
        read_checkpoint(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    change_tensors(folder, lambda tensors: tensors | {name: tensors[name].astype(np.int8)})
    with pytest.raises(CheckpointError, match="has dtype int8"):
        read_checkpoint(folder)


def test_what_a_config_leaves_out_has_the_default_of_transformers(folder: Path) -> None:
    for name in ("layer_norm_eps", "pad_token_id", "hidden_act", "type_vocab_size", "hidden_dropout_prob"):
        change_config(folder, **{name: ...})
    assert read_checkpoint(folder)[0] == tiny_backbone("bert").config


def test_a_dropout_written_as_an_integer_is_a_number(folder: Path) -> None:
    change_config(folder, hidden_dropout_prob=0)
    assert read_checkpoint(folder)[0].hidden_dropout == 0.0


def test_robertas_positions_begin_after_the_id_of_padding(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone("roberta"))
    assert read_checkpoint(folder)[0].position_offset == 2
