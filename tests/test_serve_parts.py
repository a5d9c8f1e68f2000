"""The parts that do no I/O: parsing infer bodies, opening compressed ones, fairness, metrics, answers, peers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from prometheus_client.parser import text_string_to_metric_families

from variegate.keys.errors import (
    DeviceError,
    LimitError,
    MisuseError,
    Refusal,
    RefusedError,
)
from variegate.serve import encodings, oip, socket_wire
from variegate.serve.answers import BusyError, LeftError, TimeLimitError, fault_of
from variegate.serve.buffer_space import BufferSpace
from variegate.serve.fair import FairQueue
from variegate.serve.limits import ServeLimits, Spec
from variegate.serve.metrics import BUCKETS_S, Metrics
from variegate.serve.peers import Doorkeeper, Permit, peer_of

T = TypeVar("T")
SHAPE = (2, 3, 4)
DTYPES = ("uint8", "float32")
NAMES = {"uint8": "UINT8", "float32": "FP32"}


def spec(dtype: str, batch: int = 8) -> Spec:
    return Spec(shape=SHAPE, dtype=dtype, classes=10, batch=batch, version="3", json_bytes=1 << 16, body_bytes=1 << 16)


def request_for(shown: Any, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": list(shown.shape), "datatype": NAMES[str(shown.dtype)], **changes}
    return {"inputs": [tensor]}


def arrays(dtype: str) -> st.SearchStrategy[Any]:
    shapes = st.integers(1, 8).map(lambda n: (n, *SHAPE))
    # What no JSON number is: NaN and infinities.
    elements = {"allow_nan": False, "allow_infinity": False} if dtype == "float32" else None
    return hnp.arrays(dtype, shapes, elements=elements)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), flat=st.booleans())
def test_json_data_are_numpys(dtype: str, data: st.DataObject, flat: bool) -> None:
    shown = data.draw(arrays(dtype))
    body = json.dumps(request_for(shown, data=(shown.reshape(-1) if flat else shown).tolist())).encode()
    found = oip.parse_infer(body, None, spec(dtype))
    assert found.frames.dtype == shown.dtype
    assert np.array_equal(found.frames, shown)
    assert not found.binary


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_binary_data_are_numpys(dtype: str, data: st.DataObject) -> None:
    shown = data.draw(hnp.arrays(dtype, st.integers(1, 8).map(lambda n: (n, *SHAPE))))
    raw = shown.tobytes()
    head = json.dumps(request_for(shown, parameters={"binary_data_size": len(raw)})).encode()
    found = oip.parse_infer(head + raw, len(head), spec(dtype))
    assert found.frames.tobytes() == raw
    assert found.frames.shape == shown.shape


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_cut_or_changed_bodies_are_refused_or_are_frames(dtype: str, data: st.DataObject) -> None:
    shown = data.draw(arrays(dtype))
    raw = shown.tobytes()
    head = json.dumps(request_for(shown, parameters={"binary_data_size": len(raw)})).encode()
    body = bytearray(head + raw)
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    length = data.draw(st.one_of(st.none(), st.just(len(head)), st.integers(0, 2 * len(body) + 1)))
    check(bytes(body), length, dtype)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["image", "UINT8"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["inputs", "name", "shape", "datatype", "data", "id", "x"]), inner, max_size=5
        )
    ),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(inner=JSON, member=st.sampled_from(["id", "parameters", "inputs", "outputs", "shape", "data", "datatype"]))
def test_any_json_in_any_place_is_refused_or_is_frames(inner: object, member: str) -> None:
    whole = request_for(np.zeros((1, *SHAPE), np.uint8), data=[0] * 24)
    if member in {"shape", "data", "datatype"}:
        whole["inputs"][0][member] = inner
    else:
        whole[member] = inner
    check(json.dumps(whole).encode(), None, "uint8")
    check(json.dumps(inner).encode(), None, "uint8")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.none() | st.integers(-5, 400))
def test_any_bytes_are_refused(body: bytes, length: int | None) -> None:
    check(body, length, "uint8")


def outcome(call: Callable[[], T]) -> T | RefusedError:
    """What came of it; any other error is the test's failure."""
    try:
        return call()
    except RefusedError as error:
        return error


def check(body: bytes, length: int | None, dtype: str) -> None:
    found = outcome(lambda: oip.parse_infer(body, length, spec(dtype)))
    if isinstance(found, RefusedError):
        assert found.refusal in {Refusal.INPUT, Refusal.TOO_LARGE}
        assert found.message[0].islower() or found.message.startswith("JSON")
    else:
        assert found.frames.dtype == dtype
        assert found.frames.shape[1:] == SHAPE
        assert 1 <= len(found.frames) <= 8


