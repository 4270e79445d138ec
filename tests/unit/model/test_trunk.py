"""The trunk: frozen, always in evaluation mode, run no deeper than asked."""

import numpy as np
import pytest
import torch

from tests.tiny import tiny_backbone
from trunkline.core.errors import CheckpointError, SpecError
from trunkline.model.trunk import Trunk

BACKBONE = tiny_backbone()
IDS = torch.randint(4, 200, (3, 9), generator=torch.Generator().manual_seed(0))
TYPES = torch.zeros_like(IDS)
MASK = torch.arange(9)[None, :] < torch.tensor([9, 5, 2])[:, None]


@pytest.fixture
def trunk() -> Trunk:
    return Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=3)


def test_states_come_at_the_exits_asked_for_and_no_others(trunk: Trunk) -> None:
    assert set(trunk(IDS, TYPES, MASK, exits=(0, 2))) == {0, 2}


def test_no_layer_above_the_deepest_exit_is_run(trunk: Trunk) -> None:
    ran: list[int] = []
    for number, layer in enumerate(trunk.layers):
        layer.register_forward_hook(lambda *_args, number=number: ran.append(number))
    trunk(IDS, TYPES, MASK, exits=(2, 1))
    assert ran == [0, 1]


def test_no_exit_runs_no_layer(trunk: Trunk) -> None:
    assert trunk(IDS, TYPES, MASK, exits=()) == {}


@pytest.mark.parametrize("exit_layer", [-1, 4])
def test_an_exit_that_is_not_there_is_refused(trunk: Trunk, exit_layer: int) -> None:
    with pytest.raises(SpecError, match=rf"exit layer {exit_layer} is outside 0\.\.3"):
        trunk(IDS, TYPES, MASK, exits=(1, exit_layer))


@pytest.mark.parametrize("depth", [-1, 5])
def test_a_depth_that_the_backbone_does_not_have_is_refused(depth: int) -> None:
    with pytest.raises(SpecError, match=rf"depth {depth} is outside 0\.\.4"):
        Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=depth)


def test_a_missing_layer_is_refused() -> None:
    tensors = {name: array for name, array in BACKBONE.tensors.items() if not name.startswith("layers.1.")}
    with pytest.raises(CheckpointError, match=r"trunk of 3 layers: 16 of \d+ tensors are missing"):
        Trunk.build(BACKBONE.config, tensors, depth=3)


def test_layers_above_the_depth_are_not_needed() -> None:
    tensors = {name: array for name, array in BACKBONE.tensors.items() if not name.startswith("layers.3.")}
    assert Trunk.build(BACKBONE.config, tensors, depth=3).depth == 3


def test_nothing_of_a_trunk_can_be_trained(trunk: Trunk) -> None:
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_a_trunk_stays_in_evaluation_mode_even_inside_a_module_that_trains(trunk: Trunk) -> None:
    torch.nn.Sequential(trunk).train()
    assert not any(module.training for module in trunk.modules())


def test_batch_mates_and_padding_change_nothing_beyond_tolerance(trunk: Trunk) -> None:
    together = trunk(IDS, TYPES, MASK, exits=(3,))[3]
    alone = trunk(IDS[1:2, :5], TYPES[1:2, :5], MASK[1:2, :5], exits=(3,))[3]
    torch.testing.assert_close(together[1:2, :5], alone, rtol=0, atol=1e-5)


def test_a_deeper_trunk_gives_the_same_states_at_a_shallow_exit(trunk: Trunk) -> None:
    deep = Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=4)
    assert torch.equal(trunk(IDS, TYPES, MASK, exits=(2,))[2], deep(IDS, TYPES, MASK, exits=(2, 4))[2])


def test_building_reads_its_tensors_and_leaves_them_as_they_were() -> None:
    before = {name: array.copy() for name, array in BACKBONE.tensors.items()}
    Trunk.build(BACKBONE.config, BACKBONE.tensors, depth=4)
    for name, array in BACKBONE.tensors.items():
        np.testing.assert_array_equal(array, before[name])
