"""Checkpoints as others write them: the only file that knows foreign (Hugging Face) names. No torch here."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np

from trunkline.core.errors import CheckpointError, NonFiniteError
from trunkline.model.config import Activation, Architecture, EncoderConfig, trunk_tensor_shapes
from trunkline.model.tensors import check_tensors, refuse_non_finite

INDEX_FILE = "model.safetensors.index.json"

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
# What a tensor of the encoder begins with, the model's prefix taken off; all others belong to heads.
ENCODER_BEGINNINGS = ("embeddings", "encoder.", "transformer.")
# Stored by older versions of transformers; both follow from the sizes.
KNOWN_BUFFERS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})

# Our field -> key of config.json.
BERT_KEYS: Mapping[str, str] = {
    "n_layers": "num_hidden_layers",
    "width": "hidden_size",
    "n_heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_types": "type_vocab_size",
    "pad_id": "pad_token_id",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
MPNET_KEYS: Mapping[str, str] = {ours: theirs for ours, theirs in BERT_KEYS.items() if ours != "n_types"}
ELECTRA_KEYS: Mapping[str, str] = {**BERT_KEYS, "embedding_width": "embedding_size"}
# Sinusoidal positions are stored as weights like any others.
DISTILBERT_KEYS: Mapping[str, str] = {
    "n_layers": "n_layers",
    "width": "dim",
    "n_heads": "n_heads",
    "ffn_width": "hidden_dim",
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "pad_id": "pad_token_id",
    "activation": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
KEYS: Mapping[Architecture, Mapping[str, str]] = {
    "bert": BERT_KEYS,
    "roberta": BERT_KEYS,
    "xlm-roberta": BERT_KEYS,
    "mpnet": MPNET_KEYS,
    "electra": ELECTRA_KEYS,
    "distilbert": DISTILBERT_KEYS,
}
# What transformers takes where config.json has no such key.
DEFAULT_FACTS: Mapping[str, Any] = {
    "activation": "gelu",
    "norm_eps": 1e-12,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}
DEFAULT_TYPES = 2
DEFAULT_PAD_ID: Mapping[Architecture, int] = {
    "bert": 0,
    "roberta": 1,
    "xlm-roberta": 1,
    "mpnet": 1,
    "electra": 0,
    "distilbert": 0,
}
DEFAULT_ELECTRA_EMBEDDING_WIDTH = 128
# transformers counts MPNet's positions from here and with this many buckets, whatever config.json says.
MPNET_POSITION_OFFSET = 2
MPNET_BUCKETS = 32


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
    keys = KEYS[architecture]
    fields = _fields(facts, architecture)
    missing = sorted(theirs for ours, theirs in keys.items() if ours not in fields)
    if missing:
        raise CheckpointError(f"{subject}: config.json does not say {', '.join(missing)}; fetch it again")
    activation = fields["activation"]
    if not (isinstance(activation, str) and activation in FOREIGN_ACTIVATIONS):
        raise CheckpointError(
            f"{subject}: config.json: {keys['activation']} {activation!r} is not supported; "
            f"supported are {', '.join(FOREIGN_ACTIVATIONS)}; use another checkpoint"
        )
    try:
        # JSON has no floats of its own: a dropout of 0 comes as an integer, which msgspec takes for a float.
        return msgspec.convert({**fields, "activation": FOREIGN_ACTIVATIONS[activation]}, EncoderConfig, strict=True)
    except msgspec.ValidationError as error:
        reason = _in_their_words(str(error).removeprefix("encoder config: "), keys)
        raise CheckpointError(f"{subject}: config.json: {reason}; fetch it again") from error


def canonical_tensors(config: EncoderConfig, found: Mapping[str, np.ndarray], subject: str) -> dict[str, np.ndarray]:
    """Give a checkpoint's tensors our names, and check them.

    Args:
        config: From `decode_config`.
        found: The checkpoint's own names -> arrays; those of heads may be among them.
        subject: What the message is about.

    Returns:
        Canonical name -> float32 array.

    Raises:
        CheckpointError: A tensor is missing (both names are given), is there twice, has a wrong shape or dtype, or
            holds NaN; or the encoder has tensors that the config does not ask for.
    """
    shapes = trunk_tensor_shapes(config, depth=config.n_layers)
    spellings = {name: _spellings_found(config.architecture, name, found) for name in shapes}
    missing = [name for name, known in spellings.items() if not known]
    if missing:
        shown = _shown([f"{name} (there: {foreign_name(config.architecture, name)})" for name in missing])
        raise CheckpointError(
            f"{subject}: {len(missing)} of {len(shapes)} tensors are missing: {shown}; "
            f"a {config.architecture} encoder needs all of them; use a complete checkpoint"
        )
    for known in spellings.values():
        if len(known) > 1:
            raise CheckpointError(
                f"{subject}: one tensor is there under {len(known)} names: {', '.join(known)}; only one is allowed, "
                "because nothing says which is meant; remove the other from the weights"
            )
    _refuse_unused(config.architecture, set(found) - {known[0] for known in spellings.values()}, subject)
    checked = check_tensors({name: found[known[0]] for name, known in spellings.items()}, shapes, subject)
    try:
        refuse_non_finite(checked, subject)
    except NonFiniteError as error:
        raise CheckpointError(str(error)) from error
    return checked


def is_encoder_tensor(architecture: Architecture, name: str) -> bool:
    """Whether a checkpoint's tensor is part of the encoder; those of heads (pooler, classifier, ...) are not.

    Args:
        architecture: Whose names.
        name: The checkpoint's own name, with or without the model's prefix.
    """
    return name.removeprefix(PREFIXES[architecture]).startswith(ENCODER_BEGINNINGS)


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


def shard_files(content: bytes, subject: str) -> tuple[str, ...]:
    """Names of the files that an index of shards names.

    Args:
        content: The whole ``model.safetensors.index.json``.
        subject: What the message is about.

    Raises:
        CheckpointError: It is no index, or names other files than safetensors of its own folder.
    """
    try:
        weight_map = msgspec.json.decode(content, type=dict[str, Any])["weight_map"]
        names = tuple(sorted(set(msgspec.convert(weight_map, dict[str, str]).values())))
    except (msgspec.MsgspecError, KeyError) as error:
        raise CheckpointError(
            f"{subject}: {INDEX_FILE} has no weight_map of tensor names to file names ({error}); fetch it again"
        ) from error
    for name in names:
        if PurePath(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{subject}: {INDEX_FILE} names the file {name!r}; only safetensors files of the same folder are "
                "allowed; fetch it again"
            )
    return names


def _architecture(facts: Mapping[str, Any], subject: str) -> Architecture:
    model_type = facts.get("model_type")
    for architecture in PREFIXES:
        if model_type == architecture:
            return architecture
    raise CheckpointError(
        f"{subject}: model_type {model_type!r} is not supported; supported are {', '.join(PREFIXES)}; "
        "use a checkpoint of one of them"
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
    auto_map = facts.get("auto_map") or {}
    if not isinstance(auto_map, dict) or "AutoModel" in auto_map:
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


def _fields(facts: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Values for `EncoderConfig` as config.json has them, unjudged; those that it must say may be absent."""
    fields = {**DEFAULT_FACTS, "architecture": architecture, "pad_id": DEFAULT_PAD_ID[architecture]}
    fields["n_types"] = DEFAULT_TYPES if "n_types" in KEYS[architecture] else 0
    if architecture == "electra":
        fields["embedding_width"] = DEFAULT_ELECTRA_EMBEDDING_WIDTH
    fields |= {ours: facts[theirs] for ours, theirs in KEYS[architecture].items() if theirs in facts}
    fields.setdefault("embedding_width", fields.get("width"))
    offset = 0
    if architecture == "mpnet":
        offset = MPNET_POSITION_OFFSET
    elif architecture in ("roberta", "xlm-roberta") and isinstance(fields["pad_id"], int):
        offset = fields["pad_id"] + 1
    return fields | {
        "position_offset": offset,
        "relative_buckets": MPNET_BUCKETS if architecture == "mpnet" else 0,
    }


