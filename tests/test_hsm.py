"""The seller's keys in a real SoftHSM2: nothing comes out, everything that follows from them is the same as before."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.reference import published_seller
from tests.support import softhsm
from tests.support.softhsm import PIN, SoftHsm, parsed, uri

softhsm.need()

import pkcs11  # noqa: E402
from pkcs11 import Attribute, KeyType, ObjectClass  # noqa: E402

from variegate.keys import hsm_objects  # noqa: E402
from variegate.keys import uri as uris  # noqa: E402
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError  # noqa: E402
from variegate.keys.hsm import HsmSeller  # noqa: E402
from variegate.keys.primitives import ed25519_verify, mldsa65_verify  # noqa: E402
from variegate.keys.rotation import follow, hand_over  # noqa: E402
from variegate.keys.seller import Seller  # noqa: E402
from variegate.keys.signing import sign_batch, verify  # noqa: E402

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """Tokens "seller", "other" and two called "twin", here and in children."""
    with softhsm.installed(tmp_path_factory) as made:
        yield made


def session(token: str = "seller") -> Any:
    """A session of the test's own, which may write."""
    found = next(iter(pkcs11.lib(str(softhsm.MODULE)).get_tokens(token_label=token)))
    try:
        return found.open(rw=True, user_pin=PIN)
    except pkcs11.exceptions.UserAlreadyLoggedIn:
        return found.open(rw=True)


def objects(label: str) -> list[Any]:
    kinds = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.SECRET_KEY, ObjectClass.DATA)
    return [o for kind in kinds for o in session().get_objects({Attribute.LABEL: label, Attribute.CLASS: kind})]


def test_derivations_are_the_published_ones(hsm: SoftHsm) -> None:
    """The master secret of the vectors, in the token: same seeds, same content keys."""
    value = json.loads((VECTORS / "derivations.json").read_text("utf-8"))
    known = published_seller()
    held = HsmSeller.create(parsed("vectors"), PIN, secrets=known.secrets())
    assert len(value["buyer_seed"]) > 1
    assert len(value["release_cek"]) > 1
    for entry in value["buyer_seed"]:
        assert held.buyer_seed(entry["buyer"], entry["epoch"]).hex() == entry["seed"]
    for entry in value["release_cek"]:
        assert held.release_cek(entry["release"], entry["cohort"]).hex() == entry["cek"]
    assert held.root == known.root
    assert held.signer.ed25519(b"same") == known.signer.ed25519(b"same")
    for wrong in (("", 0), ("a\n", 0), ("a", -1), ("a", 2**63)):
        with pytest.raises(MisuseError):
            held.buyer_seed(*wrong)


def test_keys_made_in_the_token_sign_what_a_device_checks(hsm: SoftHsm) -> None:
    made = HsmSeller.create(parsed("signs"), PIN)
    assert made.serial == 0
    statement = sign_batch(b"variegate/1/test", [b"one", b"two"], made.signer)[1]
    assert verify(b"variegate/1/test", statement, made.root) == b"two"
    again = HsmSeller.open(parsed("signs"), PIN)
    assert again.root == made.root
    assert again.buyer_seed("acme", 3) == made.buyer_seed("acme", 3)
    assert again.buyer_seed("acme", 3) != made.buyer_seed("acme", 4)
    assert len(made.signer.mldsa65(b"m")) == 3309
    assert mldsa65_verify(made.root.mldsa65, made.signer.mldsa65(b"m"), b"m")
    assert ed25519_verify(made.root.ed25519, made.signer.ed25519(b""), b"")
    assert repr(made) == f"<HsmSeller {made.root.fingerprint.hex()}>"


def test_no_key_comes_out_of_the_token(hsm: SoftHsm) -> None:
    """Asked by another PKCS#11 client with the right PIN, in every way that the standard has."""
    held = HsmSeller.create(parsed("closed"), PIN, secrets=published_seller().secrets())
    kept = [o for o in objects("closed") if o[Attribute.CLASS] in (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY)]
    assert len(kept) == 3
    for key in kept:
        assert key[Attribute.SENSITIVE] is True
        assert key[Attribute.EXTRACTABLE] is False
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            key[Attribute.VALUE]
        for weaker in ({Attribute.SENSITIVE: False}, {Attribute.EXTRACTABLE: True}):
            with pytest.raises(pkcs11.exceptions.PKCS11Error):
                key.copy({**weaker, Attribute.TOKEN: False})
    wrapping = session().generate_key(KeyType.AES, 256, store=False, template={Attribute.WRAP: True})
    for key in objects("closed"):
        if key[Attribute.CLASS] is ObjectClass.SECRET_KEY:
            with pytest.raises(pkcs11.exceptions.PKCS11Error):
                wrapping.wrap_key(key, mechanism=pkcs11.Mechanism.AES_KEY_WRAP)
    (record,) = (o for o in objects("closed") if o[Attribute.CLASS] is ObjectClass.DATA)
    secrets = published_seller().secrets()
    for secret in (secrets.extract, secrets.ed25519_seed, secrets.mldsa65_seed):
        assert secret is not None
        assert secret not in bytes(record[Attribute.VALUE])
        for path in (hsm.folder / "tokens").rglob("*"):
            assert path.is_dir() or secret not in path.read_bytes()
    assert held.root == published_seller().root


