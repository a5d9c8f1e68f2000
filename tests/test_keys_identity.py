"""The seller's keys, rotation, revocation, the device's identity, and keys behind URIs."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.artefact_parts import HYBRID, KEYS, X25519, manifest
from variegate.keys import cbor, signing, uri
from variegate.keys.envelope import CONTEXT, EnvelopeDraft, open_envelope, seal_batch
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.primitives import KEM_CLASSIC, KEM_HYBRID, ed25519_verify, hpke_seal
from variegate.keys.rotation import (
    MAX_REVOKED,
    REVOCATION_CONTEXT,
    ROOT_CONTEXT,
    Revocations,
    follow,
    rotate,
)
from variegate.keys.seller import Seller
from variegate.keys.signing import SellerRoot

PASSPHRASE = "correct horse"


def refused(refusal: Refusal, call: Callable[[], object]) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call()
    assert caught.value.refusal is refusal
    return caught.value


def seller() -> Seller:
    return Seller(serial=0, master=b"m" * 32, ed25519_seed=b"e" * 32, mldsa65_seed=b"q" * 32)


def test_seller_signs_what_devices_verify() -> None:
    signer: signing.Signer = seller().signer
    statement = signing.sign_batch(CONTEXT, [b"payload"], signer)[0]
    assert signing.verify(CONTEXT, statement, signer.root) == b"payload"


def test_seller_survives_its_file(tmp_path: Path) -> None:
    made = Seller.generate()
    made.save(tmp_path / "seller.key", PASSPHRASE)
    read = Seller.load(tmp_path / "seller.key", PASSPHRASE)
    assert read.root == made.root
    assert read.buyer_seed("b", 1) == made.buyer_seed("b", 1)
    assert Seller.generate().root != made.root


def test_derived_keys_differ_in_every_argument() -> None:
    one = seller()
    keys = [one.buyer_seed("b", 0), one.buyer_seed("b", 1), one.buyer_seed("c", 0)]
    keys += [one.release_cek("b", "c"), one.release_cek("c", "b"), one.release_cek("bc", "d")]
    assert len({*keys}) == len(keys)
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize(
    ("buyer", "epoch"), [("", 0), ("b" * 129, 0), ("b\n", 0), ("b", -1), ("b", True), ("b", 1 << 63)]
)
def test_buyer_seed_of_nonsense_is_misuse(buyer: str, epoch: int) -> None:
    with pytest.raises(MisuseError):
        seller().buyer_seed(buyer, epoch)


def test_texts_of_secrets_show_none_of_them() -> None:
    one, device = seller(), DeviceIdentity.generate("camera-v1")
    secrets = [b"m" * 32, b"e" * 32, b"q" * 32, KEYS.cek, KEYS.seed, device.to_bytes()[60:90], device.to_bytes()[-32:]]
    for thing in (
        one,
        one.signer,
        device,
        device.public,
        KEYS,
        EnvelopeDraft(manifest(), KEYS, "X25519", bytes(32)),
        rotate(one),
    ):
        for text in (repr(thing), str(thing), f"{thing}", f"{[thing]}"):
            for secret in secrets:
                assert secret.hex() not in text
                assert repr(secret)[2:-1] not in text


@pytest.mark.parametrize("thing", [seller(), X25519], ids=["seller", "device"])
def test_secrets_do_not_pickle(thing: object) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(thing)


@pytest.mark.parametrize(
    "secret",
    [b"", b"\x80", cbor.encode([2, 0, *[bytes(32)] * 3]), cbor.encode([1, -1, *[bytes(32)] * 3]),
     cbor.encode([True, 0, *[bytes(32)] * 3]), cbor.encode([1, 0, bytes(31), bytes(32), bytes(32)])],
)  # fmt: skip
def test_seller_secrets_of_the_wrong_form_are_refused(secret: bytes) -> None:
    refused(Refusal.KEY, lambda: Seller.from_secret(secret))
    refused(Refusal.KEY, lambda: DeviceIdentity.from_bytes(secret))


def test_rotation_is_followed_once_and_in_order() -> None:
    first = seller()
    second, to_second = rotate(first)
    third, to_third = rotate(second)
    assert second.buyer_seed("b", 0) == first.buyer_seed("b", 0)
    assert (second.serial, third.serial) == (1, 2)
    pinned = follow(first.root, 0, to_second)
    assert pinned == (second.root, 1)
    refused(Refusal.SIGNATURE, lambda: follow(second.root, 1, to_second))
    refused(Refusal.SIGNATURE, lambda: follow(first.root, 0, to_third))
    refused(Refusal.ROLLED_BACK, lambda: follow(first.root, 1, to_second))
    assert follow(*pinned, to_third) == (third.root, 2)


@pytest.mark.parametrize(
    ("payload", "refusal"),
    [
        ([1, 1, bytes(1983)], Refusal.KEY),
        ([2, 1, bytes(1984)], Refusal.MALFORMED),
        ([1, True, bytes(1984)], Refusal.MALFORMED),
        ([1, 0, bytes(1984)], Refusal.MALFORMED),
        ([1, 1], Refusal.MALFORMED),
    ],
)
def test_root_statements_of_the_wrong_form_are_refused(payload: list[object], refusal: Refusal) -> None:
    statement = signing.sign_batch(ROOT_CONTEXT, [cbor.encode(payload)], seller().signer)[0]
    refused(refusal, lambda: follow(seller().root, 0, statement))


UEIDS = [b"\x01" + bytes([i]) * 32 for i in range(4)]


def test_revocation_lists_grow_and_do_not_roll_back() -> None:
    one = seller()
    first = Revocations().extended(UEIDS[:1])
    second = first.extended(UEIDS[1:3])
    assert Revocations.verify(first.sign(one.signer), one.root, 0) == first
    read = Revocations.verify(second.sign(one.signer), one.root, 1)
    assert [read.contains(ueid) for ueid in UEIDS] == [True, True, True, False]
    assert Revocations.verify(second.sign(one.signer), one.root, 2) == second
    refused(Refusal.ROLLED_BACK, lambda: Revocations.verify(first.sign(one.signer), one.root, 2))
    refused(Refusal.SIGNATURE, lambda: Revocations.verify(second.sign(one.signer), rotate(one).seller.root, 0))
    with pytest.raises(MisuseError):
        first.extended([bytes(32)])


def test_a_full_revocation_list_fits_and_one_more_is_misuse() -> None:
    one = seller()
    full = Revocations().extended(b"\x01" + i.to_bytes(32, "big") for i in range(MAX_REVOKED))
    assert Revocations.verify(full.sign(one.signer), one.root, 1) == full
    with pytest.raises(MisuseError, match="at most"):
        full.extended([b"\x02" + bytes(32)])


@pytest.mark.parametrize(
    "payload",
    [
        [1, 1, [UEIDS[1], UEIDS[0]]],
        [1, 1, [UEIDS[0], UEIDS[0]]],
        [1, 1, [bytes(32)]],
        [1, 1, [0]],
        [1, 0, []],
        [1, 1, {}],
    ],
)
def test_revocation_lists_of_the_wrong_form_are_refused(payload: list[object]) -> None:
    data = signing.sign_batch(REVOCATION_CONTEXT, [cbor.encode(payload)], seller().signer)[0]
    refused(Refusal.MALFORMED, lambda: Revocations.verify(data, seller().root, 0))


@pytest.mark.parametrize("kem", [KEM_CLASSIC, KEM_HYBRID])
def test_device_identity_opens_what_was_sealed_to_it(kem: str, tmp_path: Path) -> None:
    device = DeviceIdentity.generate("camera-v1", kem)
    assert device.public.ueid[:1] == b"\x01"
    sealed = hpke_seal(kem, device.public.kem_public, b"info", b"secret")
    device.save(tmp_path / "device.key", PASSPHRASE)
    for same in (
        DeviceIdentity.from_bytes(device.to_bytes()),
        DeviceIdentity.load(tmp_path / "device.key", PASSPHRASE),
    ):
        assert same.public == device.public
        assert same.unwrap(sealed, b"info") == b"secret"
    refused(Refusal.SEALED, lambda: device.unwrap(sealed, b"other"))
    refused(Refusal.SEALED, lambda: DeviceIdentity.generate("camera-v1", kem).unwrap(sealed, b"info"))
    assert ed25519_verify(device.public.signing_public, device.sign(b"quote"), b"quote")
    refused(Refusal.KEY, lambda: Seller.load(tmp_path / "device.key", PASSPHRASE))


def test_device_identity_of_nonsense_is_misuse() -> None:
    for device_class, kem in (("", KEM_CLASSIC), ("a\n", KEM_CLASSIC), ("camera", "P-256")):
        with pytest.raises(MisuseError):
            DeviceIdentity.generate(device_class, kem)


@pytest.mark.parametrize("device", [X25519, HYBRID], ids=["x25519", "hybrid"])
def test_public_identity_round_trip(device: DeviceIdentity) -> None:
    text = device.public.to_json()
    assert DevicePublic.from_json(text) == device.public
    assert DevicePublic.from_json(text.encode()).fingerprint == device.public.fingerprint
    assert DevicePublic.from_json(text).to_json() == text


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(X25519.public.to_json()), **fields})


GOOD: dict[str, Any] = json.loads(X25519.public.to_json())


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("", Refusal.MALFORMED),
        ("[" * 4000, Refusal.MALFORMED),
        ("9" * 4090, Refusal.MALFORMED),
        ("[]", Refusal.MALFORMED),
        ("\ud800", Refusal.MALFORMED),
        (" " * 4097, Refusal.TOO_LARGE),
        (changed(extra=1), Refusal.MALFORMED),
        (json.dumps({k: v for k, v in GOOD.items() if k != "kem"}), Refusal.MALFORMED),
        (X25519.public.to_json().replace("{", '{"schema": 1,', 1), Refusal.MALFORMED),
        (changed(schema=2), Refusal.MALFORMED),
        (changed(schema=True), Refusal.MALFORMED),
        (changed(schema="1"), Refusal.MALFORMED),
        (changed(ueid=GOOD["ueid"].upper()), Refusal.MALFORMED),
        (changed(ueid=GOOD["ueid"][:-2]), Refusal.MALFORMED),
        (changed(ueid=GOOD["ueid"][:-2] + "0 "), Refusal.MALFORMED),
        (changed(ueid="é" + GOOD["ueid"][1:]), Refusal.MALFORMED),
        (changed(ueid="00" + GOOD["ueid"][2:]), Refusal.SIGNATURE),
        (changed(device_class="camera-v2"), Refusal.SIGNATURE),
        (changed(device_class=""), Refusal.MALFORMED),
        (changed(device_class=["camera-v1"]), Refusal.MALFORMED),
        (changed(device_class="\ud800"), Refusal.MALFORMED),
        (changed(kem=["X25519"]), Refusal.MALFORMED),
        (changed(kem="P-256"), Refusal.MALFORMED),
        (changed(kem=KEM_HYBRID), Refusal.SIGNATURE),
        (changed(kem_public=GOOD["kem_public"] + "\n"), Refusal.MALFORMED),
        (changed(kem_public=GOOD["kem_public"].rstrip("=")), Refusal.MALFORMED),
        (changed(kem_public="ü"), Refusal.MALFORMED),
        (changed(kem_public=5), Refusal.MALFORMED),
        (changed(signing_public="00" * 32), Refusal.SIGNATURE),
        (changed(signature="00" * 64), Refusal.SIGNATURE),
    ],
)
def test_edited_public_identities_are_refused(text: str, refusal: Refusal) -> None:
    refused(refusal, lambda: DevicePublic.from_json(text))


@pytest.mark.parametrize("key", [bytes(32), bytes(31), b"\x01" + bytes(31)])
def test_a_well_signed_identity_with_a_bad_kem_key_is_refused(key: bytes) -> None:
    public = X25519.public
    unsigned = DevicePublic(public.ueid, public.device_class, public.signing_public, KEM_CLASSIC, key, b"")
    text = changed(kem_public=base64.b64encode(key).decode(), signature=X25519.sign(unsigned.signed_bytes()).hex())
    refused(Refusal.KEY, lambda: DevicePublic.from_json(text))


def never() -> str:
    pytest.fail("the passphrase was asked for")


def test_keys_behind_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = seller()
    made.save(folder / "seller.key", PASSPHRASE)
    device = DeviceIdentity.generate("camera-v1", KEM_CLASSIC)
    signer = uri.open_signer((folder / "seller.key").as_uri(), lambda: PASSPHRASE)
    draft = EnvelopeDraft(manifest(device=device), KEYS, device.public.kem, device.public.kem_public)
    envelope = open_envelope(seal_batch([draft], signer)[0], made.root)
    assert envelope.unseal(device.unwrap) == KEYS


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("seller.key", "seller.key"),
        ("./a:b", "./a:b"),
        ("a b%20c", "a b%20c"),
        ("file:seller.key", "seller.key"),
        ("file:a/b%20c", "a/b c"),
        ("file:/srv/key", "/srv/key"),
        ("file:///srv/key", "/srv/key"),
        ("FILE://localhost/srv/key", "/srv/key"),
        ("file:///srv/%C3%BC", "/srv/ü"),
        ("file:///srv/%ff", os.fsdecode(b"/srv/\xff")),
    ],
)
def test_file_uris(text: str, path: str) -> None:
    assert uri.file_path(text) == Path(path)


@pytest.mark.parametrize(
    "text",
    ["", "file:", "file://", "file://host/key", "file:key?x=1", "file:key#x", "file:a%00b", "a\0b", "file://[/x"],
)
def test_file_uris_that_name_no_file(text: str) -> None:
    with pytest.raises(MisuseError):
        uri.open_signer(text, lambda: PASSPHRASE)


def test_unknown_schemes_are_misuse_and_ask_for_nothing() -> None:
    with pytest.raises(MisuseError, match="scheme vault:") as caught:
        uri.open_signer("vault:object=seller", never)
    assert "file:" in (caught.value.hint or "")
    with pytest.raises(RefusedError) as refusal:
        SellerRoot.from_bytes(b"")
    assert refusal.value.refusal is Refusal.KEY
