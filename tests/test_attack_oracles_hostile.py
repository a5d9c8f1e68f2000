"""Servers that lie, break off, drip or flood: our own errors, in bounded time, and every query counted once."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.oracles import Script, dripping, http_answer, http_request, listening
from variegate.attack.oracles import oip
from variegate.attack.oracles.http import HttpOracle
from variegate.attack.oracles.patience import Patience
from variegate.attack.oracles.socket import SocketOracle
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError, VariegateError

SHAPE, CLASSES = (1, 2, 2), 5
SHOWN = np.zeros((3, *SHAPE), np.uint8)
METADATA: dict[str, Any] = {
    "name": "copy",
    "versions": ["1"],
    "platform": "x",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *SHAPE]}],
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
    "parameters": {"classes": CLASSES, "max_batch": 16},
}


def device(
    answer: Callable[[socket.socket, int], None], metadata: bytes | None = None
) -> Callable[[socket.socket], None]:
    """A server whose metadata are in order and whose answers are the test's; the second is the query's number."""
    told = json.dumps(METADATA).encode() if metadata is None else metadata
    asked = 0

    def script(client: socket.socket) -> None:
        nonlocal asked
        while request := http_request(client):
            if request.startswith(b"GET /v2 "):
                client.sendall(http_answer(200, b'{"name":"x","extensions":["binary_tensor_data"]}'))
            elif request.startswith(b"GET"):
                client.sendall(http_answer(200, told))
            else:
                asked += 1
                answer(client, asked)

    return script


@contextmanager
def attacked(answer: Callable[[socket.socket, int], None]) -> Iterator[HttpOracle]:
    """An attacker's client of such a server."""
    with (
        listening(device(answer)) as (host, port),
        HttpOracle(f"http://{host}:{port}", patience=Patience(longest_s=1)) as oracle,
    ):
        yield oracle


def labelled(labels: list[int], kind: str = "<i8", **changes: Any) -> bytes:
    raw = np.array(labels, kind).tobytes()
    tensor = {
        "name": "label",
        "datatype": "INT64",
        "shape": [len(labels)],
        "parameters": {"binary_data_size": len(raw)},
        **changes,
    }
    head = json.dumps({"model_name": "copy", "outputs": [tensor]}).encode()
    return http_answer(200, head + raw, f"Inference-Header-Content-Length: {len(head)}")


def plain(**changes: Any) -> bytes:
    tensor = {"name": "label", "datatype": "INT64", "shape": [3], "data": [1, 2, 3], **changes}
    return http_answer(200, json.dumps({"outputs": [tensor]}).encode())


def test_honest_answers_of_both_kinds_are_taken() -> None:
    answers = [labelled([1, 2, 3]), plain(), labelled([4, 0, 1], "<i4", datatype="INT32")]
    with listening(device(lambda client, n: client.sendall(answers[n - 1]))) as (host, port):
        oracle = HttpOracle(f"http://{host}:{port}")
        assert (oracle.shape, oracle.dtype, oracle.classes, oracle.batch) == (SHAPE, "uint8", CLASSES, 16)
        assert [oracle.labels(SHOWN).tolist() for _ in answers] == [[1, 2, 3], [1, 2, 3], [4, 0, 1]]
        assert oracle.asked == 9
        oracle.close()


