"""`variegate broker` from a new folder to a device that opens its copy, and copies that are exported for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from testbed import bases
from variegate.attest import evidence as tokens
from variegate.attest.client import BrokerClient
from variegate.attest.evidence import DebugStatus, Ephemeral, Evidence, ProtectionClaim
from variegate.attest.release import request
from variegate.cli.broker import BOOKS, KEY, POLICY, PUB, ROOT
from variegate.cli.main import main
from variegate.export.fleet import Exporter
from variegate.export.fleet_list import FleetLine
from variegate.export.registry import Registry
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation
from variegate.export.sealing import Terms
from variegate.keys import component
from variegate.keys.artefact import Artefact
from variegate.keys.broker import BrokerKey
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC
from variegate.keys.seller import Seller

PASSPHRASE = "only for this test"


class Place:
    """A seller, a device and a broker's folder, as files."""

    def __init__(self, folder: Path, device: DeviceIdentity) -> None:
        self.broker, self.device = folder / "broker", device
        self.folder, self.seller = folder, Seller.load(folder / "seller.key", PASSPHRASE)

    def evidence(self, nonce: bytes, ephemeral: Ephemeral | None = None, **changes: Any) -> bytes:
        values: dict[str, Any] = {
            "nonce": nonce,
            "ueid": self.device.public.ueid,
            "issued_at": int(time.time()),
            "debug": DebugStatus.DISABLED,
            "boot_count": 1,
            "measurements": {"runtime": bytes([1]) * 32},
            "security_counter": 0,
            "root": self.seller.root.fingerprint,
            "protections": (ProtectionClaim("isolation", "on", ""),),
            "ephemeral": ephemeral,
            **changes,
        }
        return tokens.issue(Evidence(**values), self.device.sign, self.device.public.signing_public)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeviceIdentity]:
    """A seller's key, a device's identity and a broker, made once: each key file takes half a second."""
    folder = tmp_path_factory.mktemp("template") / "place"
    folder.mkdir()
    device = DeviceIdentity.generate("camera-v1", KEM_CLASSIC)
    (folder / "car.json").write_text(device.public.to_json())
    (folder / "passphrase").write_text(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    Seller.generate().save(folder / "seller.key", PASSPHRASE)
    options = ["--passphrase-file", str(folder / "passphrase")]
    root = str(folder / "seller.root")
    assert main(["keys", "root", str(folder / "seller.key"), "--out", root, *options]) == 0
    assert main(["broker", "new", str(folder / "broker"), "--root", root, "--kem", KEM_CLASSIC, *options]) == 0
    release = make_release("spring", bases.base(folder), Permutation(), bases.images(64))
    release.save(folder / "release")
    return folder, device


@pytest.fixture
def place(template: tuple[Path, DeviceIdentity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = shutil.copytree(template[0], tmp_path / "place")
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", str(folder / "passphrase"))
    monkeypatch.chdir(folder)
    return Place(folder, template[1])


def said(capsys: pytest.CaptureFixture[str], *command: str, status: int = 0) -> Any:
    capsys.readouterr()
    assert main([*command, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_seller_appraises_a_device(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in place.broker.iterdir()} == {KEY, PUB, ROOT, BOOKS}
    assert place.broker.stat().st_mode & 0o077 == 0
    Path("t.eat").write_bytes(place.evidence(bytes(8)))
    assert main(["broker", "appraise", "broker", "t.eat"]) == 2
    assert main(["broker", "policy", "broker", "t.eat", "--device", "car.json"]) == 0
    assert main(["broker", "policy", "broker", "t.eat", "--device", "car.json"]) == 2
    assert "isolation" in (place.broker / POLICY).read_text()
    assert main(["broker", "allow", "broker", "--buyer", "acme", "--device", "car.json"]) == 0

    nonce = bytes.fromhex(said(capsys, "broker", "challenge", "broker")["nonce"])
    Path("t.eat").write_bytes(place.evidence(nonce))
    found = said(capsys, "broker", "appraise", "broker", "t.eat")
    assert (found["good"], found["tier"]) == (True, "warning")
    found = said(capsys, "broker", "appraise", "broker", "t.eat", status=1)
    assert [check["name"] for check in found["checks"] if not check["passed"]] == ["nonce"]
    assert main(["broker", "appraise", "broker", "t.eat"]) == 1
    assert "FAILED  nonce" in capsys.readouterr().out

    Path("t.eat").write_bytes(place.evidence(bytes(8), measurements={"runtime": bytes([2]) * 32}))
    assert main(["broker", "policy", "broker", "t.eat", "--device", "car.json", "--add"]) == 0
    for value in (1, 2):
        nonce = bytes.fromhex(said(capsys, "broker", "challenge", "broker")["nonce"])
        Path("t.eat").write_bytes(place.evidence(nonce, measurements={"runtime": bytes([value]) * 32}))
        assert main(["broker", "appraise", "broker", "t.eat"]) == 0

    other = DeviceIdentity.generate("camera-v1", KEM_CLASSIC)
    Path("other.json").write_text(other.public.to_json())
    assert main(["broker", "policy", "broker", "t.eat", "--device", "other.json", "--add"]) == 1


def test_the_books(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "broker", "list", "broker") == []
    allow = ["broker", "allow", "broker", "--device", "car.json", "--buyer"]
    assert main([*allow, "acme"]) == 0
    assert main([*allow, "early", "--until", "2020-01-01T00:00:00+00:00"]) == 0
    assert main([*allow, "naive", "--until", "2020-01-01"]) == 2
    states = {row["buyer"]: row["state"] for row in said(capsys, "broker", "list", "broker")}
    assert states == {"acme": "allowed", "early": "ended"}
    ueid = place.device.public.ueid.hex()
    assert main(["keys", "revoke", "seller.key", "--revoked", "gone", "--ueid", ueid]) == 0
    assert main(["broker", "revoked", "broker", "gone"]) == 0
    assert said(capsys, "broker", "list", "broker")[0]["state"] == "revoked"
    assert main(["broker", "deny", "broker", "--buyer", "acme", "--ueid", ueid]) == 0
    assert main(["broker", "deny", "broker", "--buyer", "acme"]) == 2
    assert main(["broker", "deny", "broker", "--buyer", "acme", "--ueid", "zz"]) == 2
    events = [entry["event"] for entry in said(capsys, "broker", "log", "broker")]
    assert events == ["allowed", "allowed", "revoked", "denied", "denied"]
    assert len(said(capsys, "broker", "log", "broker", "--after", "3")) == 2
    assert main(["broker", "log", "broker"]) == 0
    assert main(["broker", "list", "nowhere"]) == 2
    assert main(["broker", "new", "broker", "--root", "seller.root"]) == 2
    assert main(["keys", "show", "broker/broker.key"]) == 0
    assert "broker key" in capsys.readouterr().out


@pytest.mark.parametrize("after", ["99999999999999999999", "9223372036854775808", "9" * 5000, "-1", "x", "", "٣"])
def test_a_line_that_no_log_has(place: Place, capsys: pytest.CaptureFixture[str], after: str) -> None:
    assert main(["broker", "log", "broker", f"--after={after}"]) == 2
    assert "give the number of a line" in capsys.readouterr().err
    assert said(capsys, "broker", "log", "broker", "--after", "9223372036854775807") == []


@pytest.mark.parametrize("words", [["broker", "challenge", "broker"], ["--help"], None])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_written_is_told(place: Place, words: list[str] | None, unbuffered: str) -> None:
    command = [sys.executable, "-m", "variegate.cli.main", *(words or [])]
    if words is None:  # more than the buffer holds
        code = "import sys; from variegate.cli import main; main._run = lambda _: print('x' * 99999) or 0; "
        command = [sys.executable, "-c", f"{code}sys.exit(main.main())"]
    elif words == ["--help"] and unbuffered:
        return  # argparse keeps this error to itself
    with Path("/dev/full").open("w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    told = "variegate: cannot write the result: no space left on device\nhint: see where stdout goes\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_command_without_stdout_does_its_work(place: Place) -> None:
    command = ["sh", "-c", 'exec "$0" -m variegate.cli.main broker list broker >&-', sys.executable]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broker_that_cannot_be_made_leaves_nothing(place: Place) -> None:
    Path("seller.root").write_bytes(b"short")
    assert main(["broker", "new", "second", "--root", "seller.root"]) == 1
    assert main(["broker", "new", "no/folder", "--root", "broker/seller.root"]) == 2
    assert not Path("second").exists()


def test_export_seals_for_a_broker_that_serves_and_the_device_opens(place: Place) -> None:
    command = ["export", "copy", "release", "--seller", "seller.key", "--buyer", "acme", "--device", "car.json"]
    assert main([*command, "--out", "copies", "--broker", "broker/broker.pub"]) == 0
    assert main([*command, "--out", "bad", "--broker", "seller.root"]) == 1
    (path,) = Path("copies").glob("*.vgc")
    artefact = Artefact.from_bytes(path.read_bytes())
    opened = open_envelope(artefact.envelope, place.seller.root)
    with pytest.raises(RefusedError) as caught:
        opened.unseal(place.device.unwrap)
    assert caught.value.refusal is Refusal.SEALED

    Path("t.eat").write_bytes(place.evidence(bytes(8)))
    assert main(["broker", "policy", "broker", "t.eat", "--device", "car.json"]) == 0
    assert main(["broker", "allow", "broker", "--buyer", "acme", "--device", "car.json"]) == 0
    serve = [sys.executable, "-m", "variegate.cli.main", "broker", "serve", "broker", "--port", "0"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        try:
            url = process.stderr.readline().split()[-1]
            share = request(
                artefact.envelope,
                lambda nonce, ephemeral: place.evidence(nonce, ephemeral, model=opened.digest),
                BrokerClient(url),
            )
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    keys = opened.unseal(place.device.unwrap, share)
    assert keys.seed == place.seller.buyer_seed("acme", 0)
    layout = component.check(artefact.component, opened.manifest.component)
    assert component.unseal(artefact.component, layout, keys.cek)


def test_a_fleet_is_sealed_again_when_its_broker_changes(place: Place) -> None:
    wanted = [FleetLine(buyer="acme", device=place.device.public, epoch=0, security_counter=0)]
    brokers = [BrokerKey.generate(KEM_CLASSIC).public for _ in range(2)]
    made = []
    with Registry(place.folder / "r.sqlite") as registry:
        for broker in (None, brokers[0], brokers[0], brokers[1], None):
            terms = Terms(vendor="Example", broker=broker)
            exporter = Exporter(place.folder / "release", place.seller, terms, place.folder / "copies")
            made.append(exporter.fleet(wanted, registry).made)
    assert made == [1, 1, 0, 1, 1]


def test_serve_refuses_what_it_cannot_do(place: Place) -> None:
    serve = ["broker", "serve", "broker"]
    assert main(serve) == 2  # no policy yet
    Path("t.eat").write_bytes(place.evidence(bytes(8)))
    assert main(["broker", "policy", "broker", "t.eat", "--device", "car.json"]) == 0
    for options in (["--certificate", "car.json"], ["--client-ca", "car.json"], ["--port", "99999999"]):
        assert main([*serve, *options]) == 2
    assert main([*serve, "--certificate", "car.json", "--key", "seller.key"]) == 2
    (place.broker / POLICY).write_text("schema = 1\nallow = true\n")
    assert main(serve) == 1
