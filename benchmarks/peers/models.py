"""Random models of a given shape: the reference from transformers, and the same weights in a lean form to compile.

The lean form computes what ``transformers.BertModel`` computes with token types 0, without its mask utilities and
options, so that tracing takes a second instead of a quarter minute and no compiler meets anything but the encoder.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

from benchmarks.peers.shapes import ServedTask, Shape

Attention = Literal["sdpa", "fused-sdpa", "written-out"]
"""SDPA; SDPA on one product for queries, keys and values; or plain products, which ONNX Runtime's fusion looks for."""


class Reference(nn.Module):
    """``BertModel`` of transformers and a linear head for each task; sentence tasks read the pooler.

    Attributes:
        tasks: In the order of the outputs.
    """

    def __init__(self, shape: Shape, tasks: tuple[ServedTask, ...]) -> None:
        super().__init__()
        self.tasks = tasks
        self.eps = shape.norm_eps
        self.bert = BertModel(shape.bert_config(), add_pooling_layer=any(task.kind != "tagging" for task in tasks))
        self.heads = nn.ModuleList(nn.Linear(shape.width, task.n_outputs) for task in tasks)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Logits for each task, tokens (B, S, C) or texts (B, C)."""
        out = self.bert(input_ids=ids, attention_mask=mask)
        return tuple(
            head(out.last_hidden_state if task.kind == "tagging" else out.pooler_output)
            for task, head in zip(self.tasks, self.heads, strict=True)
        )


def reference(shape: Shape, tasks: tuple[ServedTask, ...], seed: int) -> Reference:
    """A model whose every weight, bias and norm is drawn from `seed`.

    Heads are drawn wide enough that logits are about 1 in size, so that a tolerance on them means something.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Reference(shape, tasks).eval()
        for parameter in model.bert.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        for head in model.heads:
            head.weight.normal_(std=1.5 / shape.width**0.5)
    return model.requires_grad_(requires_grad=False)


def seed_of(place: int) -> int:
    """The seed of the model of the task at `place`: the same for every contestant."""
    return 1000 + place


class Lean(nn.Module):
    """The same function on the same memory as a `Reference`.

    Args:
        model: Whose parameters are used, not copied (a fused product is a copy).
        attention: How attention is written.
    """

    def __init__(self, model: Reference, attention: Attention = "sdpa") -> None:
        super().__init__()
        embeddings = model.bert.embeddings
        self.tasks = model.tasks
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        # every token is of type 0, so its row goes into the positions once
        types = embeddings.token_type_embeddings.weight[0]
        self.positions = nn.Parameter(embeddings.position_embeddings.weight + types, requires_grad=False)
        self.layers = nn.ModuleList(LeanLayer(layer, attention) for layer in model.bert.encoder.layer)
        self.pooler = model.bert.pooler.dense if model.bert.pooler is not None else None
        self.heads = model.heads

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Logits for each task, tokens (B, S, C) or texts (B, C)."""
        hidden = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        bias = ((1.0 - mask.to(hidden.dtype)) * -10000.0)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, bias)
        pooled = torch.tanh(self.pooler(hidden[:, 0])) if self.pooler is not None else None
        return tuple(
            head(hidden if task.kind == "tagging" else pooled)
            for task, head in zip(self.tasks, self.heads, strict=True)
        )


class LeanLayer(nn.Module):
    """One encoder layer, post-norm."""

    def __init__(self, layer: nn.Module, attention: Attention) -> None:
        super().__init__()
        own = layer.attention.self
        self.n_heads, self.head_width = own.num_attention_heads, own.attention_head_size
        self.attention = attention
        parts = (own.query, own.key, own.value)
        self.projections = nn.ModuleList([_joined(parts)] if attention == "fused-sdpa" else parts)
        self.out, self.norm = layer.attention.output.dense, layer.attention.output.LayerNorm
        self.up, self.down, self.last_norm = layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Hidden states (B, S, H) to hidden states; `bias` (B, 1, 1, S) is added to scores."""
        hidden = self.norm(self.out(self._attend(hidden, bias)) + hidden)
        return self.last_norm(self.down(functional.gelu(self.up(hidden))) + hidden)

    def _attend(self, hidden: Tensor, bias: Tensor) -> Tensor:
        batch, n_tokens = hidden.shape[0], hidden.shape[1]
        projected = [product(hidden) for product in self.projections]
        if self.attention == "fused-sdpa":
            projected = list(projected[0].chunk(3, dim=-1))
        q, k, v = (part.view(batch, n_tokens, self.n_heads, self.head_width).permute(0, 2, 1, 3) for part in projected)
        if self.attention == "written-out":
            scores = torch.matmul(q, k.transpose(-1, -2)) / self.head_width**0.5 + bias
            mixed = torch.matmul(functional.softmax(scores, dim=-1), v)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return mixed.permute(0, 2, 1, 3).reshape(batch, n_tokens, self.n_heads * self.head_width)


def _joined(parts: tuple[nn.Linear, ...]) -> nn.Linear:
    joined = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    return joined