WRONG_ANSWERS = {
    "too few labels": labelled([1, 2]),
    "too many labels": labelled([1, 2, 3, 4]),
    "a label out of range": labelled([1, 2, CLASSES]),
    "a label below zero": labelled([1, 2, -1]),
    "data shorter than their shape": labelled([1, 2], shape=[3]),
    "a wide shape": labelled([1, 2, 3], shape=[3, 1]),
    "floats": labelled([1, 2, 3], "<f8", datatype="FP64"),
    "another output": labelled([1, 2, 3], name="scores"),
    "no JSON": http_answer(200, b"labels"),
    "not UTF-8": http_answer(200, b"\xff\xfe{}"),
    "a list": http_answer(200, b"[]"),
    "no outputs": http_answer(200, b'{"outputs":[]}'),
    "two outputs": http_answer(200, b'{"outputs":[{},{}]}'),
    "nested deep": http_answer(200, b"[" * 3000),
    "JSON floats": plain(data=[1.0, 2.0, 3.0]),
    "JSON booleans": plain(data=[True, False, True]),
    "JSON texts": plain(data=["1", "2", "3"]),
    "JSON beyond 64 bits": plain(data=[1, 2, 1 << 70]),
    "JSON too few": plain(data=[1, 2]),
    "JSON without data": plain(data=None),
    "a header longer than the body": http_answer(200, b"{}", "Inference-Header-Content-Length: 99"),
    "a header that is no number": http_answer(200, b"{}", "Inference-Header-Content-Length: -2"),
    "a huge number": http_answer(200, b"{}", "Inference-Header-Content-Length: " + "9" * 30),
    "a flood": http_answer(200, b" " * 100_000),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_answers_that_are_none_are_refused_and_counted(name: str) -> None:
    with attacked(lambda client, _: client.sendall(WRONG_ANSWERS[name])) as oracle:
        with pytest.raises(RefusedError) as refused:
            oracle.labels(SHOWN)
        assert refused.value.refusal is Refusal.MALFORMED
        assert oracle.asked == 3


BROKEN = {
    "nothing": b"",
    "half a status": b"HTTP/1.",
    "no HTTP": b"hello\r\n\r\n",
    "a truncated body": labelled([1, 2, 3])[:-5],
    "a body that never comes": http_answer(200, b"", length=100),
    "a chunk that never ends": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
    "an endless header": b"HTTP/1.1 200 X\r\nA: " + b"x" * 70_000,
    "many headers": b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_answers_that_break_off_are_counted_and_not_asked_again(name: str) -> None:
    asked = 0

    def answer(client: socket.socket, _: int) -> None:
        nonlocal asked
        asked += 1
        client.sendall(BROKEN[name])
        client.shutdown(socket.SHUT_RDWR)

    with attacked(answer) as oracle:
        with pytest.raises(DeviceError, match="may have been charged"):
            oracle.labels(SHOWN)
        assert (oracle.asked, asked) == (3, 1)


def test_a_server_that_drips_or_is_silent_ends_in_time() -> None:
    def drip(client: socket.socket, number: int) -> None:
        if number == 1:
            dripping(client, labelled([1, 2, 3]), 0.1)
        else:
            time.sleep(1.5)

    with listening(device(drip)) as (host, port), HttpOracle(f"http://{host}:{port}", timeout_s=0.4) as oracle:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(DeviceError):
                oracle.labels(SHOWN)
            assert time.monotonic() - began < 2
        assert oracle.asked == 6


STATUSES: dict[str, tuple[bytes, type[VariegateError], int]] = {
    "input": (http_answer(400, b'{"error":"no"}'), RefusedError, 0),
    "too large": (http_answer(413, b""), RefusedError, 0),
    "spent": (http_answer(403, b'{"error":"query budget is spent"}'), LimitError, 0),
    "forbidden by someone else": (http_answer(403, b"<html>"), DeviceError, 0),
    "gone": (http_answer(404, b""), DeviceError, 0),
    "rate": (http_answer(429, b"", "Retry-After: 1000000"), LimitError, 0),
    "rate without a time": (http_answer(429, b""), LimitError, 0),
    "busy": (http_answer(503, b'{"error":"too many queries are waiting"}', "Retry-After: 50"), LimitError, 0),
    "down": (http_answer(503, b'{"error":"it may have been charged"}', "Retry-After: 1"), DeviceError, 3),
    "broken": (http_answer(500, b'{"error":{"deep":1}}'), DeviceError, 3),
    "elsewhere": (http_answer(302, b"", "Location: http://example.com/"), DeviceError, 3),
    "a date": (http_answer(503, b"", "Retry-After: Fri, 31 Dec 1999 23:59:59 GMT"), LimitError, 0),
    "no date": (http_answer(503, b"", "Retry-After: Fri, 99 Dec 1999"), DeviceError, 3),
}


@pytest.mark.parametrize("name", STATUSES)
def test_statuses(name: str) -> None:
    data, kind, counted = STATUSES[name]
    with attacked(lambda client, _: client.sendall(data)) as oracle:
        with pytest.raises(kind):
            oracle.labels(SHOWN)
        assert oracle.asked == counted


def test_a_servers_words_are_shown_without_what_a_terminal_obeys() -> None:
    body = json.dumps({"error": "a\x1b[31m\nred" + "x" * 2000}).encode()
    data = http_answer(400, body)
    with attacked(lambda client, _: client.sendall(data)) as oracle, pytest.raises(RefusedError) as refused:
        oracle.labels(SHOWN)
    assert refused.value.hint is not None
    assert refused.value.hint.startswith("the server says: a[31mred")
    assert len(refused.value.hint) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"inputs": [{"name": "image", "datatype": "FP64", "shape": [-1, 1, 2, 2]}]},
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 4]}]},
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 2, 1 << 40]}]},
        {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 2, True]}]},
        {"inputs": [{"datatype": "UINT8", "shape": [-1, 1, 2, 2]}]},
        {"inputs": [{"name": "image", "datatype": ["UINT8"], "shape": [-1, 1, 2, 2]}]},
        {"outputs": [{"name": "label", "datatype": "FP32", "shape": [-1, 5]}]},
        {"outputs": "label"},
    ],
)
def test_models_that_cannot_be_attacked_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        oip.model_of(json.dumps({**METADATA, **changes}).encode())


