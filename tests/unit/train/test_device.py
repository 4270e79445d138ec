"""Devices, precision and trackers."""

from pathlib import Path

import pytest

from trunkline.core.errors import MissingDependencyError, SpecError, UnknownNameError
from trunkline.train import device
from trunkline.train.device import best_precision, make_accelerator


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32"), (set(), "fp32")]
)
def test_bf16_is_taken_where_the_machine_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    assert best_precision() == precision


def test_an_unknown_tracker_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="tracker 'wandbb': is not known; did you mean 'wandb'"):
        make_accelerator(trackers=["wandbb"])


def test_a_tracker_whose_package_is_absent_is_not_left_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "get_available_trackers", list)
    with pytest.raises(MissingDependencyError, match="tracker 'wandb': its package is not installed"):
        make_accelerator(trackers=["wandb"])


def test_a_tracker_that_writes_files_needs_to_know_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(SpecError, match="tracker 'tensorboard': writes files; give log_dir"):
        make_accelerator(trackers=["tensorboard"])
    assert list(tmp_path.iterdir()) == []
