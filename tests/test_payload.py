"""The layout of a payload: constants stand where the head says, hostile heads are refused, nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from testbed.artefacts import tiny_payload
from variegate.keys import cbor, component, recipe
from variegate.keys.artefact import ALIGNMENT, DTYPES, MAX_HEAD_BYTES, Payload, Spec
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.recipe import KeyedTensor

KEYED = (KeyedTensor(name="order", generator="derangement", shape=(10,)),)
FLOATS = ["w", "float32", [2, 3]]


def plain(table: object, *, layout: object = 2, slack: int = 0, room: int = 24, tensors: object = None) -> bytes:
    """A payload with any table, and room for one tensor of six floats behind the graph."""
    keyed = recipe.to_cbor(KEYED) if tensors is None else tensors
    head = cbor.encode([layout, keyed, b"", table])
    start = len(head).to_bytes(4, "big") + (5).to_bytes(4, "big") + head + b"graph"
    return start + bytes(-len(start) % ALIGNMENT + room + slack)


def refusal(data: bytes) -> Refusal:
    with pytest.raises(RefusedError) as refused:
        Payload.from_bytes(data)
    return refused.value.refusal


def refused_or_itself(data: bytes) -> bool:
    try:
        return Payload.from_bytes(data).to_bytes() == data
    except RefusedError as error:
        return error.refusal in (Refusal.MALFORMED, Refusal.TOO_LARGE)


def test_a_good_one_is_read() -> None:
    payload = Payload.from_bytes(plain([FLOATS]))
    assert payload.constants["w"].shape == (2, 3)
    assert (payload.graph, payload.tensors) == (b"graph", KEYED)


@pytest.mark.parametrize(
    "table",
    [
        None,
        "w",
        {1: FLOATS},
        ["w"],
        [["w", "float32"]],
        [[*FLOATS, 0]],
        [["", "float32", [6]]],
        [[b"w", "float32", [6]]],
        [["w", 1, [6]]],
        [["w", "float32", 6]],
        [["w", "object", [3]]],
        [["w", "complex64", [3]]],
        [["w", "float31", [6]]],
        [["w", ">f4", [6]]],
        [["w", "bool", [24]]],
        [["w", "float32", [0]]],
        [["w", "float32", [-6]]],
        [["w", "float32", [-2, -3]]],
        [["w", "float32", [True, 6]]],
        [["w", "float32", [5]]],
        [["w", "float32", [7]]],
        [["w", "float32", []]],
        [["w", "float32", [1 << 28, 1 << 28]]],
        [["w", "float32", [1 << 29]]],
        [["w", "float32", [1] * 8 + [6]]],
        [FLOATS, FLOATS],
        [FLOATS, ["v", "float32", [1]]],
        [["order", "float32", [6]]],
        [],
    ],
)
def test_a_hostile_table_is_refused(table: object) -> None:
    assert refusal(plain(table)) is Refusal.MALFORMED


@pytest.mark.parametrize("layout", [0, 1, 3, True, None, "2", [2]])
def test_another_layout_is_refused(layout: object) -> None:
    assert refusal(plain([FLOATS], layout=layout)) is Refusal.MALFORMED


@pytest.mark.parametrize("slack", [-24, -1, 1, 64])
def test_another_length_is_refused(slack: int) -> None:
    assert refusal(plain([FLOATS], slack=slack)) is Refusal.MALFORMED


def test_a_huge_head_is_not_read() -> None:
    data = (MAX_HEAD_BYTES + 1).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(MAX_HEAD_BYTES + 2)
    assert refusal(data) is Refusal.TOO_LARGE


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    assert refused_or_itself(data)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_payload_with_a_byte_changed_is_refused_or_reads_as_itself(data: st.DataObject) -> None:
    good = bytearray(tiny_payload().to_bytes())
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    assert refused_or_itself(bytes(good))


ARRAYS = hnp.arrays(
    st.sampled_from(sorted(DTYPES)).map(np.dtype),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5),
    elements=None,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ARRAYS, max_size=5), st.binary(min_size=1, max_size=100), st.binary(max_size=40))
def test_what_is_written_is_read(arrays: list[Any], graph: bytes, canaries: bytes) -> None:
    constants = {f"c{i}": array for i, array in enumerate(arrays)}
    data = Payload(KEYED, canaries, graph, constants).to_bytes()
    again = Payload.from_bytes(data)
    assert (again.tensors, again.canaries, again.graph) == (KEYED, canaries, graph)
    assert list(again.constants) == list(constants)
    for name, value in constants.items():
        assert again.constants[name].dtype == value.dtype
        assert again.constants[name].shape == value.shape
        assert again.constants[name].tobytes() == value.tobytes()
    assert again.to_bytes() == data


def test_constants_are_aligned_views_of_the_same_bytes() -> None:
    payload = Payload(
        KEYED, b"", b"graph", {"a": np.ones(3, np.int8), "b": np.arange(5.0), "c": np.array([7.0], np.float32)}
    )
    data = bytearray(payload.to_bytes())
    base = np.frombuffer(data, np.uint8).ctypes.data
    read = Payload.from_bytes(data)
    for value in read.constants.values():
        assert (value.ctypes.data - base) % ALIGNMENT == 0
        assert np.shares_memory(value, np.frombuffer(data, np.uint8))
    assert read.constants["b"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([None]), np.array([1j]), np.array([True])])
def test_a_constant_of_another_type_is_misuse(value: Any) -> None:
    with pytest.raises(MisuseError):
        Payload((), b"", b"graph", {"w": value}).to_bytes()


def test_blank_leaves_no_byte_between_as_it_was() -> None:
    memory = bytearray()

    def allocate(count: int) -> memoryview:
        memory.extend(b"\xff" * count)
        return memoryview(memory)

    laid = Payload.blank((), b"", b"graph", [Spec("a", "uint8", (3,)), Spec("b", "uint8", (2,))], allocate)
    for value in laid.constants.values():
        value[...] = 1
    assert Payload.from_bytes(memory).to_bytes() == memory
    assert b"\xff" not in memory


def test_unseal_decrypts_into_the_memory_given() -> None:
    key, plaintext = bytes(32), bytes(range(256)) * 20
    sealed, ref = component.seal(plaintext, key, bytes(16), chunk=1024)
    file = bytes(sealed)
    layout = component.check(file, ref)
    into = bytearray(len(plaintext))
    assert component.unseal(file, layout, key, memoryview(into)).obj is into
    assert into == plaintext == component.unseal(file, layout, key)
    for length in (0, len(plaintext) - 1, len(plaintext) + 1):
        with pytest.raises(MisuseError):
            component.unseal(file, layout, key, memoryview(bytearray(length)))
