"""The verifier: every way in which evidence is not good, nonces that count once, and the policy file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.artefacts import MemorySigner
from testbed.attesting import Clock, Scene
from variegate.attest.broker_store import BrokerStore
from variegate.attest.evidence import SIMULATED, DebugStatus, ProtectionClaim
from variegate.attest.groups import HOST_PROTECTIONS
from variegate.attest.nonces import LIFETIME_S, PER_DEVICE, Nonces, NonceState
from variegate.attest.policy import MAX_POLICY_BYTES, AppraisalPolicy
from variegate.attest.verifier import Appraisal, Tier, Verifier
from variegate.keys.errors import LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC
from variegate.keys.rotation import Revocations

REAL = "tag:variegate.example,2026:real-device"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.store.database.close()


def verifier(scene: Scene, **changes: Any) -> Verifier:
    policy = replace(scene.policy, **changes)
    nonces = Nonces(scene.store.database, scene.clock)
    return Verifier(policy, scene.store.device, nonces, scene.clock, revocations=scene.store.revocations)


def failed(appraisal: Appraisal) -> list[str]:
    return [check.name for check in appraisal.checks if not check.passed]


def test_good_evidence_passes_every_check_and_is_still_only_simulated(scene: Scene) -> None:
    checker = verifier(scene)
    appraisal = checker.appraise(scene.token(checker.challenge()))
    assert (failed(appraisal), appraisal.good, appraisal.tier) == ([], True, Tier.WARNING)
    assert appraisal.require().boot_count == 7
    assert {check.name for check in appraisal.checks} >= {
        "signature",
        "nonce",
        "revocation",
        "clock",
        "profile",
        "debug",
        "measurement interpreter",
        "measurement runtime",
        "protection isolation",
    }


def test_another_profile_is_another_policy(scene: Scene) -> None:
    checker = verifier(scene, profiles=(REAL,))
    assert failed(checker.appraise(scene.token(checker.challenge()))) == ["profile"]
    appraisal = checker.appraise(scene.token(checker.challenge(), profile=REAL))
    assert (appraisal.good, appraisal.tier) == (True, Tier.AFFIRMING)
    assert failed(verifier(scene).appraise(scene.token(checker.challenge(), profile=REAL))) == ["profile"]


@pytest.mark.parametrize(
    ("changes", "checks"),
    [
        ({"measurements": {"interpreter": bytes([1]) * 32, "runtime": bytes(32)}}, ["measurement runtime"]),
        ({"measurements": {"interpreter": bytes([1]) * 32}}, ["measurement runtime"]),
        (
            {"measurements": {"interpreter": bytes([1]) * 32, "runtime": bytes([2]) * 32, "more": bytes(32)}},
            ["measurement more"],
        ),
        ({"measurements": {}}, ["measurement interpreter", "measurement runtime"]),
        # The right values under each other's name.
        (
            {"measurements": {"interpreter": bytes([2]) * 32, "runtime": bytes([1]) * 32}},
            ["measurement interpreter", "measurement runtime"],
        ),
        ({"debug": DebugStatus.ENABLED}, ["debug"]),
        ({"protections": ()}, ["protection isolation"]),
        ({"protections": (ProtectionClaim("isolation", "off", ""),)}, ["protection isolation"]),
        ({"protections": (ProtectionClaim("isolation", "unavailable", ""),)}, ["protection isolation"]),
        ({"issued_at": 1_800_000_000 - 301}, ["clock"]),
        ({"issued_at": 1_800_000_000 + 301}, ["clock"]),
        ({"nonce": bytes(40)}, ["nonce"]),
        ({"nonce": bytes(8)}, ["nonce"]),
    ],
)
def test_what_is_wrong_is_named(scene: Scene, changes: dict[str, Any], checks: list[str]) -> None:
    checker = verifier(scene)
    appraisal = checker.appraise(scene.token(changes.pop("nonce", checker.challenge()), **changes))
    assert (failed(appraisal), appraisal.good, appraisal.tier) == (checks, False, Tier.CONTRAINDICATED)
    with pytest.raises(RefusedError, match=checks[0]) as caught:
        appraisal.require()
    assert caught.value.refusal is Refusal.EVIDENCE


def test_debuggers_pass_where_the_policy_says_so_with_a_warning(scene: Scene) -> None:
    checker = verifier(scene, debug=True, profiles=(REAL,))
    token = scene.token(checker.challenge(), debug=DebugStatus.ENABLED, profile=REAL)
    appraisal = checker.appraise(token)
    assert (appraisal.good, appraisal.tier) == (True, Tier.WARNING)


def test_one_of_several_values_is_enough(scene: Scene) -> None:
    newer = scene.evidence(bytes(8), measurements={"interpreter": bytes([1]) * 32, "runtime": bytes([9]) * 32})
    checker = verifier(scene, measurements=scene.policy.with_values_of(newer).measurements)
    for value in (2, 9):
        measured = {"interpreter": bytes([1]) * 32, "runtime": bytes([value]) * 32}
        assert checker.appraise(scene.token(checker.challenge(), measurements=measured)).good


def test_strangers_get_nowhere_and_use_up_nothing(scene: Scene) -> None:
    checker, nonce = verifier(scene), verifier(scene).challenge()
    good = scene.token(nonce)
    for spoilt in (b"", b"\x80", good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        appraisal = checker.appraise(spoilt)
        assert (appraisal.evidence, appraisal.good, appraisal.tier) == (None, False, Tier.NONE)
    home = scene.device
    scene.device = DeviceIdentity.generate("camera-v1", KEM_CLASSIC)
    assert failed(checker.appraise(scene.token(nonce))) == ["device"]
    # Somebody else's key under the device's name.
    assert failed(checker.appraise(scene.token(nonce, ueid=home.public.ueid))) == ["signature"]
    assert checker.appraise(good).good


def test_a_nonce_counts_once_even_when_the_evidence_was_bad(scene: Scene) -> None:
    checker = verifier(scene)
    nonce = checker.challenge()
    assert failed(checker.appraise(scene.token(nonce, debug=DebugStatus.ENABLED))) == ["debug"]
    again = checker.appraise(scene.token(nonce))
    assert failed(again) == ["nonce"]
    assert "used before" in next(check.detail for check in again.checks if check.name == "nonce")


def test_revoked_devices_fail_at_once(scene: Scene) -> None:
    checker = verifier(scene)
    assert checker.appraise(scene.token(checker.challenge())).good
    listed = Revocations().extended([scene.device.public.ueid])
    scene.store.revoke(listed.sign(scene.signer), scene.signer.root)
    assert failed(checker.appraise(scene.token(checker.challenge()))) == ["revocation"]
    with pytest.raises(RefusedError) as caught:
        scene.store.revoke(listed.sign(MemorySigner()), scene.signer.root)
    assert caught.value.refusal is Refusal.SIGNATURE
    twin = Revocations(listed.serial, frozenset())
    with pytest.raises(RefusedError, match="another"):
        scene.store.revoke(twin.sign(scene.signer), scene.signer.root)
    scene.store.revoke(listed.sign(scene.signer), scene.signer.root)
    newer = listed.extended([])
    scene.store.revoke(newer.sign(scene.signer), scene.signer.root)
    with pytest.raises(RefusedError) as caught:
        scene.store.revoke(listed.sign(scene.signer), scene.signer.root)
    assert caught.value.refusal is Refusal.ROLLED_BACK


def make_nonces(path: Path, clock: Clock, **bounds: Any) -> Nonces:
    store = BrokerStore(path / "n.sqlite", clock, create=not (path / "n.sqlite").exists())
    return Nonces(store.database, clock, **bounds)


def test_nonces_end_and_are_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    clock = Clock()
    ours, other = make_nonces(tmp_path, clock), make_nonces(tmp_path / "other", clock)
    assert len({ours.issue() for _ in range(100)}) == 100
    assert ours.take(other.issue(), b"d") is NonceState.UNKNOWN
    for wrong in (b"", bytes(16), bytes(40), ours.issue()[:-1], ours.issue() + b"\x00"):
        assert ours.take(wrong, b"d") is NonceState.UNKNOWN
    nonce = ours.issue()
    for at in range(len(nonce)):
        assert ours.take(nonce[:at] + bytes([nonce[at] ^ 1]) + nonce[at + 1 :], b"d") is NonceState.UNKNOWN
    clock.now += LIFETIME_S
    assert ours.take(nonce, b"d") is NonceState.STALE
    clock.now -= 0.001
    assert ours.take(nonce, b"d") is NonceState.FRESH
    # Given out before the clock was set back by an hour.
    nonce = ours.issue()
    clock.now -= 3600
    assert ours.take(nonce, b"d") is NonceState.STALE


def test_used_nonces_survive_a_restart_and_do_not_come_back_with_an_old_clock(tmp_path: Path) -> None:
    clock = Clock()
    first = make_nonces(tmp_path, clock)
    used, kept = first.issue(), first.issue()
    assert first.take(used, b"d") is NonceState.FRESH
    again = make_nonces(tmp_path, clock)
    assert again.take(used, b"d") is NonceState.REUSED
    assert again.take(kept, b"d") is NonceState.FRESH
    clock.now += 3 * LIFETIME_S
    assert again.take(again.issue(), b"e") is NonceState.FRESH  # forgets the first two
    with sqlite3.connect(tmp_path / "n.sqlite") as db:
        assert db.execute("SELECT count(*) FROM nonces_used").fetchone() == (1,)
    clock.now -= 3 * LIFETIME_S
    assert make_nonces(tmp_path, clock).take(used, b"d") is NonceState.STALE


def test_of_many_who_take_one_nonce_at_once_one_wins(tmp_path: Path) -> None:
    clock = Clock()
    doors = [make_nonces(tmp_path, clock, per_device=1000) for _ in range(4)]
    for _ in range(5):
        nonce, gate = doors[0].issue(), threading.Barrier(8)

        def take(number: int, nonce: bytes = nonce, gate: threading.Barrier = gate) -> NonceState:
            gate.wait()
            return doors[number % 4].take(nonce, b"d")

        with ThreadPoolExecutor(8) as pool:
            states = list(pool.map(take, range(8)))
        assert sorted(states) == sorted([NonceState.FRESH] + 7 * [NonceState.REUSED])


def test_devices_and_the_store_are_bounded(tmp_path: Path) -> None:
    clock = Clock()
    nonces = make_nonces(tmp_path, clock, capacity=PER_DEVICE + 2)
    for _ in range(PER_DEVICE):
        assert nonces.take(nonces.issue(), b"a") is NonceState.FRESH
        clock.now += 1
    with pytest.raises(LimitError) as caught:
        nonces.take(nonces.issue(), b"a")
    assert caught.value.retry_after_s == pytest.approx(LIFETIME_S - PER_DEVICE, abs=0.01)
    assert make_nonces(tmp_path, clock).take(nonces.issue(), b"b") is NonceState.FRESH
    assert nonces.take(nonces.issue(), b"c") is NonceState.FRESH
    with pytest.raises(LimitError, match="at once"):
        nonces.take(nonces.issue(), b"d")
    clock.now += caught.value.retry_after_s or 0
    assert nonces.take(nonces.issue(), b"a") is NonceState.FRESH


def test_a_store_that_is_none_is_not_used(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(MisuseError):
        BrokerStore(tmp_path / "none", clock)
    (tmp_path / "text").write_bytes(b"x" * 4096)
    with pytest.raises(RefusedError) as caught:
        BrokerStore(tmp_path / "text", clock)
    assert caught.value.refusal is Refusal.MALFORMED
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE t (a)")
    with pytest.raises(RefusedError):
        BrokerStore(tmp_path / "other", clock)
    with pytest.raises(MisuseError):
        BrokerStore(tmp_path / "no" / "folder", clock, create=True)
    with BrokerStore(tmp_path / "s", clock, create=True) as store:
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0
        with sqlite3.connect(tmp_path / "s") as db:
            db.execute("DROP TABLE nonce_state")
        with pytest.raises(RefusedError, match="is damaged"):
            Nonces(store.database, clock)
    with pytest.raises(MisuseError):
        BrokerStore(tmp_path / "s", clock, create=True)


def test_the_policy_file_says_the_same_again(scene: Scene) -> None:
    odd = replace(
        scene.policy,
        measurements={'a "b" \\ = [c]': (bytes(32), bytes([1]) * 32), "ü😀": (bytes(32),)},
        require=("isolation", "ü😀"),
        debug=True,
        clock_skew_s=0,
    )
    for policy in (scene.policy, odd):
        assert AppraisalPolicy.from_toml(policy.to_toml()) == policy
    assert scene.policy.profiles == (SIMULATED,)
    assert scene.policy.require == ("isolation",)
    assert not AppraisalPolicy.of(scene.evidence(bytes(8), debug=DebugStatus.ENABLED)).debug


GOOD_TOML = f'schema = 1\nprofiles = ["p"]\n[measurements]\nruntime = ["{"00" * 32}"]\n'


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("schema = 1", "schema = 2", "schema"),
        ("schema = 1", "schema = true", "schema"),
        ("schema = 1\n", "", "schema"),
        ("schema = 1", "schema = 1\nallow_all = true", "allow_all"),
        ('profiles = ["p"]\n', "", "profiles"),
        ('["p"]', "[]", "profiles"),
        ('["p"]', '["p", ""]', r"profiles\[1\]"),
        ('["p"]', '"p"', "profiles"),
        ('["p"]', '["p"]\nrequire = [1]', r"require\[0\]"),
        ('["p"]', '["p"]\ndebug = 1', "debug"),
        ('["p"]', '["p"]\nclock_skew_s = -1', "clock_skew_s"),
        ('["p"]', '["p"]\nclock_skew_s = 1e3', "clock_skew_s"),
        ('["p"]', '["p"]\nclock_skew_s = true', "clock_skew_s"),
        (f'runtime = ["{"00" * 32}"]', "", "measurements"),
        (f'"{"00" * 32}"', "", r"measurements\.runtime"),
        (f'"{"00" * 32}"', '"00"', r"measurements\.runtime\[0\]"),
        (f'"{"00" * 32}"', f'"{"zz" * 32}"', r"measurements\.runtime\[0\]"),
        (f'["{"00" * 32}"]', "1", r"measurements\.runtime"),
        ("[measurements]", "[[measurements]]", "measurements"),
        ("schema", "\x00", "TOML"),
    ],
)
def test_policies_with_a_mistake_name_it(old: str, new: str, path: str) -> None:
    assert AppraisalPolicy.from_toml(GOOD_TOML.encode()).measurements == {"runtime": (bytes(32),)}
    assert old in GOOD_TOML
    with pytest.raises(RefusedError, match=path) as caught:
        AppraisalPolicy.from_toml(GOOD_TOML.replace(old, new).encode())
    assert caught.value.refusal is Refusal.MALFORMED


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_no_policy_is_read_out_of_noise(data: bytes) -> None:
    with pytest.raises(RefusedError):
        AppraisalPolicy.from_toml(data)
    with pytest.raises(RefusedError):
        AppraisalPolicy.from_toml(bytes(MAX_POLICY_BYTES + 1))


def _host(**states: str) -> tuple[ProtectionClaim, ...]:
    claimed = dict.fromkeys(HOST_PROTECTIONS, "on") | {name.replace("_", "-"): state for name, state in states.items()}
    found = (ProtectionClaim(name, state, "why") for name, state in claimed.items())
    return (ProtectionClaim("isolation", "on", ""), *found)


@pytest.mark.parametrize(
    ("claims", "missing"),
    [
        (_host(), []),
        (_host(host_ptrace="off"), ["protection host-ptrace"]),
        (_host(host_core="unavailable"), ["protection host-core"]),
        (_host(host_later="on"), []),
        (_host(host_later="off"), ["protection host-later"]),  # what a newer device looks at besides
        (_host()[:-1], ["protection host-core"]),  # left out
        # What an old device says, and one that gives itself the group's name.
        (_host()[:1], [f"protection {name}" for name in HOST_PROTECTIONS]),
        ((_host()[0], ProtectionClaim("host", "on", "")), [f"protection {name}" for name in HOST_PROTECTIONS]),
    ],
)
def test_a_policy_can_require_the_host_as_a_whole(
    scene: Scene, claims: tuple[ProtectionClaim, ...], missing: list[str]
) -> None:
    for require in (("isolation", "host"), ("host", "isolation", "host")):
        checker = verifier(scene, require=require)
        assert failed(checker.appraise(scene.token(checker.challenge(), protections=claims))) == missing
    checker = verifier(scene)
    assert failed(checker.appraise(scene.token(checker.challenge(), protections=claims))) == []


def test_a_policy_of_evidence_requires_the_host_as_a_whole_or_not_at_all(scene: Scene) -> None:
    whole = AppraisalPolicy.of(scene.evidence(bytes(8), protections=_host()))
    assert whole.require == ("host", "isolation")
    assert AppraisalPolicy.from_toml(whole.to_toml()) == whole
    for claims in (_host(host_ptrace="off"), _host(host_later="off"), _host()[:-1], _host()[:1]):
        assert AppraisalPolicy.of(scene.evidence(bytes(8), protections=claims)).require == ("isolation",)
