"""Presets, ranges and identities of runs."""

from typing import Any

import pytest

from tests.tiny_records import run_spec
from trunkline.core.errors import SpecError, UnknownNameError
from trunkline.train.spec import Distillation, Hyperparameters, preset


def test_the_papers_preset_is_its_table_4() -> None:
    for hyper in (preset("paper").full, preset("paper").partial, preset("paper").student):
        assert (hyper.learning_rate, hyper.head_learning_rate, hyper.batch_size) == (2e-5, 2e-5, 32)
        assert (hyper.weight_decay, hyper.beta1, hyper.beta2, hyper.epsilon) == (0.01, 0.9, 0.999, 1e-6)
        assert hyper.epochs in (3, 4, 5)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'paper'"):
        preset("papr")


@pytest.mark.parametrize(
    "field",
    [
        {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"head_learning_rate": -1.0}, {"epsilon": 0.0},
        {"max_grad_norm": 0.0}, {"batch_size": 0}, {"epochs": 0}, {"warmup_share": 1.5}, {"warmup_share": -0.1},
        {"beta1": 1.0}, {"beta2": -0.5}, {"weight_decay": -1.0}, {"weight_decay": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_hyperparameters_that_train_nothing_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(field))):
        Hyperparameters(**field)


@pytest.mark.parametrize("field", [{"kd_temperature": 0.0}, {"alpha": 1.1}, {"alpha": -0.1}], ids=str)
def test_distillation_out_of_range_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(field))):
        Distillation(**field)


def test_a_run_is_named_by_its_whole_spec() -> None:
    spec = run_spec()
    assert spec.run_id == run_spec().run_id
    others = (run_spec(seed=1), run_spec(own_layers=3), run_spec(init="teacher"), run_spec(data_digest="other"))
    assert len({spec.run_id, *(other.run_id for other in others)}) == 5
