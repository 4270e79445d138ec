"""Layers of an encoder as bricks; their parameters bear the canonical names (see `trunkline.model.config`).

A pre-norm or rotary encoder needs another layer around the same bricks: attention and feed-forward do not know where
the norm is applied, and attention's two steps leave room to rotate queries and keys between them. `make_layer` is the
one place that chooses a layer.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trunkline.core.errors import SpecError
from trunkline.model.config import Activation, EncoderConfig
from trunkline.model.folded import mix_first
from trunkline.model.relative import relative_buckets
from trunkline.model.shapes import AttentionBiasValues, HiddenStates, Mask, QueryStates, RowIds
from trunkline.model.tensors import LEAST_BFLOAT16, check_tensors

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
MASKED = LEAST_BFLOAT16

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Embeddings(nn.Module):
    """Word, position and type embeddings, normalised: hidden state 0."""

    def __init__(self, config: EncoderConfig) -> None:
        """Make the tables; values must be loaded."""
        super().__init__()
        inner = config.embedding_width
        self.position_offset = config.position_offset
        self.max_tokens = config.max_tokens
        self.word = _table(config.vocab_size, inner)
        self.position = _table(config.n_positions, inner)
        self.token_type = _table(config.n_types, inner) if config.n_types else None
        self.norm = nn.LayerNorm(inner, eps=config.norm_eps)
        self.projection = nn.Linear(inner, config.width) if inner != config.width else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, token_ids: RowIds, type_ids: RowIds, positions: RowIds | None = None) -> HiddenStates:
        """Embed rows that are padded on the right, or packed rows whose positions are given.

        Raises:
            SpecError: The rows are longer than the position table.
        """
        first, n_tokens = self.position_offset, token_ids.shape[1]
        if positions is not None:
            return self._embed(token_ids, type_ids, self.position(first + positions))
        if n_tokens > self.max_tokens:
            raise SpecError(
                f"encoder: rows of {n_tokens} tokens are longer than 1..{self.max_tokens}, the room in the backbone's "
                "position table; lower the task's max_length"
            )
        # Positions are counted, not read from the mask as in transformers: they differ on padding only.
        return self._embed(token_ids, type_ids, self.position.weight[first : first + n_tokens])

    def _embed(self, token_ids: RowIds, type_ids: RowIds, places: Tensor) -> HiddenStates:
        hidden = self.word(token_ids) + places
        if self.token_type is not None:
            hidden = hidden + self.token_type(type_ids)
        states: Tensor = self.dropout(self.norm(hidden))
        if self.projection is not None:
            states = self.projection(states)
        return states


class AttentionBias(nn.Module):
    """What all layers add to their attention scores: padding, and MPNet's relative position bias."""

    def __init__(self, config: EncoderConfig) -> None:
        """Make the shared table where the architecture has one; values must be loaded."""
        super().__init__()
        self.relative_bias = _table(config.relative_buckets, config.n_heads) if config.relative_buckets else None

    def forward(self, mask: Mask) -> AttentionBiasValues:
        """The bias of a batch: (rows, 1, 1, tokens), or (rows, heads, tokens, tokens) with relative positions."""
        padding = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, MASKED)[:, None, None, :]
        if self.relative_bias is None:
            return padding
        buckets = torch.from_numpy(relative_buckets(mask.shape[1], self.relative_bias.num_embeddings)).to(mask.device)
        relative: Tensor = self.relative_bias(buckets)
        return relative.permute(2, 0, 1)[None] + padding


class Attention(nn.Module):
    """Multi-head attention with its own norm, which the layer applies."""

    def __init__(self, config: EncoderConfig) -> None:
        """Make the four projections; values must be loaded."""
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout_share = config.attention_dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    @property
    def active_dropout(self) -> float:
        """Share of attention weights that is dropped now."""
        return self.dropout_share if self.training else 0.0

    def forward(self, hidden: HiddenStates, bias: AttentionBiasValues) -> HiddenStates:
        """Let every token look at all; returns one state for each."""
        query, key, value = self.project(hidden)
        return self.mix(query, key, value, bias=bias)

    def first(self, hidden: HiddenStates, bias: AttentionBiasValues) -> QueryStates:
        """The first token's state alone, equal to `forward`'s, without keys and values."""
        output: Tensor = self.output(mix_first(self, hidden, bias, dropout_share=self.active_dropout))
        return output

    def project(self, hidden: HiddenStates) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: each (rows, heads, tokens, width / heads)."""
        return (
            self._split(self.query(hidden)),
            self._split(self.key(hidden)),
            self._split(self.value(hidden)),
        )

    def mix(self, query: Tensor, key: Tensor, value: Tensor, *, bias: AttentionBiasValues) -> HiddenStates:
        """Mix the values by how well keys answer queries; takes what `project` returns."""
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=self.active_dropout)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _split(self, values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], self.n_heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two dense layers with their own norm, which the layer applies."""

    def __init__(self, config: EncoderConfig) -> None:
        """Make the two dense layers; values must be loaded."""
        super().__init__()
        self.up = nn.Linear(config.width, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, hidden: HiddenStates) -> HiddenStates:
        """Transform each token by itself."""
        output: Tensor = self.down(self.activation(self.up(hidden)))
        return output


