"""Foreign checkpoints: what is read, and every reason to refuse one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_torch
from safetensors.torch import save as save_torch

from tests.tiny import ARCHITECTURES, tiny_backbone, write_checkpoint
from trunkline.core.errors import CheckpointError
from trunkline.model.backbone import load_backbone
from trunkline.model.checkpoint import PREFIXES, foreign_name
from trunkline.model.config import Architecture, EncoderConfig
from trunkline.model.tensors import read_tensors, write_tensors

Tensors = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole BERT checkpoint."""
    return write_checkpoint(tmp_path / "checkpoint", tiny_backbone("bert"))


def read_checkpoint(folder: Path) -> tuple[EncoderConfig, Mapping[str, np.ndarray]]:
    """As a user does."""
    backbone = load_backbone(str(folder))
    return backbone.config, backbone.tensors


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
        "bert.embeddings.token_type_ids": np.zeros((1, 64), dtype=np.int64),
    }
    change_tensors(folder, lambda tensors: tensors | extra)
    assert_same(read_checkpoint(folder)[1], tiny_backbone("bert").tensors)


def test_a_head_whose_dtype_cannot_be_read_is_ignored(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_torch(path.read_bytes()) | {"classifier.weight": torch.zeros(2, 16).to(torch.float8_e4m3fn)}
    path.write_bytes(save_torch(tensors))
    assert_same(read_checkpoint(folder)[1], tiny_backbone("bert").tensors)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.1.output.adapters.task.adapter_up.weight",
        "encoder.layer.0.attention.self.query.lora_A.weight",
        "embeddings.task_embeddings.weight",
    ],
)
def test_tensors_of_the_encoder_that_the_config_does_not_ask_for_are_refused(
    folder: Path, prefix: str, name: str
) -> None:
    change_tensors(folder, lambda tensors: tensors | {prefix + name: np.zeros((2, 2), dtype=np.float32)})
    with pytest.raises(CheckpointError, match=rf"1 tensors of the encoder that .* does not ask for: {prefix}{name};"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("architecture", "key", "first"),
    [
        ("bert", "num_hidden_layers", r"encoder\.layer\.2\.attention"),
        ("mpnet", "num_hidden_layers", r"encoder\.layer\.2\.attention"),
        ("distilbert", "n_layers", r"transformer\.layer\.2\.attention"),
    ],
)
def test_a_config_with_fewer_layers_than_weights_is_refused(
    architecture: Architecture, key: str, first: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone(architecture))
    change_config(folder, **{key: 2})
    with pytest.raises(CheckpointError, match=rf"32 tensors of the encoder that .* does not ask for: {first}.*, …;"):
        read_checkpoint(folder)


def test_a_type_table_that_the_config_does_not_ask_for_is_refused(folder: Path) -> None:
    change_config(folder, type_vocab_size=0)
    with pytest.raises(CheckpointError, match=r"does not ask for: embeddings\.token_type_embeddings\.weight;"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("encoder.layer.3.output.LayerNorm.bias", "encoder.layer.3.output.LayerNorm.beta"),
    ],
)
def test_one_tensor_under_two_names_is_refused(folder: Path, name: str, other: str) -> None:
    change_tensors(folder, lambda tensors: tensors | {other: tensors[name] + 1.0})
    with pytest.raises(CheckpointError, match=rf"one tensor is there under 2 names: .*{name.split('.')[-2]}"):
        read_checkpoint(folder)


def test_one_tensor_in_two_shards_is_refused(folder: Path) -> None:
    whole = folder / "model.safetensors"
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for shard in shards:
        (folder / shard).write_bytes(whole.read_bytes())
    whole.unlink()
    weight_map = {str(number): shard for number, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=rf"is in '{shards[1]}' and in another shard; only one is allowed"):
        read_checkpoint(folder)


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
        ({"model_type": "t5"}, "supported are bert, roberta, xlm-roberta, mpnet, electra, distilbert"),
        # No nearest name: it would invite to edit a config.json that is right.
        ({"model_type": "deberta-v2"}, "model_type 'deberta-v2' is not supported; supported are bert, [^?]*$"),
        ({"model_type": ...}, "model_type None is not supported"),
        ({"model_type": 3}, "model_type 3 is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder is set"),
        ({"add_cross_attention": True}, "add_cross_attention is set"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "no code of a checkpoint is ever run"),
        ({"auto_map": 3}, "no code of a checkpoint is ever run"),
        ({"hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is not supported; supported are gelu, "),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\] is not supported"),
        ({"hidden_act": None}, "hidden_act None is not supported"),
        ({"hidden_size": ...}, "does not say hidden_size; "),
        ({"hidden_size": None}, r"config\.json: Expected `int`, got `null` - at `\$\.hidden_size`"),
        ({"num_hidden_layers": "four"}, r"config\.json: Expected `int`, got `str` - at `\$\.num_hidden_layers`"),
        ({"num_hidden_layers": -1}, r"config\.json: num_hidden_layers is -1; it must be at least 1"),
        ({"num_attention_heads": 5}, "hidden_size 16 is not a multiple of num_attention_heads 5"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; it must be at least 0 and below 1"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1.0; it must be above 0"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_before_weights_are_read(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    (folder / "model.safetensors").unlink()
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(folder)


def test_a_distilberts_config_is_blamed_in_its_own_words(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone("distilbert"))
    change_config(folder, hidden_dim=0)
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_dim is 0; it must be at least 1"):
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


def test_an_electra_that_leaves_out_the_size_of_its_embeddings_has_transformers_128(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone("electra", embedding_width=128))
    change_config(folder, embedding_size=...)
    assert read_checkpoint(folder)[0].embedding_width == 128


def test_a_dropout_written_as_an_integer_is_a_number(folder: Path) -> None:
    change_config(folder, hidden_dropout_prob=0)
    assert read_checkpoint(folder)[0].hidden_dropout == 0.0


def test_robertas_positions_begin_after_the_id_of_padding(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_backbone("roberta"))
    assert read_checkpoint(folder)[0].position_offset == 2
