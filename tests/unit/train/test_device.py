"""Devices, precision and trackers."""

import platform
from pathlib import Path

import pytest

from trunkline.core.errors import MissingDependencyError, SpecError, UnknownNameError
from trunkline.train import device
from trunkline.train.device import best_precision, make_accelerator, return_memory


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


def _anonymous_megabytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_memory_that_nobody_uses_goes_back_to_the_system() -> None:
    held = [bytes([1]) * 100_000 for _ in range(3000)]
    last = held.pop()  # Lies above the others, so that freeing them shortens nothing.
    held.clear()
    before = _anonymous_megabytes()
    return_memory()
    assert before - _anonymous_megabytes() > 200
    assert len(last) == 100_000
