"""The broker over real HTTP: its client, its bounds, and clients that are not nice."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed.attesting import KEYS, Scene
from tests.support.certificates import Authority
from variegate.attest.client import MAX_ANSWER_BYTES, BrokerClient
from variegate.attest.release import Exchange
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError
from variegate.serve.binding import address_text
from variegate.serve.broker_app import MAX_REQUEST_BYTES, BrokerService
from variegate.serve.limits import ServeLimits
from variegate.serve.tls import TlsFiles


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.store.database.close()


@contextmanager
def serving(
    broker: Exchange, *, host: str = "127.0.0.1", tls: TlsFiles | None = None, limits: ServeLimits | None = None
) -> Iterator[int]:
    ready = threading.Event()
    service = BrokerService(broker, host, 0, tls=tls, limits=limits, on_start=lambda _: ready.set())
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        assert ready.wait(10)
        assert service.address is not None
        yield service.address[1]
    finally:
        service.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that takes one connection and is no broker."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            taken, _ = listener.accept()
            with taken:
                taken.recv(1 << 16)
                answer(taken)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(20)


def post(port: int, path: str, body: bytes, method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_share_comes_over_ipv6(scene: Scene) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(scene.broker, host="::1") as port:
        assert scene.opened(scene.share(BrokerClient(f"http://{address_text(('::1', port))}"))) == KEYS


def test_a_port_or_a_name_that_cannot_be_had(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(MisuseError, match="already in use") as caught:
            BrokerService(scene.broker, "127.0.0.1", taken.getsockname()[1]).run()
        assert caught.value.hint is not None
    for wrong in ("256.1.1.1", "example.invalid", "\0", "." * 70, "é" * 80):
        with pytest.raises(MisuseError, match="cannot listen"):
            BrokerService(scene.broker, wrong, 0).run()


def test_a_share_comes_over_http(scene: Scene) -> None:
    with serving(scene.broker) as port:
        client = BrokerClient(f"http://127.0.0.1:{port}")
        assert scene.opened(scene.share(client)) == KEYS
        with pytest.raises(RefusedError) as caught:
            scene.share(client, measurements={})
        assert caught.value.refusal is Refusal.RELEASE
        assert "measurement" not in caught.value.message


def test_refusals_look_alike(scene: Scene) -> None:
    with serving(scene.broker) as port:
        answers = []
        for token, envelope in (
            (b"", b""),
            (scene.token(bytes(40)), scene.envelope),
            (scene.token(scene.broker.challenge(), measurements={}), scene.envelope),
            (scene.token(scene.broker.challenge()), b"x"),
        ):
            status, headers, body = post(port, "/v1/release", cbor.encode([token, envelope]))
            headers.pop("date", None)
            answers.append((status, headers, body))
    assert answers[0][0] == 403
    assert all(answer == answers[0] for answer in answers)


def test_too_often_says_when(scene: Scene) -> None:
    with serving(scene.broker) as port:
        client = BrokerClient(f"http://localhost:{port}")
        for _ in range(12):
            scene.share(client)
        with pytest.raises(LimitError) as caught:
            scene.share(client)
    assert caught.value.retry_after_s == 120


def test_a_broker_whose_books_fail_says_only_that(scene: Scene) -> None:
    with serving(scene.broker) as port:
        scene.store.database.close()
        with pytest.raises(DeviceError):
            scene.share(BrokerClient(f"http://127.0.0.1:{port}"))
        status, headers, body = post(port, "/v1/release", cbor.encode([scene.token(bytes(8)), b""]))
    assert (status, headers["retry-after"], body) == (503, "5", cbor.encode("not now"))


def test_what_is_not_of_the_protocol_is_refused(scene: Scene) -> None:
    with serving(scene.broker) as port:
        for path, body, method, status in (
            ("/", b"", "POST", 404),
            ("/v1/challenge/", b"", "POST", 404),
            ("/v1/challenge", b"", "GET", 405),
            ("/v1/release", b"", "PUT", 405),
            ("/v1/challenge", b"x", "POST", 413),
            ("/v1/release", bytes(MAX_REQUEST_BYTES + 1), "POST", 413),
            ("/v1/release", bytes(MAX_REQUEST_BYTES), "POST", 400),
            ("/v1/release", b"", "POST", 400),
            ("/v1/release", b"\xff", "POST", 400),
            ("/v1/release", cbor.encode([b"", b"", b""]), "POST", 400),
            ("/v1/release", cbor.encode(["", ""]), "POST", 400),
            ("/v1/release", b"\x82\x58\x00\x40", "POST", 400),
        ):
            assert post(port, path, body, method)[0] == status, (path, method)
        assert len(cbor.decode(post(port, "/v1/challenge", b"")[2], limit=100)) == 40


def test_slow_and_many_connections_do_not_hold_up_others(scene: Scene) -> None:
    limits = ServeLimits(head_s=0.3, body_s=0.3, max_connections=8, max_peer_connections=8)
    with serving(scene.broker, limits=limits) as port:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        for number, one in enumerate(held):
            one.sendall(b"POST /v1/rel" if number % 2 else b"POST /v1/release HTTP/1.1\r\ncontent-length: 9\r\n\r\nx")
        deadline = time.monotonic() + 10
        while True:
            try:
                scene.broker.challenge()
                BrokerClient(f"http://127.0.0.1:{port}").challenge()
                break
            except DeviceError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for one in held:
            one.close()


def test_answers_that_are_none() -> None:
    def say(head: bytes, body: bytes = b"") -> Callable[[socket.socket], None]:
        length = b"\r\ncontent-length: %d\r\n\r\n" % len(body)
        return lambda taken: taken.sendall(b"HTTP/1.1 " + head + length + body)

    wrong = {
        "html": say(b"200 OK", b"<html>"),
        "text": say(b"200 OK", cbor.encode("nonce")),
        "large": say(b"200 OK", cbor.encode(bytes(MAX_ANSWER_BYTES))),
        "moved": say(b"302 Found\r\nlocation: http://127.0.0.1:1/", b""),
        "error": say(b"500 No", b""),
        "noise": lambda taken: taken.sendall(b"\x00" * 100),
        "nothing": lambda _: None,
        "headers": lambda taken: taken.sendall(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n"),
    }
    for answer in wrong.values():
        with answering(answer) as url, pytest.raises(DeviceError):
            BrokerClient(url).challenge()
    with answering(say(b"429 Wait\r\nretry-after: 99999999999", b"")) as url, pytest.raises(LimitError) as caught:
        BrokerClient(url).challenge()
    assert caught.value.retry_after_s == 3600
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(DeviceError, match="cannot be reached"):
        BrokerClient(f"http://127.0.0.1:{port}").challenge()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n"])
def test_an_answer_that_drips_is_given_up(start: bytes) -> None:
    def drip(taken: socket.socket) -> None:
        taken.sendall(start)
        try:
            for _ in range(200):
                taken.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            return

    with answering(drip) as url:
        begin = time.monotonic()
        with pytest.raises(DeviceError):
            BrokerClient(url, timeout_s=0.5).challenge()
        assert time.monotonic() - begin < 5


def test_an_answer_without_end_is_cut_off() -> None:
    def pour(taken: socket.socket) -> None:
        taken.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                taken.sendall(bytes(1 << 16))
        except OSError:
            return

    with answering(pour) as url:
        begin = time.monotonic()
        with pytest.raises(DeviceError, match="does not follow the protocol"):
            BrokerClient(url, timeout_s=10).challenge()
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker",
        "ftp://broker",
        "http://broker.example",
        "http://10.0.0.1",
        "https://",
        "https://a/b",
        "https://a?b",
        "https://u:p@a",
        "https://a:99999",
        "https://[::1",
    ],
)
def test_urls_that_are_no_brokers(url: str) -> None:
    with pytest.raises(MisuseError):
        BrokerClient(url)


def test_tls_with_client_certificates(scene: Scene, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    server, device = authority.issue("localhost"), authority.issue("device")
    stranger = Authority(tmp_path / "other").issue("device")
    tls = TlsFiles(certificate=server.certificate, key=server.key, client_ca=authority.certificate)
    with serving(scene.broker, tls=tls) as port:
        url = f"https://localhost:{port}"
        ca = authority.certificate
        good = BrokerClient(url, ca=ca, certificate=device.certificate, key=device.key)
        assert scene.opened(scene.share(good)) == KEYS
        for client in (
            BrokerClient(url, ca=ca),
            BrokerClient(url, ca=ca, certificate=stranger.certificate, key=stranger.key),
            BrokerClient(url, certificate=device.certificate, key=device.key),
            BrokerClient(f"https://127.0.0.1:{port}", ca=ca, certificate=device.certificate, key=device.key),
        ):
            with pytest.raises(DeviceError):
                client.challenge()
    with pytest.raises(MisuseError):
        BrokerClient(url, ca=tmp_path / "none.pem")
    with pytest.raises(MisuseError):
        BrokerClient(url, key=device.key)
    with pytest.raises(MisuseError):
        BrokerClient("http://localhost", ca=ca)
