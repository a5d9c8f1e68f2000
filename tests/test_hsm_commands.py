"""The commands over a real SoftHSM2, and what they say when it is absent, refuses, or is pulled out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed import bases
from tests.support import softhsm
from tests.support.softhsm import PIN, SoftHsm, parsed, uri
from variegate.keys.envelope import open_envelope

softhsm.need()


from variegate.device_sim.device import Device  # noqa: E402
from variegate.device_sim.flash import flash  # noqa: E402
from variegate.export.fleet import Exporter  # noqa: E402
from variegate.export.fleet_list import Wanted  # noqa: E402
from variegate.export.registry import Registry  # noqa: E402
from variegate.export.release import Release, make_release  # noqa: E402
from variegate.export.rewriters import Permutation  # noqa: E402
from variegate.export.sealing import Terms  # noqa: E402
from variegate.keys.artefact import Artefact  # noqa: E402
from variegate.keys.errors import MisuseError  # noqa: E402
from variegate.keys.hsm import HsmSeller  # noqa: E402
from variegate.keys.identity import DeviceIdentity  # noqa: E402
from variegate.keys.primitives import KEM_CLASSIC  # noqa: E402
from variegate.keys.rotation import Revocations, follow  # noqa: E402
from variegate.keys.seller import Seller  # noqa: E402
from variegate.keys.signing import SellerRoot  # noqa: E402

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """Tokens "seller", "other" and two called "twin", here and in children."""
    with softhsm.installed(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    made = make_release("spring", bases.base(folder), Permutation(), bases.images(300))
    made.save(folder / "spring")
    return folder / "spring"


def run(hsm: SoftHsm, folder: Path, *arguments: str, pin: str | None = PIN) -> subprocess.CompletedProcess[str]:
    """The command, with the PIN in a file that the environment names."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VARIEGATE_")}
    if pin is not None:
        (folder / "pin").write_text(pin + "\n")
        (folder / "pin").chmod(0o600)
        clean["VARIEGATE_PIN_FILE"] = "pin"
    done = subprocess.run(
        [sys.executable, "-m", "variegate.cli.main", *arguments],
        cwd=folder,
        env={**clean, **hsm.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert pin is None or pin not in done.stdout + done.stderr
    return done


def script(hsm: SoftHsm, code: str) -> str:
    """Runs code in a process of its own, with a module that nothing else has loaded; what it prints."""
    head = "from variegate.keys.hsm import HsmSeller\nfrom variegate.keys.pkcs11_uri import Pkcs11Uri\n"
    head += "from variegate.keys.errors import VariegateError\nfrom tests.support.softhsm import *\n"
    head += "def parsed(label, **how):\n    return Pkcs11Uri.parse(uri(label, **how))\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **hsm.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_token_to_a_label(hsm: SoftHsm, release: Path, tmp_path: Path) -> None:
    """The command lines of the README: keys in the HSM, root, device, copy, flash, boot, classify, rotate, revoke."""
    key, following = uri("acme"), uri("acme-2")
    pin = tmp_path / "seller.pin"
    pin.write_text(PIN)
    pin.chmod(0o600)
    made = run(hsm, tmp_path, "keys", "generate", "seller", "--out", f"{key}&pin-source=file:{pin}", pin=None)
    assert made.returncode == 0, made.stderr
    done = run(hsm, tmp_path, "keys", "root", key, "--out", "seller.root")
    assert done.returncode == 0, done.stderr
    root = SellerRoot.from_bytes((tmp_path / "seller.root").read_bytes())
    assert root.fingerprint.hex() in made.stderr
    shown = json.loads(run(hsm, tmp_path, "keys", "show", key, "--json").stdout)
    assert shown["fingerprint"] == root.fingerprint.hex()
    assert shown["serial"] == 0
    assert any("ML-DSA-65" in line and "in software" in line for line in shown["protection"])
    with Device.create(tmp_path / "camera", "camera-v1", root) as device:
        (tmp_path / "camera.json").write_text(device.identity.to_json())
        sealing = ("export", "copy", str(release), "--seller", key, "--buyer", "acme", "--device", "camera.json")
        sealed = run(hsm, tmp_path, *sealing, "--out", "copies", "--registry", "registry.sqlite")
        assert sealed.returncode == 0, sealed.stderr
        (copy,) = (tmp_path / "copies").iterdir()
        flash(device, Artefact.from_bytes(copy.read_bytes()))
        frames = bases.images(4, seed=5)
        labels = device.boot().classify_batch(frames)
        seed = HsmSeller.open(parsed("acme"), PIN).buyer_seed("acme", 0)
        assert np.array_equal(labels, answers(Release.load(release), seed, frames))
    ueid = device.identity.ueid
    listed = run(hsm, tmp_path, "keys", "revoke", key, "--revoked", "revoked.list", "--ueid", ueid.hex())
    assert listed.returncode == 0, listed.stderr
    refused = run(hsm, tmp_path, *sealing, "--out", "more", "--revoked", "revoked.list")
    assert refused.returncode == 1
    assert "revoked" in refused.stderr
    turned = run(
        hsm, tmp_path, *("keys", "rotate", key, "--out", following, "--statement", "to2", "--revoked", "revoked.list")
    )
    assert turned.returncode == 0, turned.stderr
    pinned = follow(root, 0, (tmp_path / "to2").read_bytes())
    assert Revocations.verify((tmp_path / "revoked.list").read_bytes(), pinned.root, 2).contains(ueid)
    signed = run(hsm, tmp_path, *sealing, "--signer", following, "--out", "next", "--registry", "next.sqlite")
    assert signed.returncode == 0, signed.stderr
    (copy,) = (tmp_path / "next").iterdir()
    open_envelope(Artefact.from_bytes(copy.read_bytes()).envelope, pinned.root)


def answers(release: Release, seed: bytes, frames: Any) -> Any:
    """What the copy with this seed must answer, by the exporter's own session."""
    from variegate.export.fuse import IMAGE, LABEL  # noqa: PLC0415
    from variegate.export.intake.probe import session as onnx  # noqa: PLC0415

    template = release.template
    return onnx(template.graph, template.values(seed)).run([LABEL], {IMAGE: frames})[0]


def test_a_key_file_is_imported_and_stays(hsm: SoftHsm, tmp_path: Path) -> None:
    known = Seller.generate()
    known.save(tmp_path / "seller.key", "passphrase")
    (tmp_path / "pass").write_text("passphrase")
    (tmp_path / "pass").chmod(0o600)
    done = run(hsm, tmp_path, "keys", "import", "seller.key", "--out", uri("imported"), "--passphrase-file", "pass")
    assert done.returncode == 0, done.stderr
    assert known.root.fingerprint.hex() in done.stderr
    held = HsmSeller.open(parsed("imported"), PIN)
    assert held.root == known.root
    assert held.buyer_seed("acme", 1) == known.buyer_seed("acme", 1)
    assert Seller.load(tmp_path / "seller.key", "passphrase").root == known.root
    again = run(hsm, tmp_path, "keys", "import", "seller.key", "--out", uri("imported"), "--passphrase-file", "pass")
    assert again.returncode == 2
    assert "already" in again.stderr
    to_file = run(hsm, tmp_path, "keys", "import", "seller.key", "--out", "b.key", "--passphrase-file", "pass")
    assert to_file.returncode == 2
    assert not (tmp_path / "b.key").exists()


def test_a_failed_rotation_takes_the_new_keys_back(hsm: SoftHsm, tmp_path: Path) -> None:
    HsmSeller.create(parsed("stays"), PIN)
    (tmp_path / "taken").write_text("")
    done = run(hsm, tmp_path, "keys", "rotate", uri("stays"), "--out", uri("never"), "--statement", "taken")
    assert done.returncode == 2
    assert "taken is there already" in done.stderr
    with pytest.raises(MisuseError, match="no object never"):
        HsmSeller.open(parsed("never"), PIN)
    HsmSeller.open(parsed("stays"), PIN)


def test_a_wrong_pin_is_tried_once(tmp_path: Path) -> None:
    """SoftHSM does not count, so the calls are counted where they reach it."""
    alone = SoftHsm.create(tmp_path)
    alone.new_token("seller")
    said = script(
        alone,
        """
        import pkcs11
        from variegate.keys import hsm_token
        made = HsmSeller.create(parsed("acme"), PIN)
        made.close()
        logins = []
        find = hsm_token._find
        class Counted:
            def __init__(self, token): self._token = token
            def __getattr__(self, name): return getattr(self._token, name)
            def open(self, **how):
                logins.append("user_pin" in how)
                return self._token.open(**how)
        hsm_token._find = lambda where: Counted(find(where))
        for pin in ("0000", PIN):
            try:
                print(HsmSeller.open(parsed("acme"), pin).root == made.root)
            except VariegateError as error:
                print(type(error).__name__, error.refusal, error.message, "0000" in repr(error.__cause__))
        print(logins)
        """,
    )
    assert said.splitlines() == ["RefusedError key token seller refuses the PIN False", "True", "[True, True]"]
    wrong = run(alone, tmp_path, "keys", "show", uri("acme"), pin="wrong-pin")
    assert wrong.returncode == 1
    assert "refuses the PIN" in wrong.stderr
    none = run(alone, tmp_path, "keys", "show", uri("acme"), pin=None)
    assert none.returncode == 2
    assert "no PIN, and no terminal" in none.stderr


def test_a_token_pulled_out_in_the_middle(tmp_path: Path) -> None:
    alone = SoftHsm.create(tmp_path)
    alone.new_token("seller")
    said = script(
        alone,
        f"""
        made = HsmSeller.create(parsed("acme"), PIN)
        made.buyer_seed("acme", 0)
        SoftHsm({str(tmp_path)!r} and __import__("pathlib").Path({str(tmp_path)!r})).remove()
        for call in (lambda: made.buyer_seed("acme", 0), lambda: made.signer.ed25519(b""),
                     lambda: made.signer.mldsa65(b"")):
            try:
                call()
            except VariegateError as error:
                print(type(error).__name__, error.message)
        """,
    )
    assert [line.partition(" and")[0] for line in said.splitlines()] == ["DeviceError the HSM was lost"] * 3


def test_a_token_that_lacks_a_mechanism(tmp_path: Path) -> None:
    alone = SoftHsm.create(tmp_path, mechanisms="CKM_EDDSA,CKM_SHA256_HMAC")
    alone.new_token("seller")
    done = run(alone, tmp_path, "keys", "generate", "seller", "--out", uri("acme"))
    assert done.returncode == 1
    assert "cannot do AES-GCM" in done.stderr


@pytest.mark.parametrize(
    ("module", "status", "says"), [("/no/such.so", 2, "no PKCS#11 module"), ("text", 1, "does not")]
)
def test_a_module_that_is_none(hsm: SoftHsm, tmp_path: Path, module: str, status: int, says: str) -> None:
    (tmp_path / "text").write_text("no library")
    where = module if module.startswith("/") else str(tmp_path / module)
    done = run(hsm, tmp_path, "keys", "show", f"pkcs11:token=seller;object=acme?module-path={where}")
    assert done.returncode == status
    assert says in done.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from variegate.cli.main import main\n"
        f"sys.exit(main(['keys', 'show', {uri('acme')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs python-pkcs11" in done.stderr
    assert 'pip install "variegate[hsm]"' in done.stderr


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two copies are enough for two workers."""
    monkeypatch.setattr("variegate.export.fleet.BATCH", 1)


@pytest.mark.usefixtures("small_batches")
def test_workers_open_the_token_themselves(hsm: SoftHsm, release: Path, tmp_path: Path) -> None:
    seller = HsmSeller.create(parsed("fleet"), PIN)
    exporter = Exporter(release, seller, Terms(vendor="Example"), tmp_path / "copies", "europe")
    devices = [DeviceIdentity.generate("camera-v1", KEM_CLASSIC) for _ in range(3)]
    fleet = [Wanted(buyer=f"buyer {i}", device=device.public) for i, device in enumerate(devices)]
    with Registry(tmp_path / "registry.sqlite") as registry:
        assert exporter.fleet(fleet, registry, jobs=2).made == len(fleet)
        rows = list(registry.rows())
    by_ueid = {device.public.ueid.hex(): device for device in devices}
    for row in (rows[0], rows[-1]):
        keys = open_envelope((tmp_path / "copies" / row.file).read_bytes(), seller.root)
        assert keys.unseal(by_ueid[row.ueid].unwrap).seed == seller.buyer_seed(row.buyer, 0)


@pytest.mark.usefixtures("small_batches")
def test_a_worker_whose_token_is_gone_says_so(hsm: SoftHsm, release: Path, tmp_path: Path) -> None:
    seller = HsmSeller.create(parsed("gone"), PIN)
    exporter = Exporter(release, seller, Terms(vendor="Example"), tmp_path / "copies", "europe")
    assert exporter.shared is not None
    seller.destroy()
    fleet = [Wanted(buyer=f"{i}", device=DeviceIdentity.generate("camera-v1", KEM_CLASSIC).public) for i in range(3)]
    with Registry(tmp_path / "registry.sqlite") as registry:
        with pytest.raises(MisuseError, match="no object gone"):
            exporter.fleet(fleet, registry, jobs=2)
        assert list(registry.rows()) == []
