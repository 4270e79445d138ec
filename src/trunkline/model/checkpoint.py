"""Checkpoints as others write them: the only file that knows foreign (Hugging Face) names. No torch here."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trunkline.core.errors import CheckpointError, NonFiniteError, nearest_hint
from trunkline.model.config import Activation, Architecture, EncoderConfig, trunk_tensor_shapes
from trunkline.model.tensors import check_tensors, read_tensors, refuse_non_finite

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

PREFIXES: Mapping[Architecture, str] = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "mpnet": "mpnet.",
    "electra": "electra.",
    "distilbert": "distilbert.",
}
FOREIGN_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
EMBEDDING_NAMES: Mapping[str, str] = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.projection": "embeddings_project",
    "shared.relative_bias": "encoder.relative_attention_bias",
}
BERT_LAYER_NAMES: Mapping[str, str] = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
MPNET_LAYER_NAMES: Mapping[str, str] = {
    "attention.query": "attention.attn.q",
    "attention.key": "attention.attn.k",
    "attention.value": "attention.attn.v",
    "attention.output": "attention.attn.o",
    "attention.norm": "attention.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
DISTILBERT_LAYER_NAMES: Mapping[str, str] = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention.norm": "sa_layer_norm",
    "ffn.up": "ffn.lin1",
    "ffn.down": "ffn.lin2",
    "ffn.norm": "output_layer_norm",
}
# transformers counts MPNet's positions from here and with this many buckets, whatever config.json says.
MPNET_POSITION_OFFSET = 2
MPNET_BUCKETS = 32
# DistilBERT's config.json has no such key.
DISTILBERT_NORM_EPS = 1e-12


def read_checkpoint(folder: Path) -> tuple[EncoderConfig, dict[str, np.ndarray]]:
    """Read a Hugging Face checkpoint folder: ``config.json`` and safetensors, whole or sharded.

    Extra heads (pooler, language model head, classifier) are ignored.

    Args:
        folder: Where the files are.

    Returns:
        The config, and canonical name -> float32 array for embeddings and all layers.

    Raises:
        CheckpointError: The folder or a file is missing, the architecture is not supported, only pickled weights are
            there, a tensor is missing, has a wrong shape or dtype, or holds NaN.
    """
    subject = f"checkpoint {str(folder)!r}"
    if not folder.is_dir():
        raise CheckpointError(f"{subject}: there is no such folder; check the path")
    config = decode_config(read_file(folder, CONFIG_FILE, subject), subject)
    found: dict[str, np.ndarray] = {}
    for name in weight_files(folder, subject):
        found.update(read_tensors(read_file(folder, name, subject), f"{subject}, file {name!r}"))
    return config, canonical_tensors(config, found, subject)


def decode_config(content: bytes, subject: str) -> EncoderConfig:
    """Read the facts out of a ``config.json``.

    Args:
        content: The whole file.
        subject: What the message is about.

    Raises:
        CheckpointError: It is not a JSON object, a size is missing, or it describes an encoder that is not supported.
    """
    try:
        facts = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{subject}: config.json is not a JSON object ({error}); fetch it again") from error
    architecture = _architecture(facts, subject)
    _refuse_variants(facts, architecture, subject)
    fields = _distilbert_fields(facts) if architecture == "distilbert" else _bert_fields(facts, architecture)
    missing = sorted(name for name, value in fields.items() if value is None)
    if missing:
        raise CheckpointError(f"{subject}: config.json does not say {', '.join(missing)}; fetch it again")
    activation = fields["activation"]
    if activation not in FOREIGN_ACTIVATIONS:
        hint = nearest_hint(str(activation), FOREIGN_ACTIVATIONS)
        raise CheckpointError(f"{subject}: activation {activation!r} is not supported; {hint}")
    fields = {**fields, "architecture": architecture, "activation": FOREIGN_ACTIVATIONS[activation]}
    try:
        # JSON has no floats of its own: a dropout of 0 comes as an integer, which msgspec takes for a float.
        return msgspec.convert(fields, EncoderConfig, strict=True)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{subject}: config.json: {error}; fetch it again") from error


def canonical_tensors(config: EncoderConfig, found: Mapping[str, np.ndarray], subject: str) -> dict[str, np.ndarray]:
    """Give a checkpoint's tensors our names, and check them.

    Args:
        config: From `decode_config`.
        found: The checkpoint's own names -> arrays.
        subject: What the message is about.

    Returns:
        Canonical name -> float32 array.

    Raises:
        CheckpointError: A tensor is missing (both names are given), has a wrong shape or dtype, or holds NaN.
    """
    shapes = trunk_tensor_shapes(config, depth=config.n_layers)
    tensors: dict[str, np.ndarray] = {}
    missing: list[str] = []
    for name in shapes:
        foreign = foreign_name(config.architecture, name)
        spelling = next((known for known in _spellings(config.architecture, foreign) if known in found), None)
        if spelling is None:
            missing.append(f"{name} (there: {foreign})")
        else:
            tensors[name] = found[spelling]
    if missing:
        shown = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
        raise CheckpointError(
            f"{subject}: {len(missing)} of {len(shapes)} tensors are missing: {shown}; "
            f"a {config.architecture} encoder needs all of them; use a complete checkpoint"
        )
    checked = check_tensors(tensors, shapes, subject)
    try:
        refuse_non_finite(checked, subject)
    except NonFiniteError as error:
        raise CheckpointError(str(error)) from error
    return checked


def foreign_name(architecture: Architecture, name: str) -> str:
    """What transformers calls a tensor, without the model's prefix.

    Args:
        architecture: Whose names.
        name: Canonical name of a trunk tensor.
    """
    stem, _, leaf = name.rpartition(".")
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
    if layer is None:
        return f"{EMBEDDING_NAMES[stem]}.{leaf}"
    index, part = layer.groups()
    if architecture == "distilbert":
        return f"transformer.layer.{index}.{DISTILBERT_LAYER_NAMES[part]}.{leaf}"
    names = MPNET_LAYER_NAMES if architecture == "mpnet" else BERT_LAYER_NAMES
    return f"encoder.layer.{index}.{names[part]}.{leaf}"


def weight_files(folder: Path, subject: str) -> tuple[str, ...]:
    """Names of the safetensors files of a checkpoint folder.

    Raises:
        CheckpointError: There are none, or only pickled ones, or the index of shards is wrong.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return (WEIGHTS_FILE,)
    if (folder / INDEX_FILE).is_file():
        return _shard_files(read_file(folder, INDEX_FILE, subject), subject)
    refuse_pickled((path.name for path in folder.iterdir()), subject)
    raise CheckpointError(f"{subject}: there is no {WEIGHTS_FILE} and no {INDEX_FILE}; fetch one of them")