def test_classes_are_asked_for_where_the_server_does_not_say() -> None:
    quiet = json.dumps({**METADATA, "parameters": {"classes": "many", "max_batch": -3}}).encode()
    with listening(device(lambda client, _: client.sendall(labelled([6, 6, 6])), quiet)) as (host, port):
        with pytest.raises(MisuseError, match="classes"):
            HttpOracle(f"http://{host}:{port}")
        with HttpOracle(f"http://{host}:{port}", classes=7, batch=3) as oracle:
            assert (oracle.classes, oracle.batch) == (7, 3)
            assert oracle.labels(SHOWN).tolist() == [6, 6, 6]


HELLO = struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, *SHAPE, CLASSES, 16, 4)


def answering(answer: Callable[[int], bytes], hello: bytes = HELLO) -> Script:
    """A label socket that reads queries of three frames and answers as the test has it, by the query's id."""

    def script(client: socket.socket) -> None:
        client.sendall(hello)
        while query := client.recv(16 + 12):
            client.sendall(answer(struct.unpack_from("<I", query, 4)[0]))

    return script


def told(number: int, labels: list[int], **changes: int) -> bytes:
    head = {"id": number, "status": 0, "wait": 0xFFFFFFFF, "count": len(labels), "zero": 0, **changes}
    return struct.pack("<4s5I", b"VGA1", *head.values()) + np.array(labels, "<u4").tobytes()


SOCKET_ANSWERS: dict[str, tuple[Callable[[int], bytes], type[VariegateError], int]] = {
    "too few": (lambda n: told(n, [1, 2]), RefusedError, 3),
    "too many": (lambda n: told(n, [1, 2, 3, 4]), RefusedError, 3),
    "out of range": (lambda n: told(n, [1, 2, CLASSES]), RefusedError, 3),
    "another's": (lambda n: told(n + 1, [1, 2, 3]), RefusedError, 3),
    "not zero": (lambda n: told(n, [1, 2, 3], zero=1), RefusedError, 3),
    "no magic": (lambda n: b"XXXX" + told(n, [1, 2, 3])[4:], RefusedError, 3),
    "labels with a refusal": (lambda n: told(n, [1, 2, 3], status=1), RefusedError, 3),
    "unknown status": (lambda n: told(n, [], status=99), DeviceError, 3),
    "wrong": (lambda n: told(n, [], status=1), RefusedError, 0),
    "too large": (lambda n: told(n, [], status=2), RefusedError, 0),
    "rate": (lambda n: told(n, [], status=3, wait=900_000), LimitError, 0),
    "spent": (lambda n: told(n, [], status=4), LimitError, 0),
    "replaced": (lambda n: told(n, [], status=5), DeviceError, 0),
    "no answer": (lambda n: told(n, [], status=6, wait=1), DeviceError, 3),
    "busy": (lambda n: told(n, [], status=7, wait=1000), LimitError, 0),
    "busy for ever": (lambda n: told(n, [], status=7), DeviceError, 0),
    "closed": (lambda n: told(n, [], status=8), DeviceError, 3),
}


@pytest.mark.parametrize("name", SOCKET_ANSWERS)
def test_the_socket_too(name: str, tmp_path: Path) -> None:
    answer, kind, counted = SOCKET_ANSWERS[name]
    path = tmp_path / "s"
    with listening(answering(answer), path), SocketOracle(path, patience=Patience(longest_s=0.5)) as oracle:
        with pytest.raises(kind):
            oracle.labels(SHOWN)
        assert oracle.asked == counted


@pytest.mark.parametrize(
    "hello",
    [
        b"VGH2" + HELLO[4:],
        HELLO[:4] + b"\x02" + HELLO[5:],
        HELLO[:6] + b"\x03" + HELLO[7:],
        HELLO[:7] + b"\x04" + HELLO[8:],
        HELLO[:-4] + b"\x05\0\0\0",
        HELLO[:20] + bytes(4) + HELLO[24:],
        HELLO[:24] + bytes(4) + HELLO[28:],
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 0, 2, 2, CLASSES, 16, 0),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, *SHAPE, 1 << 30, 16, 4),
        struct.pack("<4sHBB3IIII", b"VGH1", 1, 1, 3, 1 << 16, 1 << 8, 1 << 8, CLASSES, 16, 0),
    ],
)
def test_a_hello_that_cannot_be_is_refused(hello: bytes, tmp_path: Path) -> None:
    with listening(lambda client: client.sendall(hello), tmp_path / "s"), pytest.raises(RefusedError):
        SocketOracle(tmp_path / "s")