def test_the_seller_has_no_secret_in_its_memory_but_the_pin(hsm: SoftHsm) -> None:
    held = HsmSeller.create(parsed("memory"), PIN, secrets=published_seller().secrets())
    held.signer.mldsa65(b"m")
    secrets = published_seller().secrets()
    seen: list[object] = [held]
    for thing in seen:
        inside = getattr(thing, "__dict__", {}).values()
        seen += [value for value in inside if not any(value is other for other in seen)]
    assert PIN in seen
    assert not {secrets.extract, secrets.ed25519_seed, secrets.mldsa65_seed} & {s for s in seen if type(s) is bytes}


def test_what_reopens_keys_crosses_to_a_worker_and_shows_no_secret(hsm: SoftHsm) -> None:
    held, plain = HsmSeller.create(parsed("again"), PIN), published_seller()
    for seller, secret in ((held, PIN), (plain, repr(plain.to_secret())[2:-1])):
        reopener = seller.reopener()
        assert secret not in f"{reopener!r} {reopener} {reopener:}"
        assert "reopen" in repr(reopener).lower()
        assert pickle.loads(pickle.dumps(reopener))().root == seller.root


@pytest.mark.parametrize("quirk", [b"", b"\x04\x20"])
def test_both_forms_of_a_public_point(quirk: bytes) -> None:
    for public in (bytes(range(32)), b"\x04\x20" + bytes(30)):
        assert hsm_objects.raw_point(quirk + public) == public
    for wrong in (b"", bytes(31), bytes(33), bytes(34), b"\x04\x21" + bytes(33)):
        with pytest.raises(DeviceError, match="wrong length"):
            hsm_objects.raw_point(wrong)


def test_objects_that_are_there_or_absent(hsm: SoftHsm) -> None:
    HsmSeller.create(parsed("taken"), PIN)
    before = len(objects("taken"))
    with pytest.raises(MisuseError, match="already"):
        HsmSeller.create(parsed("taken"), PIN)
    assert len(objects("taken")) == before
    with pytest.raises(MisuseError, match="no object absent"):
        HsmSeller.open(parsed("absent"), PIN)
    with pytest.raises(MisuseError, match="no token nowhere"):
        HsmSeller.open(parsed("taken", token="nowhere"), PIN)
    with pytest.raises(MisuseError, match="no object taken"):
        HsmSeller.open(parsed("taken", token="other"), PIN)
    with pytest.raises(MisuseError, match="2 tokens") as caught:
        HsmSeller.open(parsed("taken", token="twin"), PIN)
    assert "serial" in (caught.value.hint or "")
    first, second = (token.serial.decode() for token in pkcs11.lib(str(softhsm.MODULE)).get_tokens(token_label="twin"))
    made = HsmSeller.create(parsed("one", token="twin", more=f";serial={first}"), PIN)
    assert made.token_serial == first
    with pytest.raises(MisuseError, match="no object one"):
        HsmSeller.open(parsed("one", token="twin", more=f";serial={second}"), PIN)
    made.destroy()
    with pytest.raises(MisuseError, match="no object one"):
        HsmSeller.open(parsed("one", token="twin", more=f";serial={first}"), PIN)


@pytest.mark.parametrize("pin", ["", "x" * 256, "pïn", "\udcff"])
def test_what_cannot_be_a_pin_never_reaches_the_token(hsm: SoftHsm, pin: str) -> None:
    with pytest.raises(MisuseError, match="PIN") as caught:
        HsmSeller.open(parsed("any"), pin)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("kept", "used", "says"), [(False, True, "would give out"), (True, False, "does not let")], ids=["weak", "unused"]
)
@pytest.mark.parametrize("which", ["MASTER", "SIGNING", "WRAPPING"])
def test_a_key_of_other_properties_is_refused(hsm: SoftHsm, which: str, kept: bool, used: bool, says: str) -> None:
    label, what = f"{which}-{kept}", getattr(hsm_objects, which)
    HsmSeller.create(parsed(label), PIN)
    mine = session()
    (key,) = mine.get_objects({Attribute.LABEL: label, **what})
    key.destroy()
    names = {Attribute.LABEL: label, Attribute.TOKEN: True, Attribute.SENSITIVE: True, Attribute.PRIVATE: True}
    uses = {Attribute.DECRYPT: used} if which == "WRAPPING" else {Attribute.SIGN: used}
    curve = {Attribute.EC_PARAMS: bytes.fromhex("06032b6570")} if which == "SIGNING" else {}
    mine.create_object({**what, **names, **uses, **curve, Attribute.VALUE: bytes(32), Attribute.EXTRACTABLE: not kept})
    with pytest.raises(RefusedError, match=says) as caught:
        HsmSeller.open(parsed(label), PIN)
    assert caught.value.refusal is Refusal.KEY


