"""Connections that are slow, endless, ambiguous or too many."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.artefacts import frames
from testbed.devices import workplace
from testbed.serving import INFER, Faulty, Http, device_with, infer_json, read_all, serving, until, waiting
from variegate.keys.manifest import Policy
from variegate.runtime.port import LabelPort
from variegate.serve.limits import ServeLimits
from variegate.serve.server import Service

QUICK = ServeLimits(
    head_s=0.5,
    body_s=1.0,
    write_s=0.5,
    keep_alive_s=1,
    max_connections=12,
    max_peer_connections=12,
    max_pipelined=4,
)


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


@pytest.fixture(scope="module")
def service(port: LabelPort) -> Iterator[Service]:
    with serving(port, limits=QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def http(service: Service) -> Http:
    return Http(service)


def post(body: bytes, *headers: str, length: bool = True) -> bytes:
    lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int = 1000) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def statuses(answer: bytes) -> list[int]:
    return [int(part[1:4]) for part in answer.split(b"HTTP/1.1")[1:]]


def cut(sock: socket.socket, piece: bytes) -> bool:
    """Whether a client that goes on sending finds the connection broken."""
    began = time.monotonic()
    try:
        while time.monotonic() - began < 15:
            sock.sendall(piece)
    except OSError:
        return True
    return False


def answered(http: Http) -> bool:
    try:
        return http.infer(frames(1))[0] == 200
    except OSError:  # turned away at the door
        return False


BODY = infer_json(frames(1))
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

AMBIGUOUS = {
    "both lengths": post(b"", "Transfer-Encoding: chunked", "Content-Length: 5", length=False) + b"0\r\n\r\n",
    "both, other order": post(b"", "Content-Length: 5", "Transfer-Encoding: chunked", length=False) + b"0\r\n\r\n",
    "two lengths": post(BODY, f"Content-Length: {len(BODY)}"),
    "two different lengths": post(BODY, "Content-Length: 1"),
    "list of lengths": post(b"", f"Content-Length: {len(BODY)}, {len(BODY)}", length=False) + BODY,
    "negative length": post(b"", "Content-Length: -1", length=False) + BODY,
    "plus length": post(b"", f"Content-Length: +{len(BODY)}", length=False) + BODY,
    "hex length": post(b"", "Content-Length: 0x10", length=False) + BODY,
    "length of 30 digits": post(b"", "Content-Length: " + "9" * 30, length=False) + BODY,
    "space before colon": post(b"", f"Content-Length : {len(BODY)}", length=False) + BODY,
    "two codings": post(b"", "Transfer-Encoding: gzip, chunked", length=False) + chunked(BODY),
    "coding twice": post(b"", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", length=False) + chunked(BODY),
    "unknown coding": post(b"", "Transfer-Encoding: xchunked", length=False) + chunked(BODY),
    "folded header": post(BODY, "X-A: 1\r\n b"),
    "bare line feeds": post(BODY).replace(b"\r\n", b"\n"),
    "null in a header": post(BODY, "X-A: \0"),
    "two hosts": post(BODY, "Host: y"),
    "no such version": GET.replace(b"HTTP/1.1", b"HTTP/3.7"),
    "no request": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    "chunk without length": post(b"", "Transfer-Encoding: chunked", length=False) + b"xyz\r\n" + BODY,
    "negative chunk": post(b"", "Transfer-Encoding: chunked", length=False) + b"-5\r\nabcde\r\n0\r\n\r\n",
    "upgrade": b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "connect": b"CONNECT example.com:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_one_refusal_and_the_end_for_what_is_ambiguous(http: Http, request_: bytes) -> None:
    answer = http.raw(request_ + GET)
    assert statuses(answer) in ([400], []), answer
    assert b'"live"' not in answer


UPGRADES = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize("split", [None, 40, -60, -5])
def test_offers_of_another_protocol_are_passed_over(http: Http, port: LabelPort, split: int | None) -> None:
    """As Java's client makes with every request in the clear (RFC 9110, 7.8)."""
    expected = port.classify(frames(1)[0])
    requests = [
        post(BODY, *UPGRADES) + post(BODY, *UPGRADES, "Connection: close"),
        post(b"", *UPGRADES, "Transfer-Encoding: chunked", length=False)
        + chunked(BODY, 100)
        + post(b"", "Connection: close", *UPGRADES, "Transfer-Encoding: chunked", length=False)
        + chunked(BODY, 100),
    ]
    for request in requests:
        with socket.create_connection(http.address, timeout=10) as sock:
            sock.sendall(request[:split])
            if split is not None:
                time.sleep(0.1)
                sock.sendall(request[split:])
            answer = read_all(sock)
        assert statuses(answer) == [200, 200]
        assert answer.count(b'"data":[%d]' % expected) == 2
    assert (
        len(statuses(http.raw(GET.replace(b"\r\n\r\n", "\r\n{}\r\n{}\r\n\r\n".format(*UPGRADES).encode()) * 500))) < 20
    )


