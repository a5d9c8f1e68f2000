"""The key broker: shares, who gets them, one answer to everybody else, and a log that says why."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed import artefact_parts as parts
from testbed.attesting import BUYER, KEYS, NOW, Scene
from variegate.attest import database
from variegate.attest import log_limiter as thinning
from variegate.attest.broker_store import BrokerStore
from variegate.attest.evidence import DebugStatus, Ephemeral
from variegate.attest.nonces import LIFETIME_S, PER_DEVICE
from variegate.attest.release import release_info, request
from variegate.keys import component
from variegate.keys.broker import BrokerKey
from variegate.keys.envelope import SHARE_BYTES, EnvelopeDraft, open_envelope, seal_batch
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Policy, Release
from variegate.keys.primitives import KEM_CLASSIC, KEM_HYBRID, hpke_seal, sha256
from variegate.keys.rotation import Revocations


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.store.database.close()


def refused(scene: Scene, reason: str, envelope: bytes | None = None, **changes: Any) -> None:
    """Asks, gets the one answer, and finds the reason in the log."""
    with pytest.raises(RefusedError) as caught:
        scene.share(None, envelope, **changes)
    assert (caught.value.refusal, caught.value.message, caught.value.hint) == (
        Refusal.RELEASE,
        "the broker releases nothing for this request",
        None,
    )
    assert caught.value.__context__ is None
    assert reason in scene.last_reason()


def test_device_and_broker_open_a_copy_together_and_neither_alone(scene: Scene) -> None:
    share = scene.share()
    assert len(share) == SHARE_BYTES
    assert scene.opened(share) == KEYS
    with pytest.raises(RefusedError) as caught:
        scene.opened(None)
    assert caught.value.refusal is Refusal.SEALED
    with pytest.raises(RefusedError):
        scene.opened(share[:-1])
    # What the device opens without the broker has nothing of either key, and what the broker has opens nothing.
    held = scene.opened(bytes(SHARE_BYTES)).to_bytes()
    assert held == bytes(a ^ b for a, b in zip(KEYS.to_bytes(), share, strict=True))
    for key in (KEYS.cek, KEYS.seed):
        assert key not in held
        assert key not in share
    assert scene.last_reason() == "released: "
    entry = list(scene.store.log())[-1]
    assert (entry.time, entry.buyer) == (int(NOW), BUYER)
    assert entry.ueid == scene.device.public.ueid.hex()


def test_a_share_for_a_copy_that_needs_none_is_refused(scene: Scene) -> None:
    public = scene.device.public
    plain = parts.manifest(device=scene.device, buyer=BUYER, security_counter=3)
    envelope = seal_batch([EnvelopeDraft(plain, KEYS, public.kem, public.kem_public)], scene.signer)[0]
    assert scene.opened(None, envelope) == KEYS
    with pytest.raises(RefusedError) as caught:
        scene.opened(bytes(SHARE_BYTES), envelope)
    assert caught.value.refusal is Refusal.SEALED
    digest = open_envelope(envelope, scene.signer.root).digest
    refused(scene, "does not depend on this broker", envelope, model=digest)


def test_a_wrong_share_opens_no_component() -> None:
    file, ref = parts.seal(parts.payload())
    share = bytes([1]) + bytes(SHARE_BYTES - 1)
    wrong = parts.KEYS.masked(share)
    with pytest.raises(RefusedError) as caught:
        component.unseal(file, component.check(file, ref), wrong.cek)
    assert caught.value.refusal is Refusal.COMPONENT


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("measurement runtime", {"measurements": {"interpreter": bytes([1]) * 32, "runtime": bytes(32)}}),
        ("measurement runtime: not measured", {"measurements": {"interpreter": bytes([1]) * 32}}),
        ("debug", {"debug": DebugStatus.ENABLED}),
        ("profile", {"profile": "tag:variegate.example,2026:real-device"}),
        ("another copy", {"model": bytes(32)}),
        ("another copy", {"model": None}),
        ("device pins another root", {"root": bytes(32)}),
        ("older than what the device has confirmed", {"security_counter": 4}),
        ("no key for the answer", {"ephemeral": None}),
        ("small order|not valid", {"ephemeral": Ephemeral(KEM_CLASSIC, bytes(32))}),
        ("nonce", {"nonce": bytes(40)}),
        ("protection isolation", {"protections": ()}),
    ],
)
def test_evidence_that_is_not_good_gets_nothing(scene: Scene, reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as caught:
        scene.share(None, None, **changes)
    assert caught.value.refusal is Refusal.RELEASE
    assert any(part in scene.last_reason() for part in reason.split("|")), scene.last_reason()
    assert scene.opened(scene.share()) == KEYS


def test_other_sellers_devices_copies_and_brokers_get_nothing(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    with other.store:
        digest = open_envelope(other.envelope, other.signer.root).digest
        refused(scene, "signature: statement", other.envelope, model=digest)
        # The same device and seller, but a copy made for another broker.
        foreign, keys = other.key.public.split(parts.manifest(device=scene.device, security_counter=3), KEYS)
        public = scene.device.public
        envelope = seal_batch([EnvelopeDraft(foreign, keys, public.kem, public.kem_public)], scene.signer)[0]
        refused(scene, "this broker's key", envelope, model=open_envelope(envelope, scene.signer.root).digest)
        # A good copy of this seller for a device that is enrolled, too, but asks for the first one's.
        scene.store.allow(BUYER, other.device.public)
        stolen, first = scene.envelope, scene.device
        digest = open_envelope(stolen, scene.signer.root).digest
        scene.device = other.device
        refused(scene, "another device", stolen, model=digest)
        scene.device = first


def test_a_share_is_bound_to_its_manifest(scene: Scene) -> None:
    release = open_envelope(scene.envelope, scene.signer.root).manifest.release
    assert release is not None
    moved = replace(parts.manifest(device=scene.device, buyer=BUYER, security_counter=3, sequence=2), release=release)
    with pytest.raises(RefusedError) as caught:
        scene.key.share_of(moved)
    assert caught.value.refusal is Refusal.SEALED
    short = parts.manifest(device=scene.device)
    info = b"variegate/1/share/" + sha256(short.to_bytes())
    public = scene.key.public
    sealed = hpke_seal(public.kem, public.kem_public, info, bytes(SHARE_BYTES - 1))
    with pytest.raises(RefusedError, match="wrong length"):
        scene.key.share_of(replace(short, release=Release(public.id, sealed)))


def test_only_authorised_buyers_until_their_time(scene: Scene) -> None:
    assert scene.store.deny(BUYER) == 1
    refused(scene, "not authorised")
    scene.store.allow("somebody-else", scene.device.public)
    refused(scene, "not authorised")
    scene.store.allow(BUYER, scene.device.public, int(NOW) + 60)
    assert scene.opened(scene.share()) == KEYS
    scene.clock.now += 60
    refused(scene, "not authorised")
    assert [(one.buyer, one.until) for one in scene.store.authorisations()] == [
        ("somebody-else", None),
        (BUYER, int(NOW) + 60),
    ]
    assert scene.store.deny(BUYER, bytes(33)) == 0
    for buyer, until in (("", None), ("a\nb", None), ("b" * 129, None), ("b", -1), ("b", 1 << 60)):
        with pytest.raises(MisuseError):
            scene.store.allow(buyer, scene.device.public, until)
    twin = DeviceIdentity(
        ueid=scene.device.public.ueid,
        device_class="camera-v1",
        ed25519_seed=bytes(32),
        kem=KEM_CLASSIC,
        kem_seed=bytes([7]) * 32,
    )
    with pytest.raises(RefusedError) as caught:
        scene.store.allow(BUYER, twin.public)
    assert caught.value.refusal is Refusal.KEY


def test_revoked_devices_and_expired_copies_get_nothing(scene: Scene) -> None:
    envelope = scene.seal(not_after=int(NOW) + 10, policy=Policy(grace_s=5))
    digest = open_envelope(envelope, scene.signer.root).digest
    scene.clock.now += 15
    assert scene.opened(scene.share(None, envelope, model=digest), envelope) == KEYS
    scene.clock.now += 1
    refused(scene, "expired", envelope, model=digest)
    assert scene.opened(scene.share()) == KEYS
    scene.store.revoke(Revocations().extended([scene.device.public.ueid]).sign(scene.signer), scene.signer.root)
    refused(scene, "revoked")


def test_old_reused_and_foreign_nonces_get_nothing(scene: Scene) -> None:
    broker = scene.broker
    kem_public = BrokerKey.generate(KEM_CLASSIC).public.kem_public
    ephemeral = Ephemeral(KEM_CLASSIC, kem_public)
    token = scene.token(broker.challenge(), ephemeral)
    broker.release(token, scene.envelope)
    for door in (broker, scene.broker):  # the second as after a restart
        with pytest.raises(RefusedError):
            door.release(token, scene.envelope)
        assert "used before" in scene.last_reason()
    token = scene.token(broker.challenge(), ephemeral)
    scene.clock.now += LIFETIME_S
    with pytest.raises(RefusedError):
        broker.release(token, scene.envelope)
    assert "nonce: expired" in scene.last_reason()
    # Given out before a restart, and still good after it.
    nonce = scene.broker.challenge()
    scene.broker.release(scene.token(nonce, ephemeral), scene.envelope)


def test_of_requests_with_one_nonce_at_once_one_is_answered(scene: Scene) -> None:
    brokers = [scene.broker, scene.broker]
    for _ in range(3):
        ephemeral = Ephemeral(KEM_CLASSIC, BrokerKey.generate(KEM_CLASSIC).public.kem_public)
        token, gate = scene.token(brokers[0].challenge(), ephemeral), threading.Barrier(6)

        def ask(number: int, token: bytes = token, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            try:
                return bool(brokers[number % 2].release(token, scene.envelope))
            except RefusedError:
                return False

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(ask, range(6))) == 1


def test_no_byte_of_a_request_can_change(scene: Scene) -> None:
    broker = scene.broker
    ephemeral = Ephemeral(KEM_CLASSIC, BrokerKey.generate(KEM_CLASSIC).public.kem_public)
    token = scene.token(broker.challenge(), ephemeral)
    for at in range(len(token)):
        with pytest.raises(RefusedError) as caught:
            broker.release(token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :], scene.envelope)
        assert caught.value.refusal is Refusal.RELEASE
    assert broker.release(token, scene.envelope)
    for at in range(0, len(scene.envelope), 997):
        spoilt = scene.envelope[:at] + bytes([scene.envelope[at] ^ 1]) + scene.envelope[at + 1 :]
        scene.clock.now += LIFETIME_S / PER_DEVICE
        with pytest.raises(RefusedError):
            broker.release(scene.token(broker.challenge(), ephemeral), spoilt)
        assert "statement" in scene.last_reason() or "structure" in scene.last_reason()


def test_strangers_cannot_fill_the_log(scene: Scene) -> None:
    broker, before = scene.broker, len(list(scene.store.log()))
    for _ in range(200):
        with pytest.raises(RefusedError):
            broker.release(b"\x80", b"")
    assert len(list(scene.store.log())) - before == 60
    scene.clock.now += 61
    with pytest.raises(RefusedError):
        broker.release(b"\x80", b"")
    assert "140 such requests" in scene.last_reason()


def test_a_captured_token_fills_no_log_and_does_not_hold_its_device_up(scene: Scene) -> None:
    broker, ephemeral = scene.broker, Ephemeral(KEM_CLASSIC, BrokerKey.generate(KEM_CLASSIC).public.kem_public)
    tokens = [scene.token(broker.challenge(), ephemeral), scene.token(bytes(40), ephemeral)]
    broker.release(tokens[0], scene.envelope)
    before, limited = len(list(scene.store.log())), 0
    for number in range(100):
        with pytest.raises((RefusedError, LimitError)) as caught:
            broker.release(tokens[number % 2], scene.envelope)
        assert caught.value.__context__ is None
        if isinstance(caught.value, LimitError):
            assert caught.value.retry_after_s == pytest.approx(60)
            limited += 1
    assert (len(list(scene.store.log())) - before, limited) == (thinning.PER_DEVICE, 100 - thinning.PER_DEVICE)
    # Neither the device itself nor strangers lose their own lines by it.
    assert scene.opened(scene.share(broker)) == KEYS
    with pytest.raises(RefusedError):
        broker.release(b"\x80", b"")
    assert scene.last_reason().startswith("refused: evidence: evidence fails these checks: form")
    scene.clock.now += LIFETIME_S
    with pytest.raises(RefusedError):
        broker.release(tokens[0], scene.envelope)
    assert "nonce: expired" in scene.last_reason()
    assert f"{limited} such requests" in scene.last_reason()


def test_devices_beyond_those_told_apart_share_the_lines_of_strangers(scene: Scene) -> None:
    thinned = thinning.LogLimiter(scene.clock, devices=2)
    for ueid in (b"a", b"b"):
        taken = [thinned.take(ueid) for _ in range(thinning.PER_DEVICE + 3)]
        assert [line.entered for line in taken] == [True] * thinning.PER_DEVICE + [False] * 3
    beyond = [thinned.take(number.to_bytes(2)).entered for number in range(thinning.STRANGERS_PER_MINUTE + 1)]
    assert (sum(beyond), beyond[-1], thinned.take(None).entered) == (thinning.STRANGERS_PER_MINUTE, False, False)
    scene.clock.now += 60
    # Room again; what the first two missed is not forgotten.
    assert thinned.take(b"c") == thinning.Line(True)
    assert thinned.take(None) == thinning.Line(True, missed=2 + 2 * 3)
    scene.clock.now -= 1000
    assert thinned.take(b"c").entered


def test_one_device_cannot_ask_all_the_time(scene: Scene) -> None:
    for _ in range(PER_DEVICE):
        scene.share()
    with pytest.raises(LimitError) as caught:
        scene.share(scene.broker)
    assert caught.value.retry_after_s == pytest.approx(LIFETIME_S)
    assert scene.last_reason().startswith("limited")
    assert list(scene.store.log())[-1].ueid == scene.device.public.ueid.hex()
    scene.clock.now += LIFETIME_S
    assert scene.opened(scene.share()) == KEYS


def test_the_answer_is_for_this_evidence_and_this_key(scene: Scene) -> None:
    class Crossed:
        """Gives the answer to other evidence than was sent."""

        def __init__(self, scene: Scene) -> None:
            self.scene, self.broker = scene, scene.broker

        def challenge(self) -> bytes:
            return self.broker.challenge()

        def release(self, _token: bytes, envelope: bytes) -> bytes:
            other = self.scene.token(self.broker.challenge(), Ephemeral(KEM_CLASSIC, self.public))
            return self.broker.release(other, envelope)

        public = BrokerKey.generate(KEM_CLASSIC).public.kem_public

    with pytest.raises(RefusedError) as caught:
        scene.share(Crossed(scene))
    assert caught.value.refusal is Refusal.SEALED

    class Lying:
        """A host that answers by itself."""

        def __init__(self, nonce: bytes, answer: bytes) -> None:
            self.nonce, self.answer = nonce, answer

        def challenge(self) -> bytes:
            return self.nonce

        def release(self, _token: bytes, _envelope: bytes) -> bytes:
            return self.answer

    for answer in (b"", bytes(80), bytes(1200)):
        with pytest.raises(RefusedError) as caught:
            scene.share(Lying(bytes(16), answer))
        assert caught.value.refusal is Refusal.SEALED
    for nonce in (b"", bytes(7), bytes(65)):
        with pytest.raises(RefusedError) as caught:
            scene.share(Lying(nonce, b""))
        assert caught.value.refusal is Refusal.MALFORMED
        with pytest.raises(RefusedError, match="broker's nonce"):
            request(b"", lambda *_: pytest.fail("a token was made"), Lying(nonce, b""))


def test_the_ephemeral_key_is_new_each_time(scene: Scene) -> None:
    seen: list[Ephemeral] = []

    def make(nonce: bytes, ephemeral: Ephemeral) -> bytes:
        seen.append(ephemeral)
        return scene.token(nonce, ephemeral)

    shares = {request(scene.envelope, make, scene.broker) for _ in range(3)}
    assert len(shares) == 1
    assert len({one.public for one in seen}) == 3
    assert {one.kem for one in seen} == {KEM_HYBRID}
    assert release_info(b"a") != release_info(b"b")


def test_what_cannot_be_logged_is_not_released(scene: Scene, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "books.sqlite") as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON log BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(DeviceError):
        scene.share()


def test_a_reader_from_outside_holds_nothing_up(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_WAIT_S", 0.1)
    path = tmp_path / "books.sqlite"
    with BrokerStore(path, scene.clock) as store, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM log").fetchone()
        store.record("allowed")
        assert reader.execute("SELECT count(*) FROM log").fetchone() == before
        reader.execute("COMMIT")
        # One that writes does, and no longer than it writes.
        reader.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(DeviceError, match="cannot be read or written"):
                store.record("allowed")
        reader.execute("COMMIT")
        store.record("allowed")
        assert reader.execute("SELECT count(*) FROM log").fetchone() == (before[0] + 2,)
        assert {one.stat().st_mode & 0o777 for one in tmp_path.glob("books.sqlite*")} == {0o600}


def test_a_commit_that_fails_is_undone_and_the_next_one_does_not(scene: Scene) -> None:
    before = list(scene.store.log())

    def no_commit(action: int, name: str | None, *_: str | None) -> int:
        return sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK

    with pytest.raises(DeviceError), scene.store.database.transaction() as db:
        db.set_authorizer(no_commit)
    for _ in range(2):
        with pytest.raises(DeviceError, match="cannot be read or written"):
            scene.store.record("allowed")
    db.set_authorizer(None)
    assert list(scene.store.log()) == before
    scene.store.record("allowed")
    assert len(list(scene.store.log())) == len(before) + 1


def test_the_log_is_append_only(scene: Scene, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "books.sqlite") as db:
        for statement in ("DELETE FROM log", "UPDATE log SET detail = ''"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)


def test_two_copies_have_two_shares(scene: Scene) -> None:
    one, two = (scene.seal() for _ in range(2))
    digests = [open_envelope(envelope, scene.signer.root).digest for envelope in (one, two)]
    shares = {scene.share(None, e, model=d) for e, d in zip((one, two), digests, strict=True)}
    assert len(shares) == 2