class EncoderLayer(nn.Module):
    """One post-norm layer: the norm comes after each residual sum (Vaswani et al. 2017)."""

    def __init__(self, config: EncoderConfig) -> None:
        """Make the bricks; values must be loaded."""
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config)
        # DistilBERT was made without dropout between its attention and the residual sum.
        self.attention_output_dropout = nn.Dropout(
            0.0 if config.architecture == "distilbert" else config.hidden_dropout
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: HiddenStates, bias: AttentionBiasValues, *, first_only: bool = False) -> QueryStates:
        """Run the layer.

        Args:
            hidden: What the layer below wrote.
            bias: From `AttentionBias`.
            first_only: Whether the first token alone gets a state. A head that reads that token needs no more from
                the last layer, which then costs next to nothing.

        Returns:
            (rows, 1 or tokens, width) float.
        """
        queries = hidden[:, :1] if first_only else hidden
        attended = self.attention.first(hidden, bias) if first_only else self.attention(hidden, bias)
        middle = self.attention.norm(queries + self.attention_output_dropout(attended))
        output: Tensor = self.ffn.norm(middle + self.dropout(self.ffn(middle)))
        return output


def make_layer(config: EncoderConfig, index: int) -> EncoderLayer:
    """The layer that stands at one place of an encoder: the only choice of a layer's class.

    Args:
        config: Facts of the backbone.
        index: Absolute layer index, counted from 0. All layers of the encoders here are alike; those of others are
            not (ModernBERT's first has no norm before its attention, and every third looks at the whole text).
    """
    del index
    return EncoderLayer(config)


class EncoderStack(nn.Module):
    """Embeddings, what layers share, and the lowest layers: what a trunk and a fully tuned model have in common.

    Attributes:
        depth: How many layers it has.
    """

    def __init__(self, config: EncoderConfig, *, depth: int) -> None:
        """Make the modules; values must be loaded."""
        super().__init__()
        self.depth = depth
        self.embeddings = Embeddings(config)
        self.shared = AttentionBias(config)
        self.layers = nn.ModuleList(make_layer(config, index) for index in range(depth))


def build_empty(make: Callable[[], ModuleT]) -> ModuleT:
    """Build a module whose every parameter is NaN until it is loaded.

    Nothing is drawn from a random generator, and a parameter that was forgotten shows at once.
    """
    with torch.device("meta"):
        module = make()
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            # Not `to_empty`: on the meta device it imports a compiler, which takes over a second.
            setattr(part, name, nn.Parameter(torch.full(tuple(parameter.shape), math.nan)))
    return module


def load_parameters(module: nn.Module, tensors: Mapping[str, np.ndarray], *, prefix: str = "", subject: str) -> None:
    """Copy arrays into a module's parameters, every one of them.

    Args:
        module: What to fill.
        tensors: Canonical name -> float32 array; more than the module has is allowed.
        prefix: What canonical names have before the module's own names.
        subject: What the message is about.

    Raises:
        CheckpointError: A tensor is missing, or has another shape or dtype; nothing was copied then.
    """
    parameters = {prefix + name: parameter for name, parameter in module.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    wanted = check_tensors(tensors, shapes, subject)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(wanted[name]))


def parameter_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of a module's parameters: canonical name -> float32 array."""
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in module.named_parameters()
    }


def _table(n_lines: int, width: int) -> nn.Embedding:
    # Drawing random values on the meta device would import a compiler too (see `build_empty`).
    return nn.Embedding(n_lines, width, _weight=torch.empty(n_lines, width))
