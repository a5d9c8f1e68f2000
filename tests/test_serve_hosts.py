"""Whose name a request may bear: pages whose own name was made to lead here read nothing, on any path."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.artefacts import frames
from testbed.attesting import Scene
from testbed.devices import workplace
from testbed.serving import INFER, device_with, infer_json, read_all, serving
from variegate.runtime.port import LabelPort
from variegate.serve.binding import bound, host_check
from variegate.serve.broker_app import BrokerService

PATHS = ["/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/copy", "/v2/models/copy/ready", "/none"]
OURS = ["localhost", "LocalHost:80", "localhost.", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "10.1.2.3"]
THEIRS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "x",
    "",
    "[x]",
    ":80",
]


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


def ask(address: tuple[str, int], method: str, path: str, host: str, body: bytes | None = None) -> int:
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
            connection.putheader("Content-Type", "application/json")
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_every_path_of_a_device_asks_for_the_host(port: LabelPort) -> None:
    with serving(port) as service:
        assert service.address is not None
        body = infer_json(frames(1))
        for host in THEIRS:
            for path in PATHS:
                assert ask(service.address, "GET", path, host) == 421, (path, host)
            assert ask(service.address, "POST", INFER, host, body) == 421
        for host in OURS:
            for path in PATHS:
                assert ask(service.address, "GET", path, host) == (404 if path == "/none" else 200), (path, host)
            assert ask(service.address, "POST", INFER, host, body) == 200
        # Only what is no browser leaves the header out.
        with socket.create_connection(service.address, timeout=60) as sock:
            sock.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_the_port_for_metrics_does_as_well(port: LabelPort) -> None:
    with serving(port, metrics_port=0, metrics_host="localhost") as service:
        assert service.metrics_address is not None
        for path in ("/metrics", "/v2/health/live"):
            assert ask(service.metrics_address, "GET", path, "evil.example") == 421
            assert ask(service.metrics_address, "GET", path, "localhost") == 200


def test_a_broker_does_as_well(tmp_path: Path) -> None:
    scene, ready = Scene(tmp_path), threading.Event()
    service = BrokerService(scene.broker, "127.0.0.1", 0, on_start=lambda _: ready.set())
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        assert ready.wait(20)
        assert service.address is not None
        for path in ("/v1/challenge", "/v1/release", "/none"):
            assert ask(service.address, "POST", path, "evil.example", b"") == 421
        assert ask(service.address, "POST", "/v1/challenge", "localhost", b"") == 200
    finally:
        service.stop()
        thread.join(30)
        scene.store.database.close()


def test_what_the_network_reaches_takes_any_name(port: LabelPort) -> None:
    with serving(port, host="0.0.0.0") as service:
        assert service.address is not None
        address = ("127.0.0.1", service.address[1])
        assert ask(address, "GET", "/v2", "car.example") == 200
        assert ask(address, "GET", "/metrics", "car.example") == 404


def test_the_name_that_was_given_is_ours() -> None:
    with contextlib.closing(bound("127.0.0.1", 0)) as sock:
        ours = host_check(sock, "Car.Local")
        assert ours(b"car.local:8000")
        assert not ours(b"cart.local")
