"""A broker's key in its file, its public half, and the field of the manifest that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import artefact_parts as parts
from testbed.attesting import KEYS
from variegate.keys import cbor, keyfile
from variegate.keys.broker import BrokerKey, BrokerPublic
from variegate.keys.envelope import SHARE_BYTES
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Manifest, Release
from variegate.keys.primitives import KEM_CLASSIC, KEM_NAMES


@pytest.mark.parametrize("kem", KEM_NAMES)
def test_keys_come_back_from_their_files(kem: str, tmp_path: Path) -> None:
    key = BrokerKey.generate(kem)
    key.save(tmp_path / "b.key", "a passphrase")
    again = BrokerKey.load(tmp_path / "b.key", "a passphrase")
    assert again.public == key.public == BrokerPublic.from_json(key.public.to_json().encode())
    assert repr(key) == f"<BrokerKey {key.public.id.hex()}>"
    manifest, keys = key.public.split(parts.manifest(), KEYS)
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert keys.masked(again.share_of(manifest)) == KEYS
    with pytest.raises(MisuseError):
        key.public.split(manifest, KEYS)
    with pytest.raises(RefusedError) as caught:
        DeviceIdentity.load(tmp_path / "b.key", "a passphrase")
    assert caught.value.refusal is Refusal.KEY
    assert keyfile.read(tmp_path / "b.key").kind == "broker"


def test_keys_that_are_none() -> None:
    for secret in (b"", b"\x80", cbor.encode([1, KEM_CLASSIC, bytes(31)]), cbor.encode([True, KEM_CLASSIC, bytes(32)])):
        with pytest.raises(RefusedError) as caught:
            BrokerKey.from_secret(secret)
        assert caught.value.refusal is Refusal.KEY
    with pytest.raises(MisuseError):
        BrokerKey.generate("X448")
    good = BrokerKey.generate(KEM_CLASSIC).public.to_json()
    for old, new in (
        ('"schema": 1', '"schema": 2'),
        ('"schema": 1', '"schema": true'),
        ('"schema": 1', '"schema": 1, "more": 1'),
        ("X25519", "X448"),
        ('"X25519"', "[]"),
        ('"kem_public": "', '"kem_public": "!'),
        ('"kem_public": "', '"kem_public": "AAAA'),
        ("{", "["),
    ):
        assert old in good
        with pytest.raises(RefusedError):
            BrokerPublic.from_json(good.replace(old, new).encode())
    small = BrokerPublic(KEM_CLASSIC, bytes(32)).to_json().encode()
    for text in (small, b"", b"[" * 4000, bytes(5000)):
        with pytest.raises(RefusedError):
            BrokerPublic.from_json(text)


def _release(value: object) -> bytes:
    fields = cbor.decode(parts.manifest().to_bytes(), limit=1 << 16)
    return cbor.encode({**fields, 16: value})


@pytest.mark.parametrize(
    "value",
    [None, [], [bytes(16)], [bytes(15), b"x"], [bytes(16), b""], [bytes(16), bytes(2049)], [bytes(16), b"x", 1]],
)
def test_manifests_with_another_release_are_refused(value: object) -> None:
    assert Manifest.from_bytes(_release([bytes(16), b"x"])).release == Release(bytes(16), b"x")
    with pytest.raises(RefusedError) as caught:
        Manifest.from_bytes(_release(value))
    assert caught.value.refusal is Refusal.MALFORMED


@given(st.binary(min_size=SHARE_BYTES, max_size=SHARE_BYTES))
@settings(max_examples=50, deadline=None)
def test_masking_twice_gives_the_keys_back(share: bytes) -> None:
    assert KEYS.masked(share).masked(share) == KEYS
    assert repr(KEYS.masked(share)) == "SealedKeys()"
