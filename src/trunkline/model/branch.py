"""Branches, and the whole model of full fine-tuning."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from trunkline.core.errors import SpecError
from trunkline.core.specs import BranchSpec, Kind, Pooling
from trunkline.model.config import EncoderConfig
from trunkline.model.encoder import EncoderStack, build_empty, load_parameters, make_layer, parameter_arrays
from trunkline.model.heads import ClsHead, Head, build_head, init_head
from trunkline.model.shapes import AttentionBiasValues, HiddenStates, Mask, RowIds, RowLogits, RowStates, TokenLogits


class Branch(nn.Module):
    """One task's own layers plus its head (paper section 3.1: task-specific layers).

    Attributes:
        exit_layer: How many trunk layers run before it.
        own_layers: How many layers it has itself; 0 puts the head on the trunk.
    """

    def __init__(self, config: EncoderConfig, head: Head, *, exit_layer: int, own_layers: int) -> None:
        """Make the modules; use `Branch.build`."""
        super().__init__()
        self.exit_layer = exit_layer
        self.own_layers = own_layers
        # A dict, so that parameter names carry the absolute layer index.
        self.layers = nn.ModuleDict(
            {str(layer): make_layer(config, layer) for layer in range(exit_layer, exit_layer + own_layers)}
        )
        self.head = head

    @classmethod
    def build(  # noqa: PLR0913 - all are plain facts of one branch, keyword-only
        cls,
        config: EncoderConfig,
        *,
        exit_layer: int,
        own_layers: int,
        kind: Kind,
        pooling: Pooling,
        n_outputs: int,
        seed: int,
    ) -> "Branch":
        """Build a branch with a new head; its layers are NaN until `load`.

        Args:
            config: Facts of the backbone.
            exit_layer: How many trunk layers run before the branch, 0..n_layers.
            own_layers: How many layers it has itself.
            kind: What is predicted.
            pooling: Where the head reads; ignored by tagging.
            n_outputs: Labels, or 1 for a score.
            seed: Decides the values of the new head, alone.

        Raises:
            SpecError: The layers reach beyond the backbone, or a count is negative.
        """
        if exit_layer < 0 or own_layers < 0 or exit_layer + own_layers > config.n_layers:
            raise SpecError(
                f"branch: exit layer {exit_layer} with {own_layers} own layers is outside 0..{config.n_layers} "
                f"(backbone has {config.n_layers} layers); choose a lower exit_layer or fewer own_layers"
            )

        def make() -> Branch:
            head = build_head(kind, pooling, width=config.width, n_outputs=n_outputs, dropout=config.hidden_dropout)
            return cls(config, head, exit_layer=exit_layer, own_layers=own_layers)

        branch = build_empty(make)
        init_head(branch.head, seed=seed)
        return branch

    def load(self, tensors: Mapping[str, np.ndarray], *, head: bool) -> None:
        """Fill the branch's layers and, if asked, its head.

        Args:
            tensors: Canonical name -> float32 array, for example a backbone's, a teacher's or a stored branch's; what
                the branch does not have is not read.
            head: Whether the head is loaded too.

        Raises:
            CheckpointError: A tensor is missing, or has another shape or dtype; the message names it.
        """
        subject = f"branch at exit {self.exit_layer} with {self.own_layers} own layers"
        load_parameters(self.layers, tensors, prefix="layers.", subject=subject)
        if head:
            load_parameters(self.head, tensors, prefix="head.", subject=subject)

    def tensors(self) -> dict[str, np.ndarray]:
        """Copies of all parameters: canonical name -> float32 array."""
        return parameter_arrays(self)

    def forward(self, hidden: HiddenStates, bias: AttentionBiasValues, mask: Mask) -> RowLogits | TokenLogits:
        """Logits of a batch.

        Args:
            hidden: The trunk's states at the branch's exit.
            bias: From the trunk's `AttentionBias`, for the same mask.
            mask: Which tokens are real.

        Returns:
            (rows, n_outputs), or (rows, tokens, n_outputs) for tagging.
        """
        return self.features_and_logits(hidden, bias, mask)[1]

    def features_and_logits(
        self, hidden: HiddenStates, bias: AttentionBiasValues, mask: Mask
    ) -> tuple[RowStates | HiddenStates, RowLogits | TokenLogits]:
        """What the head reads, (rows, width) or for tagging (rows, tokens, width), and the logits of `forward`."""
        return run_layers(list(self.layers.values()), self.head, hidden=hidden, bias=bias, mask=mask)


def load_branch(spec: BranchSpec, config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> Branch:
    """Build a branch for answering: every parameter loaded, frozen, in evaluation mode.

    Args:
        spec: What the branch is.
        config: Facts of the backbone.
        tensors: Canonical name to float32 values: its own layers and its head.

    Raises:
        CheckpointError: A tensor is missing, or has another shape or dtype.
    """
    branch = Branch.build(
        config,
        exit_layer=spec.exit_layer,
        own_layers=spec.own_layers,
        kind=spec.kind,
        pooling=spec.pooling,
        n_outputs=spec.n_outputs,
        seed=0,  # Without effect: the head is loaded.
    )
    branch.load(tensors, head=True)
    return branch.requires_grad_(requires_grad=False).eval()


class FullModel(EncoderStack):
    """The whole backbone with a head, all of it trained: the baseline of full fine-tuning, never a branch."""

    def __init__(self, config: EncoderConfig, head: Head) -> None:
        """Make the modules; use `FullModel.build`."""
        super().__init__(config, depth=config.n_layers)
        self.head = head

    @classmethod
    def build(
        cls,
        config: EncoderConfig,
        tensors: Mapping[str, np.ndarray],
        *,
        kind: Kind,
        pooling: Pooling,
        n_outputs: int,
        seed: int,
    ) -> "FullModel":
        """Build the model, load everything but the head, and draw the head.

        Args:
            config: Facts of the backbone.
            tensors: Canonical name -> float32 array, all of the backbone's.
            kind: What is predicted.
            pooling: Where the head reads; ignored by tagging.
            n_outputs: Labels, or 1 for a score.
            seed: Decides the values of the new head, alone.

        Raises:
            CheckpointError: A tensor is missing, or has another shape or dtype.
        """

        def make() -> FullModel:
            head = build_head(kind, pooling, width=config.width, n_outputs=n_outputs, dropout=config.hidden_dropout)
            return cls(config, head)

        model = build_empty(make)
        for name, part in model.named_children():
            if name != "head":
                load_parameters(part, tensors, prefix=f"{name}.", subject="full model")
        init_head(model.head, seed=seed)
        return model

    def tensors(self) -> dict[str, np.ndarray]:
        """Copies of all parameters: canonical name -> float32 array."""
        return parameter_arrays(self)

    def forward(self, token_ids: RowIds, type_ids: RowIds, mask: Mask) -> RowLogits | TokenLogits:
        """Logits of a batch: (rows, n_outputs), or (rows, tokens, n_outputs) for tagging."""
        return self.features_and_logits(token_ids, type_ids, mask)[1]

    def features_and_logits(
        self, token_ids: RowIds, type_ids: RowIds, mask: Mask
    ) -> tuple[RowStates | HiddenStates, RowLogits | TokenLogits]:
        """What the head reads, (rows, width) or for tagging (rows, tokens, width), and the logits of `forward`."""
        hidden = self.embeddings(token_ids, type_ids)
        return run_layers(list(self.layers), self.head, hidden=hidden, bias=self.shared(mask), mask=mask)


def run_layers(
    layers: list[nn.Module], head: Head, *, hidden: HiddenStates, bias: AttentionBiasValues, mask: Mask
) -> tuple[Tensor, Tensor]:
    """Run layers and a head; under a head that reads the first token, the last layer makes only that one.

    Returns:
        What the head reads, and its logits.
    """
    first_only = isinstance(head, ClsHead)
    for layer in layers[:-1]:
        hidden = layer(hidden, bias)
    for layer in layers[-1:]:
        hidden = layer(hidden, bias, first_only=first_only)
    features = head.read(hidden, mask)
    return features, head(features)
