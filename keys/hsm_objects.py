r"""The objects in a token that hold a seller's secrets: defines, makes and finds them.

All objects carry the seller's label, the keys are sensitive and not extractable.

    private key   Ed25519; signs in the token (CKM_EDDSA)
    secret key    32 bytes, the HKDF-Extract of the master secret; HKDF-Expand runs in the token (CKM_SHA256_HMAC)
    secret key    AES-256; encrypts the ML-DSA-65 seed in the token (CKM_AES_GCM)
    data          CBOR [1, serial, Ed25519 public (32), ML-DSA-65 public (1,952), nonce (12), seed and tag (48)];
                  associated data: "variegate/1/hsm/" || CBOR of the first four
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass

from variegate.keys import cbor
from variegate.keys.errors import DeviceError, Refusal, RefusedError
from variegate.keys.hsm_token import HsmToken, hsm_calls
from variegate.keys.primitives import KEY_BYTES, TAG_BYTES
from variegate.keys.seller import MAX_SERIAL, SellerSecrets
from variegate.keys.signing import SellerRoot

_Template = dict[Attribute, object]

_FORMAT = 1
_CONTEXT = b"variegate/1/hsm/"
_APPLICATION = "variegate"
_MAX_RECORD = 4096
_NONCE_BYTES = 12
_ID_BYTES = 16
_ED25519_OID = bytes.fromhex("06032b6570")  # 1.3.101.112 (RFC 8410 section 3)
_OCTET_STRING = b"\x04\x20"
_HELD: _Template = {
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}
MASTER: _Template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET}
WRAPPING: _Template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
SIGNING: _Template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: KeyType.EC_EDWARDS}
_RECORD: _Template = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: _APPLICATION}


@dataclass(frozen=True)
class Record:
    """The record that the token keeps beside the keys.

    Attributes:
        serial: How often the signing keys have been rotated.
        root: The public keys.
        nonce: Of AES-GCM, 12 bytes.
        sealed: The ML-DSA-65 seed, encrypted, and the tag; 48 bytes.
    """

    serial: int
    root: SellerRoot
    nonce: bytes
    sealed: bytes = field(repr=False)

    @property
    def gcm(self) -> GCMParams:
        """How the seed is sealed: bound to the root and the serial."""
        bound = _CONTEXT + cbor.encode([_FORMAT, self.serial, self.root.ed25519, self.root.mldsa65])
        return GCMParams(self.nonce, bound, 8 * TAG_BYTES)

    def to_bytes(self) -> bytes:
        """As it stands in the token."""
        return cbor.encode([_FORMAT, self.serial, self.root.ed25519, self.root.mldsa65, self.nonce, self.sealed])

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Reads `to_bytes`.

        Raises:
            RefusedError: `KEY`.
        """
        try:
            value = cbor.decode(data, limit=_MAX_RECORD)
        except RefusedError:
            value = None
        match value:
            case [version, serial, bytes(ed25519), bytes(mldsa65), bytes(nonce), bytes(sealed)] if (
                type(version) is type(serial) is int
                and version == _FORMAT
                and 0 <= serial < MAX_SERIAL
                and len(nonce) == _NONCE_BYTES
                and len(sealed) == KEY_BYTES + TAG_BYTES
            ):
                return cls(serial, SellerRoot.from_bytes(ed25519 + mldsa65), nonce, sealed)
        raise damaged()


class Heir(NamedTuple):
    """Where new signing keys get their master key from.

    Attributes:
        label: Of the objects so far.
        serial: Of the new keys.
    """

    label: str
    serial: int


