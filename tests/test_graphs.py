"""Initialisers out of a graph and into one, held against onnx itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.artefacts import tiny_payload
from variegate.export.split import LOCATION, split
from variegate.isolation import graphs
from variegate.isolation.graphs import Initialiser, declare, take_out
from variegate.keys.artefact import DTYPES, Spec
from variegate.keys.errors import Refusal, RefusedError


def model(*initialisers: TensorProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph([], "g", [], [], list(initialisers)))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 1, 300)])
def test_initialisers_of_every_type_are_read_and_written(dtype: str, shape: tuple[int, ...]) -> None:
    value = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    whole = model(numpy_helper.from_array(value, "w"), numpy_helper.from_array(np.zeros(2, np.int64), "axes"))
    rest, (taken,) = take_out(whole.SerializeToString(), lambda i: i.spec.name == "w")
    assert (taken.spec, taken.external, bytes(taken.raw)) == (Spec("w", dtype, shape), False, value.tobytes())
    left = onnx.load_model_from_string(rest)
    assert [i.name for i in left.graph.initializer] == ["axes"]
    left.graph.initializer.insert(0, whole.graph.initializer[0])
    assert left == whole
    added = onnx.load_model_from_string(rest + declare([taken.spec], zeros=True)).graph.initializer[-1]
    assert np.array_equal(numpy_helper.to_array(added), np.zeros(shape, dtype))
    assert added.data_type == whole.graph.initializer[0].data_type


def test_declared_external_initialisers_are_those_of_the_exporter() -> None:
    payload = tiny_payload()
    rest, taken = take_out(payload.graph, lambda i: i.external)
    again = onnx.load_model_from_string(rest + declare([i.spec for i in taken], zeros=False))
    assert {i.name: i for i in again.graph.initializer} == {
        i.name: i for i in onnx.load_model_from_string(bytes(payload.graph)).graph.initializer
    }


def test_exporter_and_device_agree_on_the_place() -> None:
    assert graphs.LOCATION == LOCATION


def everything(_: Initialiser) -> bool:
    return True


def refusal(data: bytes) -> Refusal | None:
    try:
        take_out(data, everything)
    except RefusedError as error:
        return error.refusal
    return None


def test_packed_dimensions_are_read() -> None:
    tensor = b"\x0a\x03\x02\x96\x01" + b"\x10\x01" + b"\x42\x01w"  # dims [2, 150] packed, float, "w"
    whole = b"\x3a" + bytes([len(tensor) + 2]) + b"\x2a" + bytes([len(tensor)]) + tensor
    assert take_out(whole, everything)[1][0].spec == Spec("w", "float32", (2, 150))


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\xff" * 20, b"\x0b", b"\x3a\x02\x2a\x09", b"\x0d\x00"])
def test_what_is_no_protocol_buffer_is_refused(data: bytes) -> None:
    assert refusal(data) is Refusal.MODEL


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_taken_apart(data: bytes) -> None:
    assert refusal(data) in (None, Refusal.MODEL)


def test_short_tensors_and_shapes_stay_in_the_graph() -> None:
    stay: dict[str, Any] = {
        "scale": np.float32(2),
        "mean": np.ones(7, np.float32),
        "axes": np.arange(64),
        "mask": np.ones(100, bool),
    }
    leave: dict[str, NDArray[Any]] = {
        "bias": np.arange(8, dtype=np.float32),
        "weights": np.ones((3, 3, 3), np.float16),
        "table": np.arange(65),
        "bytes": np.ones(300, np.uint8),
    }
    whole = model(*(numpy_helper.from_array(np.asarray(v), n) for n, v in {**stay, **leave}.items()))
    out = split(whole.graph)
    assert list(out) == list(leave)
    for name, value in leave.items():
        assert np.array_equal(out[name], value)
        assert value.tobytes() not in whole.SerializeToString()
    kept = {i.name: i for i in whole.graph.initializer if i.data_location != TensorProto.EXTERNAL}
    assert list(kept) == list(stay)
    assert split(whole.graph) == {}
