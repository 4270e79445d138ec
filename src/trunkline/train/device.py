"""Which device and precision training uses: what the machine reports, unless the user says otherwise."""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from trunkline.core.errors import MissingDependencyError, SpecError, UnknownNameError, nearest_hint
from trunkline.train.spec import Precision


def best_precision() -> Precision:
    """``bf16`` where the machine multiplies it in hardware, else ``fp32``."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    flags = _cpu_flags()
    return "bf16" if "amx_bf16" in flags or "avx512_bf16" in flags else "fp32"


def make_accelerator(*, trackers: Sequence[str] = (), log_dir: Path | None = None) -> Accelerator:
    """Accelerate's handle on device and trackers.

    It knows nothing of precision: accelerate keeps one for the whole process, and here each run has its own.

    Args:
        trackers: Names that accelerate knows, for example ``tensorboard``; none by default.
        log_dir: Where trackers that write files write; trackers need it.

    Raises:
        UnknownNameError: Accelerate knows no such tracker.
        SpecError: A tracker that writes files has no `log_dir`, or this is one of several processes of a job.
        MissingDependencyError: The tracker's package is not installed; accelerate would go on without it.
    """
    for name in trackers:
        _check_tracker(name, log_dir)
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=list(trackers) or None,
        project_dir=None if log_dir is None else str(log_dir),
    )
    if accelerator.num_processes > 1:
        raise SpecError(
            f"train: was started as {accelerator.num_processes} processes of one job (accelerate launch); only one is "
            "allowed; start `trunkline train` by itself, several of them for several tasks"
        )
    if trackers:
        accelerator.init_trackers("trunkline")
    return accelerator


def return_memory() -> None:
    """Give memory that nobody uses any more back to the system, where the C library (glibc) keeps it.

    A full fine-tuning leaves gigabytes of it in pieces, and the runs of branches after it have no use for them.
    """
    with suppress(OSError, AttributeError, TypeError):  # Other C libraries have no such function.
        ctypes.CDLL(None).malloc_trim(0)


def _check_tracker(name: str, log_dir: Path | None) -> None:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UnknownNameError(f"tracker {name!r}: is not known; {nearest_hint(name, LOGGER_TYPE_TO_CLASS)}")
    if name not in {str(found) for found in get_available_trackers()}:
        raise MissingDependencyError(f"tracker {name!r}: its package is not installed; run `pip install {name}`")
    if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and log_dir is None:
        raise SpecError(f"tracker {name!r}: writes files; give log_dir, the folder that it writes to")


def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