@pytest.mark.parametrize("missing", ["master", "signing", "wrapping", "record"])
def test_a_set_that_is_not_whole_is_refused(hsm: SoftHsm, missing: str) -> None:
    label = f"no-{missing}"
    HsmSeller.create(parsed(label), PIN)
    data = {Attribute.CLASS: ObjectClass.DATA}
    templates: dict[str, dict[Any, Any]] = {
        "master": hsm_objects.MASTER,
        "signing": hsm_objects.SIGNING,
        "wrapping": hsm_objects.WRAPPING,
        "record": data,
    }
    (thing,) = session().get_objects({Attribute.LABEL: label, **templates[missing]})
    thing.destroy()
    with pytest.raises(RefusedError, match=f"has 0 of one {missing}") as caught:
        HsmSeller.open(parsed(label), PIN)
    assert caught.value.refusal is Refusal.KEY


def test_a_record_that_was_changed_or_is_anothers_is_refused(hsm: SoftHsm) -> None:
    HsmSeller.create(parsed("mine"), PIN)
    HsmSeller.create(parsed("theirs"), PIN)
    mine = session()
    data = {Attribute.CLASS: ObjectClass.DATA}
    (record,) = mine.get_objects({Attribute.LABEL: "mine", **data})
    (other,) = mine.get_objects({Attribute.LABEL: "theirs", **data})
    good, theirs = bytes(record[Attribute.VALUE]), bytes(other[Attribute.VALUE])

    def put(value: bytes) -> None:
        (found,) = mine.get_objects({Attribute.LABEL: "mine", **data})
        found.destroy()
        kept = {Attribute.TOKEN: True, Attribute.PRIVATE: True, Attribute.APPLICATION: "variegate"}
        mine.create_object({**data, **kept, Attribute.LABEL: "mine", Attribute.VALUE: value})

    # Version, serial, both public keys, nonce, ciphertext, tag: any bit of them.
    flips = [1, 2, 10, 40, 500, len(good) - 60, len(good) - 40, len(good) - 1]
    wrong = [bytes(b ^ (1 if i == at else 0) for i, b in enumerate(good)) for at in flips]
    wrong += [theirs, good[:-1], good + b"\0", b"\x80", b"x" * 5000]
    for value in wrong:
        put(value)
        with pytest.raises(RefusedError) as caught:
            HsmSeller.open(parsed("mine"), PIN)
        assert caught.value.refusal is Refusal.KEY
    put(good)
    HsmSeller.open(parsed("mine"), PIN)


def test_signing_keys_of_another_are_refused(hsm: SoftHsm) -> None:
    HsmSeller.create(parsed("swapped"), PIN)
    mine = session()
    (key,) = mine.get_objects({Attribute.LABEL: "swapped", **hsm_objects.SIGNING})
    key.destroy()
    held = {Attribute.TOKEN: True, Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    value = {Attribute.VALUE: bytes(32), Attribute.EC_PARAMS: bytes.fromhex("06032b6570"), Attribute.SIGN: True}
    mine.create_object({**hsm_objects.SIGNING, **held, **value, Attribute.LABEL: "swapped"})
    with pytest.raises(RefusedError, match="other keys"):
        HsmSeller.open(parsed("swapped"), PIN)


def test_a_broken_start_leaves_nothing(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(HsmSeller, "_check", fails)
    with pytest.raises(InterruptedError):
        HsmSeller.create(parsed("broken"), PIN)
    assert objects("broken") == []


def test_rotation_keeps_the_master_secret_in_the_token(hsm: SoftHsm, tmp_path: Path) -> None:
    old = HsmSeller.create(parsed("first"), PIN)
    new, undo = uris.next_seller(old, uri("second"), lambda: PIN)
    assert new.serial == 1
    assert new.root != old.root
    assert new.buyer_seed("acme", 0) == old.buyer_seed("acme", 0)
    pinned = follow(old.root, 0, hand_over(old.signer, new.serial, new.root))
    assert pinned.root == new.root
    undo()
    assert objects("second") == []
    assert len(objects("first")) == 5
    for where in ("seller.key", uri("third", token="other")):
        with pytest.raises(MisuseError, match="cannot leave its HSM"):
            uris.next_seller(old, where, lambda: PIN)
    assert session("other").get_objects({Attribute.LABEL: "third"}) is not None
    with pytest.raises(MisuseError, match="no object third"):
        HsmSeller.open(parsed("third", token="other"), PIN)


def test_a_key_file_rotates_into_the_token(hsm: SoftHsm) -> None:
    """The way in without ever having had the new signing keys anywhere else."""
    old = Seller.generate().with_new_signing_keys()
    new, _ = uris.next_seller(old, uri("from-file"), lambda: PIN)
    assert new.serial == 2
    assert new.buyer_seed("acme", 7) == old.buyer_seed("acme", 7)
    assert follow(old.root, 1, hand_over(old.signer, new.serial, new.root)).root == new.root


def test_a_refusal_crosses_from_a_worker_whole() -> None:
    error = RefusedError(Refusal.PARITY, "labels differ", hint="look")
    crossed = pickle.loads(pickle.dumps(error))
    assert (crossed.refusal, crossed.message, crossed.hint) == (Refusal.PARITY, "labels differ", "look")
    assert str(crossed) == "labels differ"
