"""TLS, client certificates, and who then counts as one peer."""

from __future__ import annotations

import datetime
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
import tritonclient.http as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from testbed.artefacts import frames
from testbed.devices import workplace
from testbed.serving import INFER, Faulty, device_with, infer_json, serving, until, waiting
from variegate.keys.errors import MisuseError
from variegate.runtime.enclave import ProtectionState
from variegate.runtime.port import LabelPort
from variegate.serve.limits import ServeLimits
from variegate.serve.server import ServeOptions
from variegate.serve.tls import TlsFiles


@dataclass(frozen=True)
class Authority:
    """Signs certificates into files of a folder."""

    folder: Path
    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, name, key, authority=True)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, name, key, certificate)

    @property
    def pem(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self.name, self.key, authority=False)
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


@pytest.fixture(scope="module")
def port(place: Path) -> Iterator[LabelPort]:
    with device_with(place) as device:
        yield device.boot()


@pytest.fixture(scope="module")
def ours(place: Path) -> Authority:
    return Authority.make(place, "ours")


@pytest.fixture(scope="module")
def files(ours: Authority) -> TlsFiles:
    certificate, key = ours.issue("server")
    return TlsFiles(certificate=certificate, key=key)


def context(authority: Authority, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=authority.pem)
    if client is not None:
        found.load_cert_chain(*client)
    return found


def ask(address: tuple[str, int], trust: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection(*address, timeout=10, context=trust)
    try:
        connection.request("POST", INFER, infer_json(frames(1)))
        return connection.getresponse().status
    finally:
        connection.close()


def test_tritonclient_over_tls(port: LabelPort, files: TlsFiles, ours: Authority) -> None:
    with serving(port, tls=files) as service:
        assert service.address is not None
        url = f"{service.address[0]}:{service.address[1]}"
        with triton.InferenceServerClient(url, ssl=True, ssl_context_factory=lambda: context(ours)) as client:
            wanted = triton.InferInput("image", [5, 3, 4, 4], "UINT8")
            wanted.set_data_from_numpy(frames(5))
            assert client.infer("copy", [wanted]).as_numpy("label").tolist() == port.classify_batch(frames(5)).tolist()
        with pytest.raises(OSError):  # noqa: PT011 - reset, or nothing
            _plain(service.address)


def _plain(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not sock.recv(100).startswith(b"HTTP"):
            raise ConnectionResetError


def test_only_clients_of_the_authority_get_in(port: LabelPort, files: TlsFiles, ours: Authority, place: Path) -> None:
    theirs = Authority.make(place, "theirs")
    mutual = TlsFiles(certificate=files.certificate, key=files.key, client_ca=ours.pem, minimum="1.3")
    with serving(port, tls=mutual) as service:
        assert service.address is not None
        assert ask(service.address, context(ours, ours.issue("client"))) == 200
        for who in (None, theirs.issue("stranger")):
            with pytest.raises(OSError):  # noqa: PT011 - as the version of TLS has it
                ask(service.address, context(ours, who))
        old = context(ours, ours.issue("old"))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            ask(service.address, old)


def test_one_certificate_cannot_starve_another(port: LabelPort, files: TlsFiles, ours: Authority) -> None:
    slow = Faulty(port)
    mutual = TlsFiles(certificate=files.certificate, key=files.key, client_ca=ours.pem)
    with serving(slow, tls=mutual, limits=ServeLimits(max_queue=9, max_peer_queue=2), metrics_port=0) as service:
        assert service.address is not None
        address = service.address
        greedy, modest = ours.issue("greedy"), ours.issue("modest")
        slow.hang.clear()
        found: list[tuple[str, int]] = []

        def run(name: str, who: tuple[Path, Path]) -> None:
            found.append((name, ask(address, context(ours, who))))

        threads = [threading.Thread(target=run, args=("greedy", greedy)) for _ in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: len(found) == 3)
        last = threading.Thread(target=run, args=("modest", modest))
        last.start()
        until(lambda: waiting(service) == 3)
        slow.hang.set()
        for thread in (*threads, last):
            thread.join()
    assert found.count(("greedy", 200)) == 3
    assert found.count(("greedy", 503)) == 3
    assert ("modest", 200) in found


def test_handshakes_that_go_on_are_ended(port: LabelPort, files: TlsFiles, ours: Authority) -> None:
    limits = ServeLimits(handshake_s=0.5, max_connections=3, max_peer_connections=3)
    with serving(port, tls=files, limits=limits) as service:
        assert service.address is not None
        address = service.address
        held = [socket.create_connection(address, timeout=10) for _ in range(3)]
        began = time.monotonic()
        for sock in held:
            assert sock.recv(100) == b""
            sock.close()
        assert 0.2 < time.monotonic() - began < 4
        time.sleep(0.2)
        assert ask(address, context(ours)) == 200


def test_files_that_cannot_be_used(files: TlsFiles, place: Path, ours: Authority) -> None:
    other, _ = ours.issue("other")
    opened = place / "open.key"
    opened.write_bytes(files.key.read_bytes())
    opened.chmod(0o644)
    locked = place / "locked.key"
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    locked.touch(mode=0o600)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    wrong = [
        TlsFiles(certificate=place / "none", key=files.key),
        TlsFiles(certificate=files.certificate, key=place / "none"),
        TlsFiles(certificate=other, key=files.key),
        TlsFiles(certificate=files.key, key=files.key),
        TlsFiles(certificate=files.certificate, key=locked),
        TlsFiles(certificate=files.certificate, key=files.key, client_ca=files.key),
        TlsFiles(certificate=files.certificate, key=files.key, minimum="1.0"),
    ]
    for one in wrong:
        with pytest.raises(MisuseError):
            one.context()
    with pytest.raises(MisuseError, match="others can reach"):
        TlsFiles(certificate=files.certificate, key=opened).context()


def test_says_what_is_on(files: TlsFiles) -> None:
    def states(options: ServeOptions) -> dict[str, ProtectionState]:
        return {one.name: one.state for one in options.protections()}

    on, off, never = ProtectionState.ON, ProtectionState.OFF, ProtectionState.UNAVAILABLE
    mutual = TlsFiles(certificate=files.certificate, key=files.key, client_ca=files.certificate)
    assert states(ServeOptions()) == {"tls": off, "client certificates": never, "client limits": on}
    assert states(ServeOptions(tls=files)) == {"tls": on, "client certificates": off, "client limits": on}
    assert states(ServeOptions(tls=mutual)) == {"tls": on, "client certificates": on, "client limits": on}
