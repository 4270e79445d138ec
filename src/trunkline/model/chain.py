"""The identity of a trunk: a chain of digests, one value for each depth (design.md, section 4)."""

import hashlib
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from trunkline.core.specs import spec_digest
from trunkline.model.config import EncoderConfig, embedding_tensor_shapes, layers_tensor_shapes, trunk_tensor_shapes
from trunkline.model.tensors import check_tensors


def trunk_chain(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], tokenizer_json: str, *, depth: int
) -> tuple[str, ...]:
    """Digest a trunk layer by layer.

    Value 0 covers the embeddings, the shared tensors, the tokenizer and what the config says about a layer; value k
    covers value k-1 and layer k-1. So a deeper trunk continues the chain of a shallower one, and two trunks agree at
    an exit exactly when everything below it is the same.

    Args:
        config: Facts of the encoder; its number of layers and its dropouts are not digested, because the frozen
            layers below an exit do not depend on them.
        tensors: Canonical name -> float32 array; layers above ``depth`` may be absent.
        tokenizer_json: Canonical JSON of the tokenizer.
        depth: How many layers to digest.

    Returns:
        ``depth + 1`` SHA-256 values in hex.

    Raises:
        CheckpointError: A tensor is missing, or has another shape or dtype.
    """
    check_tensors(tensors, trunk_tensor_shapes(config, depth=depth), "trunk chain")
    facts = msgspec.structs.replace(config, n_layers=1, hidden_dropout=0.0, attention_dropout=0.0)
    tokenizer_digest = hashlib.sha256(tokenizer_json.encode()).hexdigest()
    values = [_link((spec_digest(facts), tokenizer_digest), tensors, embedding_tensor_shapes(config))]
    for layer in range(depth):
        values.append(_link((values[-1],), tensors, layers_tensor_shapes(config, range(layer, layer + 1))))
    return tuple(values)


def _link(before: Iterable[str], tensors: Mapping[str, np.ndarray], names: Iterable[str]) -> str:
    digest = hashlib.sha256("|".join(before).encode())
    for name in sorted(names):
        array = np.asarray(tensors[name], dtype="<f4", order="C")
        # The header fixes how many bytes follow, so no two lists of tensors give the same stream.
        digest.update(msgspec.json.encode([name, array.dtype.str, array.shape]))
        digest.update(array.data)
    return digest.hexdigest()
