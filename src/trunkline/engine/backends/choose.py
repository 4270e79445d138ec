"""Which backend and precision a machine gets."""

from typing import get_args

from trunkline.core.errors import MissingDependencyError, SpecError, UnknownNameError, nearest_hint
from trunkline.engine.backends.base import Backend, BackendName, Precision


def choose_backend(
    name: BackendName | None = None,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
    n_threads: int | None = None,
) -> Backend:
    """The backend that is asked for, or the fastest that this machine has.

    Args:
        name: None takes OpenVINO on the processor and torch on any other device.
        precision: None takes, with OpenVINO, what a bundle's gate accepted, and otherwise bf16 where the machine
            computes in it, else fp32.
        device: ``"cpu"``, or a device as torch names it.
        n_threads: OpenVINO: how many threads compute; None takes one for each processor.

    Raises:
        SpecError: The machine or the backend does not have what is asked for.
        MissingDependencyError: The backend's package is not installed.
    """
    if name is None:
        name = "openvino" if device == "cpu" else "torch"
    if name not in get_args(BackendName):
        raise UnknownNameError(f"backend {name!r}: is not known; {nearest_hint(name, get_args(BackendName))}")
    if name == "torch":
        if n_threads is not None:
            raise SpecError("n_threads: is OpenVINO's; torch reads OMP_NUM_THREADS; leave it out")
        return _torch(precision, device)
    if device != "cpu":
        raise SpecError(f"device {device!r}: the openvino backend runs on 'cpu'; choose the torch backend")
    return _openvino(precision, n_threads)


def describe(backend: Backend) -> str:
    """For people: ``openvino, bf16``."""
    return f"{backend.name}, {backend.precision}"


def _openvino(precision: Precision | None, n_threads: int | None) -> Backend:
    try:
        from trunkline.engine.backends.openvino import OpenVinoBackend, available_precisions
    except ModuleNotFoundError as error:
        raise _missing(error, "pip install openvino, or choose the torch backend") from error
    fastest = available_precisions()[-1]
    return OpenVinoBackend(precision=precision or fastest, as_gated=precision is None, n_threads=n_threads)


def _torch(precision: Precision | None, device: str) -> Backend:
    try:
        from trunkline.engine.backends.torch import TorchBackend
    except ModuleNotFoundError as error:
        raise _missing(error, "pip install 'trunkline[train]', or choose the openvino backend") from error
    return TorchBackend(precision=precision or ("fp32" if device == "cpu" else "bf16"), device=device)


def _missing(error: ModuleNotFoundError, cure: str) -> MissingDependencyError:
    return MissingDependencyError(f"package {error.name!r}: not installed; this backend needs it; {cure}")
