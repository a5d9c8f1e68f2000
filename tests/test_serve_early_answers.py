"""Answers given before a body has come whole reach ordinary clients, and cost no more time than the body had."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.attesting import Scene
from testbed.devices import workplace
from testbed.serving import INFER, device_with, read_all, serving
from tests.support.certificates import Authority
from variegate.keys import cbor
from variegate.runtime.port import LabelPort
from variegate.serve.broker_app import BrokerService
from variegate.serve.limits import ServeLimits
from variegate.serve.tls import TlsFiles

FAR = 64 << 20
"""Far over every bound here, and over what the kernel keeps for a connection."""
RELEASE = "/v1/release"


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


@contextlib.contextmanager
def broker(folder: Path, limits: ServeLimits) -> Iterator[tuple[str, int]]:
    scene, ready = Scene(folder), threading.Event()
    service = BrokerService(scene.broker, "127.0.0.1", 0, limits=limits, on_start=lambda _: ready.set())
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        assert ready.wait(20)
        assert service.address is not None
        yield service.address
    finally:
        service.stop()
        thread.join(30)
        scene.store.database.close()


@contextlib.contextmanager
def either(what: str, port: LabelPort, folder: Path, **limits: float) -> Iterator[tuple[tuple[str, int], str]]:
    """A device's server or a broker: where it listens, and a path that takes a body."""
    bounds = ServeLimits(**limits)  # type: ignore[arg-type]
    if what == "broker":
        with broker(folder, bounds) as address:
            yield address, RELEASE
    else:
        with serving(port, limits=bounds) as service:
            assert service.address is not None
            yield service.address, INFER


@pytest.fixture(params=["device", "broker"])
def served(request: pytest.FixtureRequest, port: LabelPort, tmp_path: Path) -> Iterator[tuple[tuple[str, int], str]]:
    # Time enough for a busy machine: what is tested is that the answer comes.
    with either(request.param, port, tmp_path, body_s=120.0) as found:
        yield found


def pieces() -> Iterator[bytes]:
    for _ in range(FAR >> 20):
        yield bytes(1 << 20)


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_http_client_sees_413(served: tuple[tuple[str, int], str], chunked: bool, close: bool) -> None:
    address, path = served
    headers = {"Content-Type": "application/json", **({"Connection": "close"} if close else {})}
    connection = http.client.HTTPConnection(*address, timeout=120)
    try:
        connection.request("POST", path, pieces() if chunked else bytes(FAR), headers, encode_chunked=chunked)
        answer = connection.getresponse()
        assert answer.status == 413
        assert answer.read()
        # The next request of the same client is answered.
        connection.request("GET", "/v2/health/live" if path == INFER else path)
        assert connection.getresponse().status in (200, 405)
    finally:
        connection.close()