def test_bounds_of_a_request() -> None:
    shown = np.zeros((9, *SHAPE), np.uint8)
    for body in (request_for(shown, data=shown.tolist()), {"inputs": [], "x": " " * (1 << 16)}):
        with pytest.raises(RefusedError) as error:
            oip.parse_infer(json.dumps(body).encode(), None, spec("uint8"))
        assert error.value.refusal is Refusal.TOO_LARGE


@settings(max_examples=50, deadline=None)
@given(
    labels=hnp.arrays(np.int64, st.integers(1, 9), elements=st.integers(0, 2**40)),
    name=st.none() | st.text(max_size=20),
    binary=st.booleans(),
)
def test_replies_are_what_was_meant(labels: Any, name: str | None, binary: bool) -> None:
    body, split = oip.infer_reply(labels, oip.InferRequest(labels, name, binary), "3")
    answer = json.loads(body[:split])
    (output,) = answer["outputs"]
    assert (answer["model_name"], answer["model_version"], answer.get("id")) == ("copy", "3", name)
    assert (output["name"], output["datatype"], output["shape"]) == ("label", "INT64", [len(labels)])
    if binary:
        assert np.frombuffer(body[split:], "<i8").tolist() == labels.tolist()
        assert output["parameters"]["binary_data_size"] == 8 * len(labels)
    else:
        assert output["data"] == labels.tolist()


@given(st.binary(max_size=2000), st.sampled_from([b"gzip", b"deflate", b"identity"]))
def test_compressed_bodies_come_back(body: bytes, encoding: bytes) -> None:
    packed = {b"gzip": gzip.compress(body), b"deflate": zlib.compress(body), b"identity": body}[encoding]
    assert encodings.decoded(packed, encoding, 2000) == body
    assert not encodings.known(b"br")


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"gzip", b"deflate"]))
def test_any_bytes_decompress_within_bounds_or_are_refused(body: bytes, encoding: bytes) -> None:
    for packed in (body, gzip.compress(body)[:-1], zlib.compress(body) + b"x", zlib.compress(bytes(10**6)) + body):
        found = outcome(partial(encodings.decoded, packed, encoding, 100))
        if isinstance(found, RefusedError):
            assert found.refusal in {Refusal.INPUT, Refusal.TOO_LARGE}
        else:
            assert len(found) <= 100


def test_bodies_unfold_within_a_ratio_and_in_pieces() -> None:
    seen: list[int] = []
    photograph = np.random.default_rng(1).integers(0, 256, 3 << 20, np.uint8).tobytes()
    for body in (photograph, bytes(1 << 20), b""):
        seen.clear()
        assert encodings.decoded(gzip.compress(body, 1), b"gzip", 4 << 20, seen.append) == body
        assert sum(seen) == len(body)
    assert max([0, *seen]) < 1 << 20
    found = outcome(partial(encodings.decoded, gzip.compress(bytes(3 << 20)), b"gzip", 4 << 20))
    assert isinstance(found, RefusedError)
    assert found.refusal is Refusal.TOO_LARGE
    cut = gzip.compress(photograph, 1)
    for wrong in (cut[:-1], cut + b"x", cut + bytes(200_000), b""):
        found = outcome(partial(encodings.decoded, wrong, b"gzip", 4 << 20))
        assert isinstance(found, RefusedError)
        assert found.refusal is Refusal.INPUT


def test_room_is_bounded_and_given_back() -> None:
    room = BufferSpace(10)
    one, two = room.claim(), room.claim()
    one.add(6)
    two.add(4)
    with pytest.raises(BusyError):
        two.add(1)
    assert (room.held, two.bytes) == (10, 4)
    one.hold(3)
    two.hold(7)
    one.release()
    one.release()
    with pytest.raises(LeftError):  # a thread that still reads for a client that has left
        one.add(1)
    assert room.held == 7
    two.release()
    assert room.held == 0


@given(st.binary(min_size=16, max_size=16))
def test_heads_of_the_socket(data: bytes) -> None:
    for head in (data, b"VGQ1" + data[4:], b"VGQ1" + data[4:8] + data[8:9] + bytes(7)):
        found = outcome(partial(socket_wire.query_head, head, spec("uint8")))
        if isinstance(found, RefusedError):
            assert isinstance(found, socket_wire.HeadError)
            assert found.id == int.from_bytes(head[4:8], "little")
        else:
            assert head[:4] == b"VGQ1"
            assert 1 <= found.count <= 8


def test_frames_not_queries_are_shared_out() -> None:
    queue: FairQueue[str] = FairQueue(100, 50)
    for number in range(10):
        assert queue.push("large", 8, f"L{number}")
    for number in range(40):
        assert queue.push("small", 1, f"s{number}")
    order = [queue.pop() for _ in range(45)]
    # For every 8 frames of one there are about 8 of the other.
    assert all(abs(sum(1 for o in order[:k] if o and o[0] == "s") / 8 - k / 9) < 1.5 for k in (9, 18, 27, 36, 45))