def make(token: HsmToken, label: str, secrets: SellerSecrets | None, made: list[Any], *, after: Heir | None) -> Record:
    """Makes a seller's objects, the record last: a set with a record is whole.

    Args:
        token: A token with a session that may write.
        label: Of all of them.
        secrets: The secrets to import; the token makes what is missing.
        made: Gets every object as it is made, so that the caller can take a broken start back.
        after: The set whose master key is copied instead, and the serial; then there are no `secrets`.

    Raises:
        DeviceError: The token fails.
    """
    session = token.session
    names: _Template = {Attribute.LABEL: label, Attribute.ID: os.urandom(_ID_BYTES)}
    signs: _Template = {**_HELD, **names, Attribute.SIGN: True}
    with hsm_calls("make keys"):
        if after is not None:
            # By this session's own handle: the one that opened the old keys only reads.
            source = token.find(after.label, MASTER)
            if len(source) != 1:
                raise DeviceError("the HSM does not find the master key again")
            made.append(source[0].copy({**names, Attribute.TOKEN: True}))
        elif secrets is not None:
            made.append(session.create_object({**MASTER, **signs, Attribute.VALUE: secrets.extract}))
        else:
            made.append(session.generate_key(KeyType.GENERIC_SECRET, 8 * KEY_BYTES, template=signs, store=True))
        public = _signing_key(session, None if secrets is None else secrets.ed25519_seed, names, signs, made)
        uses: _Template = {Attribute.ENCRYPT: True, Attribute.DECRYPT: True}
        wrapping = session.generate_key(KeyType.AES, 8 * KEY_BYTES, template={**_HELD, **names, **uses}, store=True)
        made.append(wrapping)
        given = None if secrets is None else secrets.mldsa65_seed
        seed = bytes(session.generate_random(8 * KEY_BYTES)) if given is None else given
        mldsa65 = MLDSA65PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
        serial = after.serial if after is not None else 0 if secrets is None else secrets.serial
        record = Record(serial, SellerRoot(public, mldsa65), os.urandom(_NONCE_BYTES), b"")
        sealed = bytes(wrapping.encrypt(seed, mechanism=Mechanism.AES_GCM, mechanism_param=record.gcm))
        record = replace(record, sealed=sealed)
        template: _Template = {Attribute.TOKEN: True, Attribute.PRIVATE: True, Attribute.LABEL: label}
        made.append(session.create_object({**_RECORD, **template, Attribute.VALUE: record.to_bytes()}))
    return record


def read_record(token: HsmToken, label: str) -> Record:
    """The record of a seller.

    Raises:
        RefusedError: `KEY`, when there is none, or it is damaged.
        DeviceError: The token fails.
    """
    record = _one(token, label, _RECORD, "record")
    with hsm_calls("read"):
        data = bytes(record[Attribute.VALUE])
    return Record.from_bytes(data)


def held(token: HsmToken, label: str, template: _Template, what: str, use: Attribute) -> Any:
    """The one key of a kind, when the token keeps it to itself and lets it be used.

    Raises:
        RefusedError: `KEY`, when there is none, the token would give it out, or it is not for this use.
        DeviceError: The token fails.
    """
    key = _one(token, label, template, what)
    with hsm_calls("read"):
        kept = key[Attribute.SENSITIVE] is True and key[Attribute.EXTRACTABLE] is False
        usable = key[use] is True
    if not kept:
        raise RefusedError(Refusal.KEY, f"token would give out the {what} of {label}")
    if not usable:
        raise RefusedError(Refusal.KEY, f"token does not let the {what} of {label} be used")
    return key


def damaged() -> RefusedError:
    """The error for parts that do not belong together."""
    return RefusedError(Refusal.KEY, "record in the token is damaged or belongs to other keys")


def _signing_key(session: Any, seed: bytes | None, names: _Template, signs: _Template, made: list[Any]) -> bytes:
    """Makes the Ed25519 key, or brings it in; the public key, 32 bytes."""
    if seed is not None:
        values: _Template = {Attribute.EC_PARAMS: _ED25519_OID, Attribute.VALUE: seed}
        made.append(session.create_object({**SIGNING, **signs, **values}))
        return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    curve = session.create_domain_parameters(KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519_OID}, local=True)
    pair = curve.generate_keypair(
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, public_template=names, private_template=signs
    )
    made += pair
    return raw_point(bytes(pair[0][Attribute.EC_POINT]))


def raw_point(point: bytes) -> bytes:
    """An Ed25519 public key, 32 bytes, from CKA_EC_POINT: raw, or within an OCTET STRING as SoftHSM has it.

    Raises:
        DeviceError: It is neither.
    """
    wrapped = len(point) == KEY_BYTES + len(_OCTET_STRING) and point.startswith(_OCTET_STRING)
    raw = point.removeprefix(_OCTET_STRING) if wrapped else point
    if len(raw) != KEY_BYTES:
        raise DeviceError("the HSM gives an Ed25519 public key of the wrong length")
    return raw


def _one(token: HsmToken, label: str, template: _Template, what: str) -> Any:
    objects = token.find(label, template)
    if len(objects) != 1:
        hint = "this program did not make it, or did not finish it"
        raise RefusedError(Refusal.KEY, f"object {label} has {len(objects)} of one {what}", hint=hint)
    return objects[0]
