"""Bytes that are damaged anywhere: what the safetensors library refuses is refused, and what it reads is read alike."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from trunkline.core.errors import CheckpointError
from trunkline.model.tensors import NUMPY_DTYPES, read_tensors, write_tensors

WHOLE = write_tensors(
    {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "layer.bias": np.arange(3, dtype=np.int64),
        "none": np.zeros((0, 4), dtype=np.float32),
        "scalar": np.float32(2),
    }
)
N_HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]
NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**40, 2**63 - 1, 2**63, 2**64]))


def compare(content: bytes) -> None:
    try:
        expected = dict(deserialize(content))
    except SafetensorError:
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            read_tensors(content, "x")
        return
    found, refused = {}, ""
    try:
        found = read_tensors(content, "x")
    except CheckpointError as error:
        refused = str(error)
    if refused:  # Stricter where NumPy has no such array: a dimension, or so many of them, that no memory holds.
        assert any(said in refused for said in ("array", " int ", "cannot be read")), refused
        return
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        values = np.frombuffer(entry["data"], dtype=NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], values)
        elif entry["dtype"] == "F32":
            assert found[name].tobytes() == values.tobytes()


@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_any_byte_may_be_another(place: int, value: int) -> None:
    compare(WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :])


@given(content=st.binary(max_size=80), n_kept=st.integers(0, len(WHOLE)))
def test_any_end_may_be_missing_or_another(content: bytes, n_kept: int) -> None:
    compare(WHOLE[:n_kept] + content)


@given(data=st.data())
def test_any_entry_may_say_something_else(data: st.DataObject) -> None:
    header = json.loads(WHOLE[8:N_HEADER])
    entry = header[data.draw(st.sampled_from(sorted(header)))]
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "gone"]))
    if field == "gone":
        del entry[data.draw(st.sampled_from(sorted(entry)))]
    elif field == "dtype":
        entry["dtype"] = data.draw(st.sampled_from([*NUMPY_DTYPES, "F8_E4M3", "x", 1]))
    else:
        entry[field] = data.draw(st.lists(NUMBERS, max_size=4))
    told = json.dumps(header).encode()
    compare(struct.pack("<Q", len(told)) + told + WHOLE[N_HEADER:])
