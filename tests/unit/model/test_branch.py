"""Branches and the full model: absolute layer names, strict loading, heads that only the seed decides."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import ARCHITECTURES, tiny_backbone
from trunkline.core.errors import CheckpointError, SpecError
from trunkline.core.specs import Kind, Pooling
from trunkline.model.branch import Branch, FullModel
from trunkline.model.config import Architecture, EncoderConfig, trunk_tensor_shapes
from trunkline.model.encoder import EncoderLayer
from trunkline.model.tensors import read_tensors, write_tensors
from trunkline.model.trunk import Trunk

BACKBONE = tiny_backbone()
IDS = torch.randint(4, 200, (3, 9), generator=torch.Generator().manual_seed(0))
TYPES = torch.zeros_like(IDS)
MASK = torch.arange(9)[None, :] < torch.tensor([9, 5, 2])[:, None]


def branch_of(**changes: Any) -> Branch:
    facts: dict[str, Any] = {
        "exit_layer": 1,
        "own_layers": 2,
        "kind": "classification",
        "pooling": "cls",
        "n_outputs": 3,
        "seed": 0,
    }
    return Branch.build(BACKBONE.config, **(facts | changes))


def loaded_branch(**changes: Any) -> Branch:
    branch = branch_of(**changes)
    branch.load(BACKBONE.tensors, head=False)
    return branch.eval()


def logits_of(branch: Branch) -> torch.Tensor:
    trunk = Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=branch.exit_layer)
    with torch.inference_mode():
        states = trunk(IDS, TYPES, MASK, exits=(branch.exit_layer,))
        logits: torch.Tensor = branch(states[branch.exit_layer], trunk.bias(MASK), MASK)
    return logits


@pytest.mark.parametrize(("exit_layer", "own_layers"), [(-1, 1), (1, -1), (3, 2), (5, 0)])
def test_layers_beyond_the_backbone_are_refused(exit_layer: int, own_layers: int) -> None:
    with pytest.raises(SpecError, match=r"is outside 0\.\.4 \(backbone has 4 layers\)"):
        branch_of(exit_layer=exit_layer, own_layers=own_layers)


def test_tensors_bear_absolute_layer_names() -> None:
    names = loaded_branch().tensors()
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {"1", "2"}
    assert {name for name in names if name.startswith("head.")} == {
        "head.pooler.weight",
        "head.pooler.bias",
        "head.output.weight",
        "head.output.bias",
    }


def test_layers_are_nan_until_they_are_loaded() -> None:
    assert all(parameter.isnan().all() for parameter in branch_of().layers.parameters())


def test_a_missing_layer_is_refused_and_named() -> None:
    tensors = {name: array for name, array in BACKBONE.tensors.items() if not name.startswith("layers.2.")}
    with pytest.raises(CheckpointError, match=r"branch at exit 1 .* missing \(layers\.2\.attention"):
        branch_of().load(tensors, head=False)


def test_a_missing_head_is_refused_and_named() -> None:
    with pytest.raises(CheckpointError, match=r"missing \(head\.output\.bias"):
        branch_of().load(BACKBONE.tensors, head=True)


def test_a_head_of_another_size_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"'head\.output\.weight' has shape \(5, 16\); the config allows \(3, 16\)"
    ):
        branch_of().load(loaded_branch(n_outputs=5).tensors(), head=True)


def test_loading_layers_leaves_the_head_alone() -> None:
    branch = branch_of()
    before = branch.head.output.weight.detach().clone()
    branch.load(loaded_branch(seed=9).tensors(), head=False)
    assert torch.equal(branch.head.output.weight, before)


def test_save_and_load_is_identity() -> None:
    branch = loaded_branch()
    again = branch_of(seed=7)
    again.load(read_tensors(write_tensors(branch.tensors()), "branch"), head=True)
    assert torch.equal(logits_of(again.eval()), logits_of(branch))


def test_returned_tensors_are_copies() -> None:
    branch = loaded_branch()
    branch.tensors()["head.output.bias"][:] = 9.0
    assert not branch.head.output.bias.any()


def test_equal_seeds_give_equal_heads_and_other_seeds_give_others() -> None:
    weights = [branch_of(seed=seed).tensors()["head.output.weight"] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_building_a_branch_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    branch_of()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_head_has_small_weights_and_no_bias() -> None:
    head = branch_of(n_outputs=200).tensors()
    assert head["head.output.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert not head["head.output.bias"].any()
    assert not head["head.pooler.bias"].any()


@pytest.mark.parametrize(
    ("kind", "pooling", "shape"),
    [
        ("classification", "cls", (3, 4)),
        ("multilabel", "mean", (3, 4)),
        ("regression", "mean", (3, 4)),
        ("tagging", "cls", (3, 9, 4)),
    ],
)
def test_logits_have_a_line_for_each_row_or_token(kind: Kind, pooling: Pooling, shape: tuple[int, ...]) -> None:
    assert logits_of(loaded_branch(kind=kind, pooling=pooling, n_outputs=4)).shape == shape


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_branch_without_layers_reads_the_trunk(pooling: Pooling) -> None:
    branch = loaded_branch(exit_layer=4, own_layers=0, pooling=pooling)
    assert not list(branch.layers.parameters())
    assert logits_of(branch).isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_trunk_and_branch_together_equal_the_full_model(architecture: Architecture, pooling: Pooling) -> None:
    backbone = tiny_backbone(architecture)
    head: dict[str, Any] = {"kind": "classification", "pooling": pooling, "n_outputs": 3, "seed": 5}
    full = FullModel.build(backbone.config, backbone.tensors, **head).eval()
    trunk = Trunk.build(backbone.config, backbone.tensors, depth=1)
    branch = Branch.build(backbone.config, exit_layer=1, own_layers=3, **head).eval()
    branch.load(backbone.tensors, head=False)
    with torch.inference_mode():
        parts = branch(trunk(IDS, TYPES, MASK, exits=(1,))[1], trunk.bias(MASK), MASK)
        assert torch.equal(parts, full(IDS, TYPES, MASK))


def test_the_mean_ignores_padding() -> None:
    branch = loaded_branch(exit_layer=0, own_layers=0, pooling="mean")
    hidden = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1))
    bias = torch.zeros(3, 1, 1, 9)
    other = torch.where(MASK[..., None], hidden, 50.0)
    torch.testing.assert_close(branch(hidden, bias, MASK), branch(other, bias, MASK), rtol=0, atol=1e-6)


def test_every_layer_of_a_branch_runs_once_for_a_batch() -> None:
    branch = loaded_branch()
    ran: list[str] = []
    for name, layer in branch.layers.items():
        layer.register_forward_hook(lambda *_args, name=name: ran.append(name))
    logits_of(branch)
    assert ran == ["1", "2"]


def test_all_parameters_of_a_branch_learn() -> None:
    branch = loaded_branch()
    hidden = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(2))
    branch(hidden, torch.zeros(3, 1, 1, 9), MASK).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in branch.named_parameters()}
    # A bias of the keys adds the same to all scores of a query, which softmax takes out again.
    gradients = {name: grad for name, grad in gradients.items() if not name.endswith("attention.key.bias")}
    assert [name for name, grad in gradients.items() if grad is None or not grad.any()] == []


def test_the_full_model_has_the_backbones_tensors_and_a_head() -> None:
    model = FullModel.build(BACKBONE.config, BACKBONE.tensors, kind="tagging", pooling="cls", n_outputs=3, seed=0)
    expected = set(trunk_tensor_shapes(BACKBONE.config, depth=4)) | {"head.output.weight", "head.output.bias"}
    assert set(model.tensors()) == expected


def test_the_full_model_refuses_missing_tensors() -> None:
    tensors = {name: array for name, array in BACKBONE.tensors.items() if name != "embeddings.norm.bias"}
    with pytest.raises(CheckpointError, match=r"full model: 1 of \d+ tensors are missing \(embeddings\.norm\.bias\)"):
        FullModel.build(BACKBONE.config, tensors, kind="tagging", pooling="cls", n_outputs=3, seed=0)


def test_trunk_branch_and_full_model_take_their_layers_from_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(config: EncoderConfig, index: int) -> torch.nn.Module:
        asked.append(index)
        return EncoderLayer(config)

    monkeypatch.setattr("trunkline.model.encoder.make_layer", spy)
    monkeypatch.setattr("trunkline.model.branch.make_layer", spy)
    Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=2)
    branch_of(exit_layer=2, own_layers=2)
    FullModel.build(BACKBONE.config, BACKBONE.tensors, kind="tagging", pooling="cls", n_outputs=3, seed=0)
    assert asked == [0, 1, 2, 3, 0, 1, 2, 3]
