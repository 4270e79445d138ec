"""Tensors as bytes: safetensors in, safetensors out, everything in numpy. No torch here."""

import mmap
from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

import msgspec
import numpy as np

from trunkline.core.errors import CheckpointError, NonFiniteError

BFLOAT16 = "BF16"
LEAST_BFLOAT16 = -3.3895313892515355e38
"""Finite in float32 too, so an attention bias survives a cast and never makes a NaN out of an empty row."""
NUMPY_DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    BFLOAT16: "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_METADATA = "__metadata__"
_ROUNDED_AT_ONCE = 1 << 16
"""Values that stay in the processor's cache between the steps of rounding."""


class _Entry(msgspec.Struct, frozen=True):
    """What a safetensors file says of a tensor."""

    dtype: str
    shape: list[_Count]
    data_offsets: tuple[_Count, _Count]


def read_tensors(content: bytes, subject: str, *, wanted: Callable[[str], bool] | None = None) -> dict[str, np.ndarray]:
    """Decode a safetensors file. Arrays in float32 and integers are views of ``content``, read-only.

    The library's own function copies every tensor while it holds the interpreter: 28 MB of a new version stopped a
    server for up to 86 ms.

    Args:
        content: The whole file.
        subject: What the message is about, for example ``"checkpoint 'minilm'"``.
        wanted: Tells by its name whether a tensor is decoded; None decodes all. What is not wanted may have any dtype.

    Returns:
        Name -> array; every floating dtype comes back as float32, integers and booleans as they are.

    Raises:
        CheckpointError: The bytes are truncated or malformed, or a wanted tensor has a dtype that cannot be read or
            values beyond float32.
    """
    try:
        stored = stored_arrays(content)
    except (ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{subject}: not a whole safetensors file ({error}); fetch or write the file again"
        ) from error
    return {
        name: _array(name, dtype, array, subject)
        for name, (dtype, array) in stored.items()
        if wanted is None or wanted(name)
    }


def write_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Encode arrays as one safetensors file; equal tensors give equal bytes.

    Args:
        tensors: Name -> array, any dtype that safetensors knows.
    """
    from safetensors.numpy import save

    return bytes(save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}))


def refuse_non_finite(tensors: Mapping[str, np.ndarray], subject: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NonFiniteError: A tensor holds one; the message names the tensor and says how many.
    """
    for name in sorted(tensors):
        array = tensors[name]
        if array.dtype.kind == "f" and not _all_finite(array):
            n_bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            raise NonFiniteError(
                f"{subject}: tensor {name!r} holds {n_bad} values that are NaN or infinite; "
                "only finite weights are allowed; restore the file or train again"
            )


def check_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], subject: str
) -> dict[str, np.ndarray]:
    """Pick the named tensors, each with its shape and in float32.

    Args:
        tensors: What there is; more than is named is allowed.
        shapes: What is wanted: name -> shape.
        subject: What the message is about.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or is not float32.
    """
    missing = sorted(name for name in shapes if name not in tensors)
    if missing:
        shown = ", ".join(missing[:6]) + (", …" if len(missing) > 6 else "")
        raise CheckpointError(
            f"{subject}: {len(missing)} of {len(shapes)} tensors are missing ({shown}); "
            "no weight may be left to chance; use the file that holds them"
        )
    for name, shape in shapes.items():
        array = tensors[name]
        if array.shape != shape:
            raise CheckpointError(
                f"{subject}: tensor {name!r} has shape {array.shape}; the config allows {shape}; "
                "config and weights must come from the same model"
            )
        if array.dtype != np.float32:
            raise CheckpointError(
                f"{subject}: tensor {name!r} has dtype {array.dtype}; only floating point weights are allowed; "
                "use a checkpoint that is not quantized"
            )
    return {name: tensors[name] for name in shapes}


def to_bits(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to the nearest, ties to even.

    Returns:
        uint16 bits of the same shape; NaN stays NaN.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    found = np.empty(flat.size, dtype=np.uint16)
    for start in range(0, flat.size, _ROUNDED_AT_ONCE):
        part = flat[start : start + _ROUNDED_AT_ONCE]
        bits = part.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded[np.isnan(part)] = 0x7FC0
        found[start : start + _ROUNDED_AT_ONCE] = rounded
    return found.reshape(values.shape)


def to_int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round weights to whole numbers, each output channel on a scale of its own around 0.

    Args:
        weights: (out, in) float32.

    Returns:
        (out, in) int8 from -127 to 127, and (out, 1) float32 scales: their product is about the weights.
    """
    scales = np.maximum(np.abs(weights).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Bfloat16, which is the upper half of a float32, to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored_arrays(content: bytes | mmap.mmap) -> dict[str, tuple[str, np.ndarray]]:
    """What lies in a safetensors file, as it lies there.

    Args:
        content: The whole file, which the arrays are views of.

    Returns:
        Name -> dtype as the file names it, and values; bytes where NumPy has no such dtype.

    Raises:
        ValueError: The header is none, or the tensors do not fill the file one behind the other.
        OverflowError: A dimension is larger than any memory.
    """
    begins = 8 + int.from_bytes(content[:8], "little")
    if not 8 < begins <= len(content):
        raise ValueError(f"its header is to end at byte {begins}; it has {len(content)} bytes")
    said = msgspec.json.decode(content[8:begins], type=dict[str, msgspec.Raw])
    if _METADATA in said:
        msgspec.json.decode(said.pop(_METADATA), type=dict[str, str])
    entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in said.items()}
    data = memoryview(content)[begins:]
    found, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        if start != end or not start <= stop <= len(data):
            raise ValueError(f"tensor {name!r} is to lie at bytes {start} to {stop} of {len(data)}, behind {end}")
        known = entry.dtype in NUMPY_DTYPES
        array = np.frombuffer(data[start:stop], dtype=NUMPY_DTYPES[entry.dtype] if known else np.uint8)
        found[name] = entry.dtype, array.reshape(entry.shape) if known else array
        end = stop
    if end != len(data):
        raise ValueError(f"its tensors end at byte {end} of {len(data)}")
    return found


def _array(name: str, dtype: str, array: np.ndarray, subject: str) -> np.ndarray:
    if dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"{subject}: tensor {name!r} has dtype {dtype}, which cannot be read; "
            f"allowed are {', '.join(NUMPY_DTYPES)}; convert the checkpoint to F32"
        )
    if dtype == BFLOAT16:
        return from_bits(array)
    if array.dtype.kind == "f":
        array = _float32(name, array, subject)
    return array if array.flags.aligned else array.copy()


def _float32(name: str, array: np.ndarray, subject: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    if array.dtype.itemsize > converted.dtype.itemsize:
        n_beyond = int(np.count_nonzero(np.isfinite(array) & ~np.isfinite(converted)))
        if n_beyond:
            raise CheckpointError(
                f"{subject}: tensor {name!r} holds {n_beyond} float64 values beyond the range of float32; weights are "
                "used in float32; use a checkpoint whose weights fit"
            )
    return converted


def _all_finite(array: np.ndarray) -> bool:
    # A sum is finite only if all its terms are, and needs no second array; float64 keeps float32 from overflowing.
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float64)))
