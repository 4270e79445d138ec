"""Shapes of backbones and tasks: what a contestant is built for."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import BertConfig

Kind = Literal["classification", "tagging", "regression"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A BERT encoder.

    Attributes:
        n_layers: Transformer layers.
        width: Hidden size.
        n_heads: Attention heads; they divide the width.
        ffn_width: Width between the two products of the feed-forward part.
        vocab_size: Word pieces; the tokenizer in use has 30,522.
        max_tokens: Positions, and with it the longest text.
        norm_eps: Added to the variance in layer norms.
    """

    n_layers: int
    width: int
    n_heads: int
    ffn_width: int
    vocab_size: int = 30522
    max_tokens: int = 512
    norm_eps: float = 1e-12

    def with_layers(self, n_layers: int) -> "Shape":
        """The same encoder, cut to or grown to `n_layers`."""
        return replace(self, n_layers=n_layers)

    def bert_config(self) -> "BertConfig":
        """As transformers names it; SDPA attention, no dropout."""
        from transformers import BertConfig

        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=self.ffn_width,
            max_position_embeddings=self.max_tokens,
            layer_norm_eps=self.norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )


@dataclass(frozen=True, slots=True)
class ServedTask:
    """A task that every contestant answers.

    Attributes:
        name: The key of its answers.
        kind: Tagging answers for each token, the others for each text.
        n_outputs: Logits for each token or text; 1 for a regression.
    """

    name: str
    kind: Kind
    n_outputs: int


SHAPES = {"bert-base": Shape(12, 768, 12, 3072), "minilm": Shape(6, 384, 12, 1536)}
"""Shapes that can be named on the command line."""


def sample_tasks(n_tasks: int) -> tuple[ServedTask, ...]:
    """`n_tasks` tasks as an assistant has them: of five, one is a tagger and one a regression."""
    cycle = (("intent", "classification", 60), ("slots", "tagging", 41), ("score", "regression", 1))
    cycle = (*cycle, ("domain", "classification", 18), ("mood", "classification", 7))
    drawn = (cycle[place % len(cycle)] for place in range(n_tasks))
    return tuple(ServedTask(f"{name}{place}", kind, n) for place, (name, kind, n) in enumerate(drawn))
