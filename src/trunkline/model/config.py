"""Facts of an encoder: its sizes and the names and shapes of its tensors. No torch here."""

import math
from typing import Literal, TypeAlias

from trunkline.core.errors import CheckpointError
from trunkline.core.specs import Spec

Architecture: TypeAlias = Literal["bert", "roberta", "xlm-roberta", "mpnet", "electra", "distilbert"]
Activation: TypeAlias = Literal["gelu", "gelu_tanh", "relu", "silu"]
TensorShape: TypeAlias = tuple[int, ...]


class EncoderConfig(Spec, frozen=True, kw_only=True, omit_defaults=True):
    """Sizes and constants of one post-norm encoder.

    A field that is added later has a default, which is neither written nor digested: stored trunks keep their chain,
    and what was stored before is read as before.

    Attributes:
        architecture: Whose checkpoint format and position rule it follows.
        n_layers: Layers of the backbone.
        width: Size of a hidden state.
        n_heads: Attention heads of each layer.
        ffn_width: Size between the two dense layers of the feed-forward part.
        vocab_size: Lines of the word embedding table.
        n_positions: Lines of the position embedding table.
        n_types: Lines of the type embedding table; 0 where the architecture has none.
        pad_id: Token id of padding.
        position_offset: Line of the position table that the first token reads.
        embedding_width: Size of an embedding before it is projected to ``width``; mostly equal to it.
        relative_buckets: Lines of the relative position bias that all layers share; 0 = none.
        activation: Function between the two dense layers.
        norm_eps: Added to the variance in layer norms.
        hidden_dropout: Share of hidden values dropped in training.
        attention_dropout: Share of attention weights dropped in training.
    """

    architecture: Architecture
    n_layers: int
    width: int
    n_heads: int
    ffn_width: int
    vocab_size: int
    n_positions: int
    n_types: int
    pad_id: int
    position_offset: int
    embedding_width: int
    relative_buckets: int
    activation: Activation
    norm_eps: float
    hidden_dropout: float
    attention_dropout: float

    def __post_init__(self) -> None:
        """Refuse sizes that no encoder can have."""
        for name in ("n_layers", "width", "n_heads", "ffn_width", "vocab_size", "embedding_width"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"encoder config: {name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.n_heads:
            raise CheckpointError(
                f"encoder config: width {self.width} is not a multiple of n_heads {self.n_heads}; "
                "the checkpoint's config.json is wrong"
            )
        if self.max_tokens < 1:
            raise CheckpointError(
                f"encoder config: n_positions {self.n_positions} leaves no room after position_offset "
                f"{self.position_offset}; the checkpoint's config.json is wrong"
            )
        if not 0 <= self.pad_id < self.vocab_size:
            raise CheckpointError(
                f"encoder config: pad_id {self.pad_id} is outside 0..{self.vocab_size - 1}; "
                "the checkpoint's config.json is wrong"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise CheckpointError(
                    f"encoder config: {name} is {getattr(self, name)}; it must be at least 0 and below 1"
                )
        if not 0.0 < self.norm_eps < math.inf:
            raise CheckpointError(f"encoder config: norm_eps is {self.norm_eps}; it must be above 0")

    @property
    def max_tokens(self) -> int:
        """Longest row the position table has room for, special tokens included."""
        return self.n_positions - self.position_offset


def layer_tensor_shapes(config: EncoderConfig) -> dict[str, TensorShape]:
    """Names and shapes of one layer's tensors.

    Returns:
        Name relative to the layer (``attention.query.weight``) -> shape; dense weights are (out, in).
    """
    width, ffn_width = config.width, config.ffn_width
    return {
        **_dense("attention.query", width, width),
        **_dense("attention.key", width, width),
        **_dense("attention.value", width, width),
        **_dense("attention.output", width, width),
        **_norm("attention.norm", width),
        **_dense("ffn.up", ffn_width, width),
        **_dense("ffn.down", width, ffn_width),
        **_norm("ffn.norm", width),
    }


def embedding_tensor_shapes(config: EncoderConfig) -> dict[str, TensorShape]:
    """Names and shapes of what lies below layer 0 (``embeddings.*``) and of what layers share (``shared.*``)."""
    inner = config.embedding_width
    shapes: dict[str, TensorShape] = {
        "embeddings.word.weight": (config.vocab_size, inner),
        "embeddings.position.weight": (config.n_positions, inner),
        **_norm("embeddings.norm", inner),
    }
    if config.n_types:
        shapes["embeddings.token_type.weight"] = (config.n_types, inner)
    if inner != config.width:
        shapes.update(_dense("embeddings.projection", config.width, inner))
    if config.relative_buckets:
        shapes["shared.relative_bias.weight"] = (config.relative_buckets, config.n_heads)
    return shapes


def layers_tensor_shapes(config: EncoderConfig, layers: range) -> dict[str, TensorShape]:
    """Names and shapes of the tensors of several layers; names carry the absolute layer index, counted from 0."""
    shapes = layer_tensor_shapes(config)
    return {layer_tensor_name(layer, name): shape for layer in layers for name, shape in shapes.items()}


def trunk_tensor_shapes(config: EncoderConfig, *, depth: int) -> dict[str, TensorShape]:
    """Names and shapes of all tensors of a trunk with ``depth`` layers."""
    return {**embedding_tensor_shapes(config), **layers_tensor_shapes(config, range(depth))}


def layer_tensor_name(layer: int, name: str) -> str:
    """Canonical name of a tensor of one layer; ``layer`` is absolute, counted from 0."""
    return f"layers.{layer}.{name}"


def _dense(name: str, n_out: int, n_in: int) -> dict[str, TensorShape]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, width: int) -> dict[str, TensorShape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
