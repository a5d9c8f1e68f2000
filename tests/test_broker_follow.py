"""A broker follows the seller's next root: what stays good, and what does not."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from testbed.attesting import KEYS, Scene
from testbed.devices import workplace
from variegate.attest import evidence
from variegate.attest.broker import Broker
from variegate.attest.broker_store import BrokerStore
from variegate.attest.policy import AppraisalPolicy
from variegate.cli.broker import BOOKS, POLICY, ROOT
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_of
from variegate.isolation.host import Isolated
from variegate.keys.artefact import Artefact
from variegate.keys.broker import BrokerKey
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, open_envelope, seal_batch
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.rotation import Revocations, hand_over
from variegate.keys.seller import Seller

PASSPHRASE = "only for this test"
BUYER = "buyer-1"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.store.database.close()


class Cars:
    """A broker, and devices that open copies with it, isolated."""

    def __init__(self, folder: Path) -> None:
        self.old, self.folder, self.key = MemorySigner(), folder, BrokerKey.generate()
        self.store = BrokerStore(folder / "books.sqlite", time.time, create=True)
        self.sequence = 1

    def device(self, name: str) -> Device:
        return Device.open(self.folder / name, host=host_of(self.folder / name))

    def make(self, name: str) -> None:
        with Device.create(self.folder / name, CLASS, self.old.root) as device:
            flash(device, seal_for(device.identity, self.old))
            self.store.allow(BUYER, device.identity)
        with self.device(name) as device:
            port = device.boot()
            assert isinstance(port, Isolated)
            good = evidence.verify(port.evidence(os.urandom(32)), device.identity.signing_public)
        self.broker = Broker(self.key, self.old.root, self.store, AppraisalPolicy.of(good), time.time)

    def sealed(self, name: str, signer: MemorySigner) -> Artefact:
        with self.device(name) as device:
            public = device.identity
        self.sequence += 1
        payload, keys = tiny_payload(), SealedKeys(os.urandom(32), os.urandom(32))
        plain = seal_for(public, signer, payload=payload, keys=keys, sequence=self.sequence)
        manifest, split = self.key.public.split(open_envelope(plain.envelope, signer.root).manifest, keys)
        return replace(
            plain, envelope=seal_batch([EnvelopeDraft(manifest, split, public.kem, public.kem_public)], signer)[0]
        )

    def boot(self, name: str, artefact: Artefact | None = None) -> int:
        with self.device(name) as device:
            device.broker = self.broker
            if artefact is not None:
                flash(device, artefact)
            return device.boot().classify(frames(1)[0])


@pytest.fixture
def cars() -> Iterator[Cars]:
    with workplace() as folder:
        made = Cars(folder)
        yield made
        made.store.database.close()


def test_devices_go_on_before_and_after_they_follow(cars: Cars) -> None:
    new = MemorySigner()
    cars.make("late")
    cars.make("car")
    label = cars.boot("car", cars.sealed("car", cars.old))
    statement = hand_over(cars.old, 1, new.root)
    # In the broker that runs, from now on.
    assert cars.store.follow(statement, cars.old.root) == new.root
    assert cars.boot("car") == label
    with cars.device("car") as device:
        device.follow(statement)
    assert cars.boot("car") == label  # the confirmed copy, held against the root before
    with pytest.raises(RefusedError):
        cars.boot("late", cars.sealed("late", cars.old))  # never opened before
    assert "earlier root" in list(cars.store.log())[-1].detail
    label = cars.boot("car", cars.sealed("car", new))
    assert cars.boot("car") == label
    with cars.device("late") as device:
        device.follow(statement)
    cars.boot("late", cars.sealed("late", new))


def test_only_the_copy_that_was_opened_stays_good(scene: Scene) -> None:
    old, new = scene.signer, MemorySigner()
    broker = scene.broker
    assert scene.opened(scene.share(broker)) == KEYS
    unopened = scene.seal(sequence=9)
    scene.store.follow(hand_over(old, 1, new.root), old.root)
    assert scene.opened(scene.share(broker)) == KEYS
    model = open_envelope(unopened, old.root).digest
    with pytest.raises(RefusedError):
        scene.share(broker, unopened, model=model)
    assert scene.last_reason().startswith("refused: rolled-back: copy is under an earlier root")
    # Evidence of a device that pins another root than the one the copy is under.
    for pinned in (new.root, MemorySigner().root):
        with pytest.raises(RefusedError):
            scene.share(broker, root=pinned.fingerprint)
        assert "device pins another root" in scene.last_reason()
    # Through a second rotation, and not when the buyer is denied.
    third = MemorySigner()
    scene.store.follow(hand_over(new, 2, third.root), old.root)
    assert scene.opened(scene.share(broker)) == KEYS
    before, scene.signer = scene.envelope, third
    scene.envelope = scene.seal(sequence=10)
    assert scene.opened(scene.share(broker)) == KEYS
    scene.envelope, scene.signer = before, old
    assert scene.opened(scene.share(broker)) == KEYS
    scene.store.deny("test-buyer")
    with pytest.raises(RefusedError):
        scene.share(broker)


def test_a_policy_that_names_the_root_takes_those_that_follow(scene: Scene) -> None:
    old, new, stranger = scene.signer, MemorySigner(), MemorySigner()
    measured = dict(scene.evidence(bytes(8)).measurements)

    def asked(root: bytes) -> str:
        with pytest.raises(RefusedError):
            scene.share(broker, measurements={**measured, "root": root}, model=bytes(32))
        return scene.last_reason()

    scene.policy = AppraisalPolicy.of(scene.evidence(bytes(8), measurements={**measured, "root": old.root.fingerprint}))
    broker = scene.broker
    assert "measurement root" in asked(new.root.fingerprint)
    scene.store.follow(hand_over(old, 1, new.root), old.root)
    assert "another copy" in asked(old.root.fingerprint)
    assert "measurement root" not in asked(new.root.fingerprint)
    assert "measurement root" in asked(stranger.root.fingerprint)
    scene.policy = AppraisalPolicy.of(
        scene.evidence(bytes(8), measurements={**measured, "root": stranger.root.fingerprint})
    )
    broker = scene.broker
    assert "measurement root" in asked(new.root.fingerprint)


def test_what_does_not_follow_is_refused_and_changes_nothing(scene: Scene) -> None:
    old, new = scene.signer, MemorySigner()
    statement = hand_over(old, 3, new.root)
    for wrong in (b"", b"\x80", hand_over(new, 3, new.root), hand_over(old, 3, new.root)[:-1]):
        with pytest.raises(RefusedError):
            scene.store.follow(wrong, old.root)
    assert scene.store.roots(old.root) == (old.root,)
    assert scene.store.follow(statement, old.root) == new.root
    for wrong in (statement, hand_over(new, 3, old.root), hand_over(old, 9, old.root)):
        with pytest.raises(RefusedError):
            scene.store.follow(wrong, old.root)
    assert scene.store.roots(old.root) == (old.root, new.root)
    with pytest.raises(RefusedError, match="do not follow from this root"):
        scene.store.roots(new.root)
    assert [entry.event for entry in scene.store.log()] == ["allowed", "followed"]


def test_of_two_that_follow_at_once_one_does(scene: Scene) -> None:
    old = scene.signer
    statements = [hand_over(old, 1, MemorySigner().root) for _ in range(4)]

    def attempt(statement: bytes) -> bool:
        try:
            scene.store.follow(statement, old.root)
        except RefusedError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, statements)) == [False, False, False, True]
    assert len(scene.store.roots(old.root)) == 2


def test_of_two_lists_at_once_the_older_is_told(scene: Scene, tmp_path: Path) -> None:
    """A second process takes a newer list between what a first one read and what it writes."""
    lists = [Revocations(serial, frozenset([bytes([1]) + bytes(32)])).sign(scene.signer) for serial in (3, 4)]
    with BrokerStore(tmp_path / "books.sqlite", scene.clock) as other:
        verify = Revocations.verify

        def late(data: bytes, root: object, least: int) -> Revocations:
            found = verify(data, scene.signer.root, least)
            if found.serial == 3:
                other.revoke(lists[1], scene.signer.root)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Revocations, "verify", staticmethod(late))
            with pytest.raises(RefusedError) as refused:
                scene.store.revoke(lists[0], scene.signer.root)
    assert refused.value.refusal is Refusal.ROLLED_BACK
    assert scene.store.revocations().serial == 4


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pass").write_text(PASSPHRASE)
    Path("pass").chmod(0o600)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", "pass")
    Seller.generate().save(Path("seller.key"), PASSPHRASE)
    ueids = [bytes([1]).hex() + f"{i:064x}" for i in range(2)]
    rotate = ["keys", "rotate", "seller.key", "--out", "n.key", "--statement", "to2", "--revoked", "r.list"]
    for command in (
        ["keys", "root", "seller.key", "--out", "seller.root"],
        ["keys", "revoke", "seller.key", "--revoked", "r.list", "--ueid", ueids[0]],
        ["broker", "new", "broker", "--root", "seller.root"],
        ["broker", "revoked", "broker", "r.list"],
    ):
        assert main(command) == 0
    Path("old.list").write_bytes(Path("r.list").read_bytes())
    Path("broker", POLICY).write_text("as it is")
    with sqlite3.connect(Path("broker", BOOKS)) as db:  # as books were before there was anything to follow
        db.executescript("DROP TABLE rotations; DROP INDEX released;")
    db.close()
    assert main(rotate) == 0
    assert "until every device and broker has followed" in capsys.readouterr().err
    assert main(["broker", "revoked", "broker", "r.list"]) == 1  # not yet
    assert main(["broker", "follow", "broker", "seller.root"]) == 1
    assert main(["broker", "follow", "broker", "none"]) == 2
    assert main(["broker", "follow", "broker", "to2"]) == 0
    new = Seller.load(Path("n.key"), PASSPHRASE).root
    assert f"serves the seller with root {new.fingerprint.hex()}" in capsys.readouterr().err
    assert main(["broker", "follow", "broker", "to2"]) == 1
    assert main(["broker", "revoked", "broker", "r.list"]) == 0
    assert main(["broker", "revoked", "broker", "old.list"]) == 1
    assert Path("broker", POLICY).read_text() == "as it is"
    assert Path("broker", ROOT).read_bytes() == Path("seller.root").read_bytes()
    # A root put in by hand is not what the books follow from.
    capsys.readouterr()
    Path("broker", ROOT).write_bytes(new.to_bytes())
    assert main(["broker", "revoked", "broker", "r.list"]) == 1
    assert "hint: give the root with which the broker was made" in capsys.readouterr().err