def refuse_pickled(names: Iterable[str], subject: str) -> None:
    """Refuse files that hold pickled weights, and tell how to convert them.

    Args:
        names: Names of the files of a checkpoint that has no safetensors.
        subject: What the message is about.

    Raises:
        CheckpointError: One of them is a pickle.
    """
    pickled = sorted(name for name in names if name.endswith(PICKLED_SUFFIXES))
    if pickled:
        raise CheckpointError(
            f"{subject}: only pickled weights are there ({', '.join(pickled[:3])}); only safetensors is allowed, "
            "because a pickle can run code; convert them where you trust them: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes model.safetensors"
        )


def read_file(folder: Path, name: str, subject: str) -> bytes:
    """The bytes of one file of a checkpoint folder.

    Raises:
        CheckpointError: It is missing or cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{subject}: there is no {name}; fetch the whole checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{subject}: {name} cannot be read ({error.strerror}); check the file") from error


def _architecture(facts: Mapping[str, Any], subject: str) -> Architecture:
    model_type = facts.get("model_type")
    for architecture in PREFIXES:
        if model_type == architecture:
            return architecture
    raise CheckpointError(
        f"{subject}: model_type {model_type!r} is not supported; supported are {', '.join(PREFIXES)}; "
        f"{nearest_hint(str(model_type), PREFIXES)}"
    )


def _refuse_variants(facts: Mapping[str, Any], architecture: Architecture, subject: str) -> None:
    positions = facts.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(
            f"{subject}: position_embedding_type is {positions!r}; only 'absolute' is supported; use another checkpoint"
        )
    for name in ("is_decoder", "add_cross_attention"):
        if facts.get(name):
            raise CheckpointError(
                f"{subject}: {name} is set; only plain encoders are supported; use another checkpoint"
            )
    if "AutoModel" in (facts.get("auto_map") or {}):
        raise CheckpointError(
            f"{subject}: it asks to run code of its own (auto_map); no code of a checkpoint is ever run; "
            "use another checkpoint"
        )
    n_buckets = facts.get("relative_attention_num_buckets", MPNET_BUCKETS)
    if architecture == "mpnet" and n_buckets != MPNET_BUCKETS:
        raise CheckpointError(
            f"{subject}: relative_attention_num_buckets is {n_buckets}; only {MPNET_BUCKETS} is supported; "
            "use another checkpoint"
        )


def _bert_fields(facts: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Fields as BERT's config names them; what it may leave out has transformers' default."""
    robust = architecture in ("roberta", "xlm-roberta")
    pad_id = facts.get("pad_token_id", 1 if robust or architecture == "mpnet" else 0)
    offset = 0
    if architecture == "mpnet":
        offset = MPNET_POSITION_OFFSET
    elif robust and isinstance(pad_id, int):
        offset = pad_id + 1
    width = facts.get("hidden_size")
    return {
        "n_layers": facts.get("num_hidden_layers"),
        "width": width,
        "n_heads": facts.get("num_attention_heads"),
        "ffn_width": facts.get("intermediate_size"),
        "vocab_size": facts.get("vocab_size"),
        "n_positions": facts.get("max_position_embeddings"),
        "n_types": 0 if architecture == "mpnet" else facts.get("type_vocab_size", 2),
        "pad_id": pad_id,
        "position_offset": offset,
        "embedding_width": facts.get("embedding_size") if architecture == "electra" else width,
        "relative_buckets": MPNET_BUCKETS if architecture == "mpnet" else 0,
        "activation": facts.get("hidden_act", "gelu"),
        "norm_eps": facts.get("layer_norm_eps", 1e-12),
        "hidden_dropout": facts.get("hidden_dropout_prob", 0.1),
        "attention_dropout": facts.get("attention_probs_dropout_prob", 0.1),
    }


