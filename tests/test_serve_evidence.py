"""Evidence over HTTP: signed for who asks with a nonce, where the device was told to."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from tests.support.artefacts import CLASS, seal_for
from tests.support.serving import device_with, serving
from variegate.attest.client import evidence_from
from variegate.attest.evidence import verify
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_of
from variegate.isolation.host import Isolated
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.seller import Seller
from variegate.serve.server import Service

NONCE = bytes(range(16))


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
