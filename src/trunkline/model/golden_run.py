"""Golden logits: what a branch answers to synthetic texts, each run alone. Trainer and engine use the same function."""

from collections.abc import Sequence

import numpy as np
import torch

from trunkline.core.specs import BranchSpec
from trunkline.core.types import Example
from trunkline.data.collate import collate
from trunkline.data.tokenize import Tokenizer
from trunkline.model.branch import Branch
from trunkline.model.trunk import Trunk


def golden_logits(
    trunk: Trunk, branch: Branch, tokenizer: Tokenizer, spec: BranchSpec, inputs: Sequence[Example]
) -> list[np.ndarray]:
    """Run each input alone, in a batch of one row, in evaluation and inference mode.

    Args:
        trunk: At least as deep as the branch's exit.
        branch: May be in training mode; it is put back into it afterwards.
        tokenizer: The backbone's tokenizer.
        spec: What the branch is; ``exit_layer`` and ``max_length`` are read.
        inputs: Texts or pairs, as from `trunkline.bundle.golden.golden_inputs`.

    Returns:
        For each input (1, n_outputs) float32, or (tokens, n_outputs) for tagging, special tokens included.
    """
    device = next(trunk.parameters()).device
    rows = tokenizer.encode(inputs, max_length=spec.max_length)
    was_training = branch.training
    branch.eval()
    answers: list[np.ndarray] = []
    try:
        with torch.inference_mode():
            for row in rows:
                batch = collate([row], tokenizer.pad_id)
                token_ids = torch.from_numpy(batch.token_ids).to(device)
                type_ids = torch.from_numpy(batch.type_ids).to(device)
                mask = torch.from_numpy(batch.mask).to(device)
                hidden = trunk(token_ids, type_ids, mask, exits=(spec.exit_layer,))[spec.exit_layer]
                logits = branch(hidden, trunk.bias(mask), mask)
                answers.append(logits.to("cpu", torch.float32).numpy().reshape(-1, spec.n_outputs))
    finally:
        branch.train(was_training)
    return answers