def test_urllib_sees_413(served: tuple[tuple[str, int], str]) -> None:
    """It says `Connection: close` with each request."""
    (host, number), path = served
    wanted = urllib.request.Request(f"http://{host}:{number}{path}", bytes(FAR), {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(wanted, timeout=120)
    with caught.value as error:
        assert error.code == 413


def test_requests_sees_413(served: tuple[tuple[str, int], str]) -> None:
    requests = pytest.importorskip("requests")
    (host, number), path = served
    headers = {"Content-Type": "application/json"}
    for body in (bytes(FAR), pieces()):
        answer = requests.post(f"http://{host}:{number}{path}", data=body, headers=headers, timeout=120)
        assert answer.status_code == 413


@pytest.mark.parametrize("expect", ["100-continue", ""])
@pytest.mark.parametrize("chunked", [False, True])
def test_curl_sees_413(served: tuple[tuple[str, int], str], tmp_path: Path, expect: str, chunked: bool) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    (host, number), path = served
    with (tmp_path / "body").open("wb") as body:
        body.truncate(FAR)
    options = ["-H", f"Expect: {expect}" if expect else "Expect:", "-H", "Content-Type: application/json"]
    options += ["-H", "Transfer-Encoding: chunked"] if chunked else []
    command = [curl, "-s", "-S", "-o", str(tmp_path / "answer"), "-w", "%{http_code}", *options]
    command += ["--data-binary", f"@{tmp_path / 'body'}", f"http://{host}:{number}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert (done.stdout, done.stderr) == ("413", "")


def test_no_go_ahead_for_what_is_too_large(served: tuple[tuple[str, int], str]) -> None:
    """The answer says that the connection ends: nobody knows then whether a body follows (RFC 9110, 10.1.1)."""
    address, path = served
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {FAR}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(address, timeout=60) as sock:
        sock.sendall(head.encode())
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_under_tls(port: LabelPort, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server = authority.issue("localhost")
    tls = TlsFiles(certificate=server.certificate, key=server.key)
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with serving(port, tls=tls, limits=ServeLimits(body_s=120.0)) as service:
        assert service.address is not None
        for close in ({}, {"Connection": "close"}):
            connection = http.client.HTTPSConnection("localhost", service.address[1], timeout=120, context=context)
            try:
                connection.request("POST", INFER, bytes(FAR), close)
                assert connection.getresponse().status == 413
            finally:
                connection.close()


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/v2", 405), ("PUT", "/none", 404)])
def test_other_answers_before_a_body(port: LabelPort, method: str, path: str, status: int) -> None:
    with serving(port, limits=ServeLimits(body_s=120.0), metrics_port=0) as service:
        for address in (service.address, service.metrics_address):
            assert address is not None
            for close in ({}, {"Connection": "close"}):
                connection = http.client.HTTPConnection(*address, timeout=120)
                try:
                    connection.request(method, path, bytes(FAR), close)
                    found = connection.getresponse()
                    assert found.status == (404 if address == service.metrics_address else status)
                    found.read()
                finally:
                    connection.close()


@pytest.mark.parametrize(
    ("what", "kind"), [("device", "length"), ("device", "chunked"), ("device", "garbage"), ("broker", "chunked")]
)
def test_an_answered_body_gets_no_more_time(port: LabelPort, tmp_path: Path, what: str, kind: str) -> None:
    """A client that drips the body of a request that was answered is cut when the body's time is up."""
    with either(what, port, tmp_path, body_s=4.0, keep_alive_s=60) as (address, path):
        framing = f"Content-Length: {FAR}" if kind == "length" else "Transfer-Encoding: chunked"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
        piece = bytes(1 << 16) if kind == "length" else b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        with socket.create_connection(address, timeout=60) as sock:
            began = time.monotonic()
            sock.sendall(head.encode())
            for _ in range(20):  # more than any of the bounds
                sock.sendall(piece)
            answer = sock.recv(1 << 16)
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(1 << 16)
            assert b" 413 " in answer
            drip = b"x" if kind == "length" else b"not a chunk" if kind == "garbage" else b"1\r\nx\r\n"
            try:
                while time.monotonic() - began < 30:
                    sock.sendall(drip)
                    time.sleep(0.1)
            except OSError:
                return
    pytest.fail("the rest of a body could be dripped")


def test_many_who_are_answered_early_leave_nothing_behind(port: LabelPort) -> None:
    limits = ServeLimits(body_s=1.0, max_connections=8, max_peer_connections=8)
    with serving(port, limits=limits) as service:
        assert service.address is not None
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {FAR}\r\n\r\n".encode()
        held = [socket.create_connection(service.address, timeout=60) for _ in range(8)]
        for sock in held:
            sock.sendall(head)
        for sock in held:
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        end = time.monotonic() + 30
        while True:  # they keep their places until their time is up, and no longer
            with contextlib.suppress(OSError), socket.create_connection(service.address, timeout=60) as sock:
                sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if read_all(sock).startswith(b"HTTP/1.1 200 "):
                    break
            assert time.monotonic() < end
            time.sleep(0.05)
        for sock in held:
            sock.close()


def test_a_brokers_answers_stay_of_its_protocol(tmp_path: Path) -> None:
    with broker(tmp_path, ServeLimits(body_s=120.0)) as address:
        connection = http.client.HTTPConnection(*address, timeout=120)
        try:
            connection.request("POST", RELEASE, bytes(FAR))
            answer = connection.getresponse()
            assert cbor.decode(answer.read(), limit=100) == "request is too large"
        finally:
            connection.close()