def test_an_offer_hides_nothing_ambiguous(http: Http) -> None:
    for request in (
        post(BODY, *UPGRADES, f"Content-Length: {len(BODY)}"),
        post(BODY, *UPGRADES, "Transfer-Encoding: chunked"),
        post(BODY, *UPGRADES, "Host: y"),
        post(BODY, "Connection: upgrade", "Upgrade: h2c, websocket"),
    ):
        assert statuses(http.raw(request + GET)) in ([400], [])


@pytest.mark.parametrize("behind", [b"\r\n", b"GE", b"GET /v2 HTTP/1.1\r\nHost"])
def test_what_comes_behind_a_request_does_not_cost_its_answer(port: LabelPort, behind: bytes) -> None:
    slow = Faulty(port)
    with serving(slow, limits=ServeLimits(head_s=0.2)) as service:
        slow.hang.clear()
        with socket.create_connection(Http(service).address, timeout=10) as sock:
            sock.sendall(post(BODY) + behind)
            time.sleep(0.7)
            slow.hang.set()
            assert statuses(sock.recv(65536)) == [200]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2 HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000 + b"\r\n",
        b"GET /v2 HTTP/1.1\r\nX-A: " + b"b" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"v" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["many", "long", "target"],
)
def test_heads_are_bounded(http: Http, head: bytes) -> None:
    assert statuses(http.raw(head)) == [431]


@pytest.mark.parametrize("start", [b"GET /v2 HTTP/1.1\r\nX-A: ", b"GET /", b"\r\n"])
def test_heads_without_an_end_are_bounded(http: Http, start: bytes) -> None:
    with socket.create_connection(http.address, timeout=10) as sock:
        sent, began = 0, time.monotonic()
        filler = b"\r\n" * 4096 if start == b"\r\n" else b"b" * 8192
        sock.sendall(start)
        try:
            while sent < 64 << 20 and time.monotonic() - began < 5:
                sent += sock.send(filler)
        except OSError:
            pass
        assert sent < 16 << 20