def _in_their_words(text: str, keys: Mapping[str, str]) -> str:
    """A message with our fields called as in config.json: that is what its reader can look at and change."""
    return re.sub(rf"\b({'|'.join(keys)})\b", lambda found: keys[found[0]], text)


def _refuse_unused(architecture: Architecture, names: Iterable[str], subject: str) -> None:
    unused = sorted(
        name
        for name in names
        if is_encoder_tensor(architecture, name) and name.removeprefix(PREFIXES[architecture]) not in KNOWN_BUFFERS
    )
    if unused:
        raise CheckpointError(
            f"{subject}: the weights hold {len(unused)} tensors of the encoder that config.json does not ask for: "
            f"{_shown(unused)}; none may be left out in silence; use the config.json that came with the weights, "
            "and merge adapters into the layers"
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _spellings_found(architecture: Architecture, name: str, found: Container[str]) -> tuple[str, ...]:
    # A bias of a dense layer has no old name: its spellings are fewer, not doubled.
    spellings = dict.fromkeys(_spellings(architecture, foreign_name(architecture, name)))
    return tuple(spelling for spelling in spellings if spelling in found)


def _spellings(architecture: Architecture, foreign: str) -> tuple[str, ...]:
    """How a tensor may be called: with or without the model's prefix, norms by their old TensorFlow names too."""
    old = foreign.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    prefix = PREFIXES[architecture]
    return (prefix + foreign, foreign, prefix + old, old)
