"""Bytes to arrays and back; damage, NaN and wrong shapes are refused."""

import json
import struct

import numpy as np
import pytest

from trunkline.core.errors import CheckpointError, NonFiniteError
from trunkline.model.tensors import check_tensors, read_tensors, refuse_non_finite, write_tensors


def safetensors_bytes(dtype: str, shape: list[int], data: bytes) -> bytes:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_what_is_written_is_read_again() -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(1.5, dtype=np.float32)}
    back = read_tensors(write_tensors(tensors), "x")
    assert {name: array.tolist() for name, array in back.items()} == {"b": [[0, 1, 2], [3, 4, 5]], "a": 1.5}


def test_equal_tensors_give_equal_bytes_in_any_order() -> None:
    one, two = np.ones(2, dtype=np.float32), np.zeros(3, dtype=np.float32)
    assert write_tensors({"a": one, "b": two}) == write_tensors({"b": two, "a": one})


def test_a_view_that_is_not_contiguous_is_written_by_its_values() -> None:
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    np.testing.assert_array_equal(read_tensors(write_tensors({"a": view}), "x")["a"], view)


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("F16", np.array([1.5, -2.0], dtype="<f2").tobytes()),
        ("BF16", (np.array([1.5, -2.0], dtype="<f4").view("<u4") >> 16).astype("<u2").tobytes()),
        ("F64", np.array([1.5, -2.0], dtype="<f8").tobytes()),
    ],
)
def test_other_floating_dtypes_come_back_as_float32(dtype: str, data: bytes) -> None:
    array = read_tensors(safetensors_bytes(dtype, [2], data), "x")["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.5, -2.0]


def test_integers_stay_integers() -> None:
    array = read_tensors(safetensors_bytes("I64", [1], struct.pack("<q", 7)), "x")["x"]
    assert (array.dtype, array.tolist()) == (np.int64, [7])


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"not safetensors at all", struct.pack("<Q", 1 << 60) + b"{}"])
def test_bytes_that_are_no_safetensors_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="weights file: not a whole safetensors file"):
        read_tensors(content, "weights file")


@pytest.mark.parametrize("n_cut", [1, 8, 20])
def test_a_truncated_file_is_refused(n_cut: int) -> None:
    content = write_tensors({"a": np.ones(8, dtype=np.float32)})
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(content[:-n_cut], "x")


def test_a_dtype_that_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="tensor 'x' has dtype F8_E4M3"):
        read_tensors(safetensors_bytes("F8_E4M3", [1], b"\x00"), "weights")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_counted(value: float) -> None:
    bad = np.array([0.0, value, 1.0], dtype=np.float32)
    with pytest.raises(NonFiniteError, match=r"branch: tensor 'b' holds 1 values that are NaN or infinite"):
        refuse_non_finite({"a": np.zeros(2, dtype=np.float32), "b": bad}, "branch")


def test_two_infinities_of_opposite_sign_do_not_hide_each_other() -> None:
    with pytest.raises(NonFiniteError, match="holds 2 values"):
        refuse_non_finite({"a": np.array([np.inf, -np.inf], dtype=np.float32)}, "branch")


def test_large_finite_values_are_allowed() -> None:
    refuse_non_finite({"a": np.full(100, np.finfo(np.float32).max, dtype=np.float32)}, "branch")


def test_missing_tensors_are_counted_and_named() -> None:
    with pytest.raises(CheckpointError, match=r"head: 1 of 2 tensors are missing \(b\)"):
        check_tensors({"a": np.zeros(2, dtype=np.float32)}, {"a": (2,), "b": (3,)}, "head")


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'a' has shape \(2,\); the config allows \(3,\)"):
        check_tensors({"a": np.zeros(2, dtype=np.float32)}, {"a": (3,)}, "head")


def test_quantized_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="tensor 'a' has dtype int8"):
        check_tensors({"a": np.zeros(2, dtype=np.int8)}, {"a": (2,)}, "head")


def test_tensors_that_are_not_named_are_left_out() -> None:
    tensors = {"a": np.zeros(2, dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
    assert set(check_tensors(tensors, {"a": (2,)}, "head")) == {"a"}


def test_what_is_not_wanted_is_not_decoded() -> None:
    content = safetensors_bytes("F8_E4M3", [1], b"\x00")
    assert read_tensors(content, "weights", wanted=lambda name: name != "x") == {}


def test_wanted_tensors_alone_come_back() -> None:
    content = write_tensors({"a": np.zeros(2, dtype=np.float32), "b": np.ones(2, dtype=np.float32)})
    assert set(read_tensors(content, "weights", wanted=lambda name: name == "b")) == {"b"}


def test_float64_values_beyond_float32_are_refused_and_counted() -> None:
    data = np.array([1e300, -1e39, 1.0], dtype="<f8").tobytes()
    with pytest.raises(CheckpointError, match="tensor 'x' holds 2 float64 values beyond the range of float32"):
        read_tensors(safetensors_bytes("F64", [3], data), "weights")


def test_an_infinite_float64_stays_infinite_for_the_check_of_finite_values() -> None:
    data = np.array([np.inf], dtype="<f8").tobytes()
    assert np.isposinf(read_tensors(safetensors_bytes("F64", [1], data), "weights")["x"]).all()
