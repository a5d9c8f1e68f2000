"""Initialisers out of a graph and into one, held against onnx itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from testbed.artefacts import tiny_payload
from variegate.export.split import LOCATION, split
from variegate.isolation import graphs
from variegate.isolation.graphs import Use, declare, initialisers, take_out, uses
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


def taken_out(data: bytes) -> None:
    take_out(data, lambda _: True)


def refusal(data: bytes, read: Callable[[bytes], object] = taken_out) -> Refusal | None:
    try:
        read(data)
    except RefusedError as error:
        return error.refusal
    return None


def test_packed_dimensions_are_read() -> None:
    tensor = b"\x0a\x03\x02\x96\x01" + b"\x10\x01" + b"\x42\x01w"  # dims [2, 150] packed, float, "w"
    whole = b"\x3a" + bytes([len(tensor) + 2]) + b"\x2a" + bytes([len(tensor)]) + tensor
    assert take_out(whole, lambda _: True)[1][0].spec == Spec("w", "float32", (2, 150))


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\xff" * 20, b"\x0b", b"\x3a\x02\x2a\x09", b"\x0d\x00"])
def test_what_is_no_protocol_buffer_is_refused(data: bytes) -> None:
    assert refusal(data) is Refusal.MODEL


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_taken_apart(data: bytes) -> None:
    assert refusal(data) in (None, Refusal.MODEL)


def nested(depth: int) -> onnx.ModelProto:
    """`depth` graphs in one another, each of which holds one initialiser and one convolution."""
    inner: list[onnx.NodeProto] = []
    for level in reversed(range(depth)):
        weights = numpy_helper.from_array(np.ones(9, np.float32), f"w{level}")
        convolution = helper.make_node("Conv", ["x", f"w{level}", ""], [f"y{level}"], domain="com.microsoft.nchwc")
        graph = helper.make_graph([convolution, *inner], "g", [], [], [weights])
        inner = [helper.make_node("If", ["c"], ["z"], then_branch=graph, also=[graph])]
    return helper.make_model(graph)


def test_uses_are_read_in_every_subgraph() -> None:
    read = list(uses(nested(3).SerializeToString()))
    convolutions = [Use("com.microsoft.nchwc.Conv", ("x", f"w{level}", ""), (f"y{level}",)) for level in range(3)]
    branch = Use("If", ("c",), ("z",))
    # Each graph stands in two attributes.
    assert read == [convolutions[0], branch, *[convolutions[1], branch] * 2, *[convolutions[2]] * 4]
    held = [found.spec.name for found in initialisers(nested(3).SerializeToString())]
    assert held == ["w0", "w1", "w1", "w2", "w2", "w2", "w2"]


def test_graphs_nested_without_end_are_read() -> None:
    data = b""
    for _ in range(3000):
        graph = graphs._message(1, graphs._message(5, graphs._message(6, data)))
        data = graph
    assert len(list(uses(graphs._message(7, data)))) == 3000


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_default_domain_has_one_name(domain: str) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], domain=domain)], "g", [], [])
    assert list(uses(helper.make_model(graph).SerializeToString())) == [Use("Relu", ("x",), ("y",))]


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_nodes_of_any_bytes_are_refused_or_read(data: bytes) -> None:
    whole = graphs._message(7, graphs._message(1, data))
    assert refusal(whole, lambda model: list(uses(model))) in (None, Refusal.MODEL)
    assert refusal(whole, lambda model: list(initialisers(model))) in (None, Refusal.MODEL)


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
