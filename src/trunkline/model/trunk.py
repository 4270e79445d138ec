"""The trunk: embeddings and lowest layers, frozen, shared by all tasks."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from trunkline.core.errors import SpecError
from trunkline.model.config import EncoderConfig, layer_tensor_name
from trunkline.model.encoder import AttentionBias, EncoderStack, build_empty, load_parameters, make_layer
from trunkline.model.shapes import HiddenStates, Mask, RowIds


class Trunk(EncoderStack):
    """Frozen lower part of a backbone; never in training mode, so its dropout never acts. Made by `Trunk.build`."""

    @classmethod
    def build(cls, config: EncoderConfig, tensors: Mapping[str, np.ndarray], *, depth: int) -> "Trunk":
        """Build a frozen trunk and load all of it.

        Args:
            config: Facts of the backbone.
            tensors: Canonical name -> float32 array; layers above ``depth`` may be absent and are not read.
            depth: Layers of the trunk, 0..n_layers.

        Raises:
            SpecError: ``depth`` is outside 0..n_layers.
            CheckpointError: A tensor is missing, or has another shape or dtype.
        """
        if not 0 <= depth <= config.n_layers:
            raise SpecError(
                f"trunk: depth {depth} is outside 0..{config.n_layers} (backbone has {config.n_layers} layers); "
                "choose a lower depth"
            )
        trunk = build_empty(lambda: cls(config, depth=depth))
        load_parameters(trunk, tensors, subject=f"trunk of {depth} layers")
        trunk.requires_grad_(requires_grad=False)
        return trunk.eval()

    @property
    def bias(self) -> AttentionBias:
        """Makes the attention bias that the trunk's layers and the branches above them use."""
        return self.shared

    def train(self, mode: bool = True) -> "Trunk":  # noqa: FBT001, FBT002 - the signature of torch
        """Stay in evaluation mode whatever is asked: the frozen part runs without dropout (design.md, section 3)."""
        del mode
        super().train(mode=False)
        return self

    def forward(
        self, token_ids: RowIds, type_ids: RowIds, mask: Mask, *, exits: Sequence[int]
    ) -> dict[int, HiddenStates]:
        """Run up to the deepest exit.

        Args:
            token_ids: Padded on the right.
            type_ids: 0 or 1 for each token.
            mask: Which tokens are real.
            exits: After how many layers states are wanted; 0 reads the embeddings.

        Returns:
            Exit -> hidden states; what stands at padding is of no use.

        Raises:
            SpecError: An exit is outside 0..depth.
        """
        check_exits(exits, self.depth)
        hidden = self.embeddings(token_ids, type_ids)
        states: dict[int, HiddenStates] = {0: hidden} if 0 in exits else {}
        bias = self.shared(mask)
        for layer in range(max(exits, default=0)):
            hidden = self.layers[layer](hidden, bias)
            if layer + 1 in exits:
                states[layer + 1] = hidden
        return states


def load_layers(config: EncoderConfig, tensors: Mapping[str, np.ndarray], layers: range) -> nn.ModuleList:
    """Some layers of a trunk, for answering.

    Args:
        config: Facts of the backbone.
        tensors: Canonical name -> float32 array; those of other layers are not read.
        layers: Absolute layer indices.

    Raises:
        CheckpointError: A tensor is missing, or has another shape or dtype.
    """
    modules = build_empty(lambda: nn.ModuleList(make_layer(config, index) for index in layers))
    for index, module in zip(layers, modules, strict=True):
        load_parameters(module, tensors, prefix=layer_tensor_name(index, ""), subject=f"layer {index}")
    return modules.requires_grad_(requires_grad=False).eval()


def check_exits(exits: Sequence[int], depth: int) -> None:
    """Refuse exits that a trunk of ``depth`` layers does not have.

    Raises:
        SpecError: An exit is outside 0..depth.
    """
    for exit_layer in exits:
        if not 0 <= exit_layer <= depth:
            raise SpecError(
                f"trunk: exit layer {exit_layer} is outside 0..{depth} (trunk has {depth} layers); "
                "choose a lower exit_layer or extend the trunk"
            )