def test_a_socket_that_breaks_off_drips_or_changes(tmp_path: Path) -> None:
    path, turn, released = tmp_path / "s", 0, threading.Event()

    def script(client: socket.socket) -> None:
        nonlocal turn
        turn += 1
        client.sendall(HELLO if turn < 4 else HELLO[:20] + b"\x06" + HELLO[21:])
        if not (query := client.recv(28)):
            return
        whole = told(struct.unpack_from("<I", query, 4)[0], [1, 2, 3])
        if turn == 1:
            client.sendall(whole[:30])
        elif turn == 2:
            dripping(client, whole)
        elif turn == 3:
            client.sendall(whole)
            released.wait(5)

    with listening(script, path), SocketOracle(path, timeout_s=0.5) as oracle:
        for counted in (3, 6):
            began = time.monotonic()
            with pytest.raises(DeviceError):
                oracle.labels(SHOWN)
            assert time.monotonic() - began < 2
            assert oracle.asked == counted
        assert oracle.labels(SHOWN).tolist() == [1, 2, 3]
        oracle.close()
        released.set()
        with pytest.raises(RefusedError, match="another"):
            oracle.labels(SHOWN)
        assert oracle.asked == 9


def test_a_socket_without_room_says_so(tmp_path: Path) -> None:
    with listening(lambda _: None, tmp_path / "s"), pytest.raises(DeviceError):
        SocketOracle(tmp_path / "s")
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(MisuseError):
            SocketOracle(tmp_path / "s", timeout_s=bad)
        with pytest.raises(MisuseError):
            HttpOracle("http://127.0.0.1:1", timeout_s=bad)


def test_mutated_answers_raise_nothing_but_refusals() -> None:
    rng = np.random.default_rng(0)
    model = oip.model_of(json.dumps(METADATA).encode())
    whole = [json.dumps(METADATA).encode(), *(a.partition(b"\r\n\r\n")[2] for a in (labelled([1, 2, 3]), plain()))]
    bits = [b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"', b"[[[", b"true", b"9" * 5000, b"\\ud800", b"\xff"]
    refused = 0
    for _ in range(1500):
        data = bytearray(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(data)))
            data[at : at + int(rng.integers(4))] = bits[rng.integers(len(bits))]
        split = [None, 0, len(data) - 24, len(data) + 1][rng.integers(4)]
        oip.error_text(bytes(data))
        for read in (
            oip.model_of,
            oip.has_binary,
            lambda body, split=split: oip.labels_of(body, split, 3, model, CLASSES),
        ):
            try:
                read(bytes(data))
            except RefusedError:
                refused += 1
    assert refused > 3000


def test_a_device_cannot_announce_so_many_classes_that_scores_would_not_fit() -> None:
    told = json.dumps({**METADATA, "parameters": {"classes": 10**12}}).encode()
    with (
        listening(device(lambda client, _: client.close(), told)) as (host, port),
        pytest.raises(RefusedError, match="more than 65536 classes"),
    ):
        HttpOracle(f"http://{host}:{port}")


def test_a_date_to_come_is_waited_for() -> None:
    at = formatdate(time.time() + 1.2, usegmt=True)
    answers = [http_answer(429, b"", f"Retry-After: {at}"), plain()]
    with (
        listening(device(lambda client, n: client.sendall(answers[n - 1]))) as (host, port),
        HttpOracle(f"http://{host}:{port}", patience=Patience(longest_s=5)) as oracle,
    ):
        assert oracle.labels(SHOWN).tolist() == [1, 2, 3]
        assert oracle.asked == 3


def test_a_server_that_is_busy_when_it_is_opened_is_waited_for() -> None:
    turned_away = 0

    def busy(client: socket.socket) -> None:
        nonlocal turned_away
        if turned_away < 2:
            turned_away += 1
            http_request(client)
            client.sendall(http_answer(503, b"", "Retry-After: 1", "Connection: close"))
        else:
            honest(client)

    honest = device(lambda client, _: client.sendall(plain()))
    with listening(busy) as (host, port):
        with pytest.raises(LimitError, match="busy"):
            HttpOracle(f"http://{host}:{port}")
        with HttpOracle(f"http://{host}:{port}", patience=Patience(longest_s=5)) as oracle:
            assert oracle.labels(SHOWN).tolist() == [1, 2, 3]
    assert turned_away == 2


def test_https_to_a_server_without_it_is_told() -> None:
    def plainly(client: socket.socket) -> None:
        client.recv(100)
        client.sendall(http_answer(400, b"no TLS here"))

    with listening(plainly) as (host, port), pytest.raises(DeviceError, match="does not agree on TLS") as caught:
        HttpOracle(f"https://{host}:{port}")
    assert caught.value.hint == "does it serve https? else write http://"