def _distilbert_fields(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as DistilBERT's config names them; sinusoidal positions are stored as weights like any others."""
    return {
        "n_layers": facts.get("n_layers"),
        "width": facts.get("dim"),
        "n_heads": facts.get("n_heads"),
        "ffn_width": facts.get("hidden_dim"),
        "vocab_size": facts.get("vocab_size"),
        "n_positions": facts.get("max_position_embeddings"),
        "n_types": 0,
        "pad_id": facts.get("pad_token_id", 0),
        "position_offset": 0,
        "embedding_width": facts.get("dim"),
        "relative_buckets": 0,
        "activation": facts.get("activation", "gelu"),
        "norm_eps": DISTILBERT_NORM_EPS,
        "hidden_dropout": facts.get("dropout", 0.1),
        "attention_dropout": facts.get("attention_dropout", 0.1),
    }


def _spellings(architecture: Architecture, foreign: str) -> tuple[str, ...]:
    """How a tensor may be called: with or without the model's prefix, norms by their old TensorFlow names too."""
    old = foreign.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    prefix = PREFIXES[architecture]
    return (prefix + foreign, foreign, prefix + old, old)


def _shard_files(content: bytes, subject: str) -> tuple[str, ...]:
    try:
        weight_map = msgspec.json.decode(content, type=dict[str, Any])["weight_map"]
        names = tuple(sorted(set(msgspec.convert(weight_map, dict[str, str]).values())))
    except (msgspec.MsgspecError, KeyError) as error:
        raise CheckpointError(
            f"{subject}: {INDEX_FILE} has no weight_map of tensor names to file names ({error}); fetch it again"
        ) from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{subject}: {INDEX_FILE} names the file {name!r}; only safetensors files of the same folder are "
                "allowed; fetch it again"
            )
    return names
