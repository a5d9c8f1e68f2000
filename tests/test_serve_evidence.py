"""Evidence over HTTP: signed for who asks with a nonce, where the device was told to."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from testbed.artefacts import CLASS, seal_for
from testbed.attesting import Scene
from testbed.serving import device_with, serving
from variegate.attest.client import evidence_from
from variegate.attest.evidence import MAX_EVIDENCE_BYTES, verify
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_of
from variegate.isolation.host import Isolated
from variegate.keys.errors import DeviceError, LimitError, MisuseError, RefusedError
from variegate.keys.seller import Seller
from variegate.serve.server import Service

NONCE = bytes(range(16))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.store.database.close()


def address(service: Service) -> str:
    assert service.address is not None
    return f"http://{service.address[0]}:{service.address[1]}"


def status_of(service: Service, path: str, method: str = "GET") -> int:
    assert service.address is not None
    connection = http.client.HTTPConnection(*service.address, timeout=20)
    connection.request(method, path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_whoever_asks_gets_evidence_for_their_nonce(tmp_path: Path) -> None:
    seller = Seller.generate()
    with Device.create(tmp_path / "car", CLASS, seller.root) as device:
        flash(device, seal_for(device.identity, seller.signer))
        public = device.identity.signing_public
    with Device.open(tmp_path / "car", host=host_of(tmp_path / "car")) as device:
        port = device.boot()
        assert isinstance(port, Isolated)
        with serving(port, evidence=port.evidence) as service:
            token = evidence_from(address(service), NONCE)
            assert verify(token, public).nonce == NONCE
            with pytest.raises(RefusedError):
                verify(token[:-1] + bytes([token[-1] ^ 1]), public)
            out = tmp_path / "car.eat"
            assert main(["device", "attest", address(service), "--nonce", NONCE.hex(), "--out", str(out)]) == 0
            assert verify(out.read_bytes(), public).nonce == NONCE
            for path in ("", "00", "zz" * 16, "00" * 65, "00" * 7, "%30" * 16):
                assert status_of(service, f"/v1/evidence/{path}") == 400, path
            assert status_of(service, f"/v1/evidence/{NONCE.hex()}", "POST") == 405


def test_more_evidence_than_a_device_gives_is_429_and_says_when(tmp_path: Path) -> None:
    with device_with(tmp_path) as device:

        def spent(_: bytes) -> bytes:
            raise LimitError("more evidence is asked for than this device gives", retry_after_s=1.0)

        with serving(device.boot(), evidence=spent) as service:
            with pytest.raises(LimitError) as limited:
                evidence_from(address(service), NONCE)
            assert limited.value.retry_after_s == 1.0
            assert status_of(service, f"/v1/evidence/{NONCE.hex()}") == 429
            assert status_of(service, "/v2/health/ready") == 200


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[str]:
    """The address of a server that gives the same to whoever asks for anything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_what_is_no_evidence_for_the_nonce_is_not_written(
    tmp_path: Path, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "car.eat"
    good = scene.token(NONCE)
    answers = {
        b"": "is not evidence",
        b"#!/bin/sh\n": "is not evidence",
        good + b"\0": "is not evidence",
        good[:-1]: "is not evidence",
        b"\0" * (MAX_EVIDENCE_BYTES + 1): "no evidence",
        scene.token(NONCE[::-1]): "another nonce",
    }
    for body, said in answers.items():
        with answering(body) as url:
            assert main(["device", "attest", url, "--nonce", NONCE.hex(), "--out", str(out)]) != 0
        assert said in capsys.readouterr().err
        assert list(tmp_path.glob("*.eat*")) == []
    with answering(good) as url:
        assert main(["device", "attest", url, "--nonce", NONCE.hex(), "--out", str(out)]) == 0
    assert out.read_bytes() == good


def test_a_device_that_was_not_told_to_gives_none(tmp_path: Path) -> None:
    with device_with(tmp_path) as device, serving(device.boot()) as service:
        assert status_of(service, f"/v1/evidence/{NONCE.hex()}") == 404
        with pytest.raises(DeviceError, match="no evidence"):
            evidence_from(address(service), NONCE)


def test_an_enclave_in_this_process_cannot_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with device_with(tmp_path):
        pass
    (tmp_path / "device" / "policy.toml").write_text('schema = 1\nisolation = "none"\n')
    assert main(["device", "serve", str(tmp_path / "device"), "--port", "0", "--evidence"]) == 2
    assert "only an isolated enclave" in capsys.readouterr().err


def test_evidence_is_asked_for_over_https_or_here(tmp_path: Path) -> None:
    for url in ("http://example.org", "ftp://127.0.0.1", "https://", "http://127.0.0.1:99999"):
        with pytest.raises(MisuseError):
            evidence_from(url, NONCE)
    with pytest.raises(DeviceError, match="cannot be reached"):
        evidence_from("http://127.0.0.1:9", NONCE)