@pytest.mark.parametrize(
    "start", [b"", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n", post(BODY)[:-10], GET[:-1]], ids=range(5)
)
def test_slow_requests_end(http: Http, start: bytes) -> None:
    began = time.monotonic()
    with socket.create_connection(http.address, timeout=10) as sock:
        sock.sendall(start)
        answer = read_all(sock)
    assert 0.3 < time.monotonic() - began < 4
    assert statuses(answer) == ([408] if start else [])


def test_a_drip_of_bytes_does_not_hold_the_connection(http: Http) -> None:
    request, began = post(BODY), time.monotonic()
    with socket.create_connection(http.address, timeout=10) as sock:
        sock.sendall(request[:-100])
        try:
            for at in range(len(request) - 100, len(request)):
                sock.sendall(request[at : at + 1])
                time.sleep(0.1)
                assert time.monotonic() - began < 5
        except OSError:
            return
    pytest.fail("the body could be dripped")


def test_idle_and_kept_alive_connections_end(http: Http) -> None:
    began = time.monotonic()
    with socket.create_connection(http.address, timeout=10) as sock:
        sock.sendall(GET)
        answer = read_all(sock)
    assert statuses(answer) == [200]
    assert 0.8 < time.monotonic() - began < 4


def test_bodies_are_bounded_by_their_word_and_by_their_bytes(http: Http, port: LabelPort) -> None:
    for stated in (10 << 20, 10**11):
        with socket.create_connection(http.address, timeout=10) as sock:
            sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {stated}\r\n\r\n".encode())
            answer = sock.recv(65536)  # before a byte of the body was sent
            assert statuses(answer) == [413]
    large = post(b"", "Transfer-Encoding: chunked", length=False) + chunked(b" " * (1 << 20), 65536)
    assert statuses(http.raw(large)) in ([413], [])  # a busy machine may take longer than the body's time
    # A body without end is cut when its time is up, whether or not the client reads.
    with socket.create_connection(http.address, timeout=10) as sock:
        sock.sendall(post(b"", "Transfer-Encoding: chunked", length=False))
        assert cut(sock, b"10000\r\n" + bytes(65536) + b"\r\n")


def test_waits_for_the_bodys_go_ahead(http: Http) -> None:
    with socket.create_connection(http.address, timeout=10) as sock:
        whole = post(BODY, "Expect: 100-continue")
        sock.sendall(whole[: -len(BODY)])
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert statuses(sock.recv(65536)) == [200]
    with socket.create_connection(http.address, timeout=10) as sock:
        sock.sendall(post(b"", "Expect: 100-continue", "Content-Length: 99999999", length=False))
        assert statuses(sock.recv(65536)) == [413]


def test_chunked_bodies_and_trailers(http: Http, port: LabelPort) -> None:
    request = post(b"", "Transfer-Encoding: chunked", "Connection: close", length=False)
    answer = http.raw(request + chunked(BODY, 7)[:-2] + b"Origin: evil\r\nInference-Header-Content-Length: 3\r\n\r\n")
    assert statuses(answer) == [200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == [port.classify(frames(1)[0])]


def test_pipelined_requests_are_answered_in_order(http: Http, port: LabelPort) -> None:
    shown = frames(3, seed=9)
    requests = [post(infer_json(shown[i : i + 1])) for i in range(3)]
    answer = http.raw(b"".join(requests) + GET.replace(b"Host: localhost", b"Connection: close"))
    assert statuses(answer) == [200] * 4
    found = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in answer.split(b"HTTP/1.1")[1:4]]
    assert [one["outputs"][0]["data"][0] for one in found] == port.classify_batch(shown).tolist()


def test_pipelines_are_bounded(http: Http) -> None:
    answer = http.raw(GET * 5000)
    assert len(statuses(answer)) <= QUICK.max_pipelined + 1


def test_answers_nobody_reads_do_not_stay(http: Http, service: Service) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.settimeout(5)
        sock.connect(http.address)
        page = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        began = time.monotonic()
        try:
            while time.monotonic() - began < 10:
                sock.sendall(page)
        except OSError:
            return
    pytest.fail("a client that reads nothing was written to without end")


def test_connections_are_bounded(port: LabelPort) -> None:
    limits = ServeLimits(head_s=5, max_connections=6, max_peer_connections=4)
    with serving(port, limits=limits) as service:
        http = Http(service)
        held = [socket.create_connection(http.address, timeout=10) for _ in range(4)]
        with socket.create_connection(http.address, timeout=10) as fifth:
            answer = read_all(fifth)
        assert statuses(answer) == [503]
        assert b"retry-after" in answer
        for sock in held:
            sock.close()
        until(lambda: answered(http))  # the places were given back


def test_health_has_another_door(port: LabelPort) -> None:
    with serving(port, limits=ServeLimits(max_connections=2), metrics_port=0) as service:
        http = Http(service)
        with socket.create_connection(http.address), socket.create_connection(http.address):
            until(lambda: not answered(http))
            assert service.metrics_address is not None
            http.address = service.metrics_address
            assert http.ask("GET", "/v2/health/ready")[0] == 200
            assert http.ask("GET", "/v2/health/live")[0] == 200
            assert http.ask("POST", INFER, BODY)[0] == 404


def test_one_peer_cannot_starve_another(port: LabelPort) -> None:
    slow = Faulty(port)
    with serving(slow, limits=ServeLimits(max_queue=8, max_peer_queue=3), metrics_port=0) as service:
        http = Http(service)
        slow.hang.clear()
        answers: list[int] = []
        greedy = [threading.Thread(target=lambda: answers.append(http.infer(frames(1))[0])) for _ in range(10)]
        greedy[0].start()
        until(lambda: slow.asked == [1])  # it waits no more, so that there is room for three behind it
        for thread in greedy[1:]:
            thread.start()
        until(lambda: len(answers) == 6)
        # Another address of this machine is another peer: there is room for it, and it is not last.
        other = socket.create_connection(http.address, timeout=10, source_address=("127.0.0.2", 0))
        other.sendall(post(infer_json(frames(2))))
        until(lambda: waiting(service) == 4)
        slow.hang.set()
        assert statuses(other.recv(65536)) == [200]
        other.close()
        for thread in greedy:
            thread.join()
        assert sorted(answers) == [200] * 4 + [503] * 6
        assert slow.asked.index(2) <= 2


def test_a_client_that_leaves_is_not_charged(tmp_path: Path) -> None:
    with device_with(tmp_path, policy=Policy(budget=100)) as device:
        slow = Faulty(device.boot())
        with serving(slow, metrics_port=0) as service:
            http = Http(service)
            slow.hang.clear()
            with socket.create_connection(http.address) as first, socket.create_connection(http.address) as second:
                first.sendall(post(infer_json(frames(1))))
                until(lambda: slow.asked == [1])
                second.sendall(post(infer_json(frames(50))))
                until(lambda: waiting(service) == 1)
            until(lambda: waiting(service) == 0)
            slow.hang.set()
            assert http.infer(frames(2))[0] == 200
        assert slow.asked == [1, 2]
        assert device.counter("budget.0") <= 4


def test_stops_while_clients_are_there(port: LabelPort) -> None:
    limits = ServeLimits(drain_s=2)
    with serving(port, limits=limits) as service:
        http = Http(service)
        idle = socket.create_connection(http.address)
        half = socket.create_connection(http.address)
        half.sendall(post(BODY)[:-10])
        time.sleep(0.2)
        began = time.monotonic()
        service.stop()
        time.sleep(0.3)
        half.sendall(post(BODY)[-10:])
        assert statuses(half.recv(65536)) == [200]  # what was begun is finished
        assert read_all(idle) == b""
        for sock in (idle, half):
            sock.close()
    assert time.monotonic() - began < 5


def test_nothing_is_left_open(port: LabelPort, tmp_path: Path) -> None:
    count = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    for _ in range(3):
        with serving(port, socket=tmp_path / "s") as service:
            Http(service).infer(frames(1))
    assert len(list(Path("/proc/self/fd").iterdir())) == count
    assert threading.active_count() == threads
    assert not (tmp_path / "s").exists()


def test_hostile_clients_leave_the_server_well(http: Http, port: LabelPort) -> None:
    """Runs last: after all of the above, the same server still gives the right labels."""
    results: list[Any] = [http.infer(frames(7, seed=7)) for _ in range(3)]
    assert all(one[1]["outputs"][0]["data"] == port.classify_batch(frames(7, seed=7)).tolist() for one in results)