def test_who_comes_new_need_not_wait_for_a_long_queue() -> None:
    queue: FairQueue[str] = FairQueue(100, 50)
    for number in range(40):
        queue.push("greedy", 1, f"g{number}")
    for _ in range(5):
        queue.pop()
    queue.push("new", 1, "n0")
    queue.push("new", 1, "n1")
    order = [queue.pop() for _ in range(5)]
    assert order.index("n0") <= 1
    assert order.index("n1") <= 3


def test_idle_time_is_no_credit() -> None:
    queue: FairQueue[str] = FairQueue(100, 50)
    for number in range(30):
        queue.push("busy", 1, f"b{number}")
        queue.pop()
    for number in range(10):
        queue.push("idle", 1, f"i{number}")
        queue.push("busy", 1, f"c{number}")
    order = [queue.pop() for _ in range(20)]
    assert sum(1 for one in order[:10] if one and one[0] == "c") >= 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.sampled_from(["push", "pop", "remove"]))))
def test_the_queue_keeps_its_bounds_and_loses_nothing(steps: list[tuple[str, int, str]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(5, 3)
    inside: list[tuple[str, int]] = []
    for number, (peer, cost, step) in enumerate(steps):
        item = (peer, number)
        if step == "push":
            room = len(inside) < 5 and sum(1 for one in inside if one[0] == peer) < 3
            assert queue.push(peer, cost, item) == room
            inside += [item] if room else []
        elif step == "pop":
            found = queue.pop()
            assert (found is None) == (not inside)
            if found is not None:
                inside.remove(found)
        else:
            assert queue.remove(item) is False
            if inside:
                assert queue.remove(inside.pop(0)) is True
        assert len(queue) == len(inside)


def test_metrics_are_read_by_the_official_parser() -> None:
    metrics = Metrics()
    metrics.requests["infer", 200] += 2
    metrics.refusals["rate"] += 1
    metrics.connections_refused["full"] += 3
    metrics.gauge("budget_remaining", "Left.", lambda: 7)
    metrics.gauge("enclave_restarts", "None here.", lambda: None)
    for seconds in (0.0005, 0.001, 0.3, 99.0):
        metrics.answered(4, seconds)
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert families["variegate_labels"].samples[0].value == 16
    assert families["variegate_budget_remaining"].samples[0].value == 7
    assert "variegate_enclave_restarts" not in families
    assert families["variegate_requests"].samples[0].labels == {"kind": "infer", "status": "200"}
    buckets = {
        s.labels["le"]: s.value for s in families["variegate_query_seconds"].samples if s.name.endswith("bucket")
    }
    assert buckets["0.001"] == 2
    assert buckets["0.5"] == 3
    assert buckets["10.0"] == 3
    assert buckets["+Inf"] == 4
    assert len(buckets) == len(BUCKETS_S) + 1


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (RefusedError(Refusal.INPUT, "frames are wrong"), 400, None),
        (RefusedError(Refusal.TOO_LARGE, "too many"), 413, None),
        (RefusedError(Refusal.EXPIRED, "secret"), 503, None),
        (RefusedError(Refusal.ROLLED_BACK, "secret"), 503, None),
        (RefusedError(Refusal.MODEL, "secret"), 500, None),
        (LimitError("secret", retry_after_s=0.2), 429, b"1"),
        (LimitError("secret", retry_after_s=61.01), 429, b"62"),
        (LimitError("secret"), 403, None),
        (BusyError("secret"), 503, b"1"),
        (TimeLimitError("secret"), 503, b"1"),
        (LeftError("secret"), 503, None),
        (DeviceError("secret"), 503, b"1"),
        (MisuseError("secret"), 503, None),
        (ZeroDivisionError("secret"), 500, None),
    ],
)
def test_answers_to_errors(error: Exception, status: int, retry: bytes | None) -> None:
    fault = fault_of(error)
    assert (fault.status, fault.retry_after) == (status, retry)
    assert b"secret" not in fault.body
    assert list(json.loads(fault.body)) == ["error"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_peers(one: str, other: str, same: bool) -> None:
    assert (peer_of(one) == peer_of(other)) is same


def test_places_are_given_back_once() -> None:
    keeper = Doorkeeper(ServeLimits(max_connections=3, max_peer_connections=2))
    first, second = keeper.admit("a"), keeper.admit("a")
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    assert keeper.admit("a") == "peer"
    assert isinstance(keeper.admit("b"), Permit)
    assert keeper.admit("c") == "full"
    first.release()
    first.release()
    assert keeper.inside == 2


def test_limits_make_sense() -> None:
    for changes in (
        {"max_batch": 0},
        {"head_s": 0.0},
        {"answer_s": -1.0},
        {"head_s": float("nan")},
        {"max_batch": 10**6},
    ):
        with pytest.raises(MisuseError):
            ServeLimits(**changes)
