r"""The public half of a device's identity, which it gives the seller.

JSON, see `DevicePublic.to_json`; signed by the device's own Ed25519 key over
"variegate/1/device-identity/" || CBOR [1, ueid, device class, signing key, KEM name, KEM key].

The self-signature shows that the file is whole and that its maker holds the signing key. Enrolment must establish that
this key belongs to a certain device: compare `fingerprint` with the one that the device itself shows.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from variegate.keys import cbor
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.fields import UEID_BYTES
from variegate.keys.primitives import KEM_NAMES, KEY_BYTES, ed25519_verify, hpke_seal, sha256

MAX_PUBLIC_TEXT_BYTES = 4096
MAX_CLASS_CHARACTERS = 128
_FORMAT = 1
_CONTEXT = b"variegate/1/device-identity/"
_SIGNATURE_BYTES = 64
_FIELDS = {"schema", "ueid", "device_class", "signing_public", "kem", "kem_public", "signature"}


@dataclass(frozen=True)
class DevicePublic:
    """The seller's knowledge of a device. Made by `DeviceIdentity.public` or `from_json`.

    Attributes:
        ueid: 33 bytes, 0x01 and 32 random ones (RFC 9711 section 4.2.1).
        device_class: Kind of device, for example "camera-v1".
        signing_public: Ed25519, 32 bytes.
        kem: One of `primitives.KEM_NAMES`.
        kem_public: 32 bytes for X25519, 1,216 (ML-KEM-768 || X25519) for the hybrid.
        signature: The device's Ed25519 signature over all the above, 64 bytes.
    """

    ueid: bytes
    device_class: str
    signing_public: bytes
    kem: str
    kem_public: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of what is signed: for comparison by people."""
        return sha256(self.signed_bytes())

    def to_json(self) -> str:
        """JSON with sorted keys: numbers as such, `kem_public` in base64, other bytes in hexadecimal."""
        value = {
            "schema": _FORMAT,
            "ueid": self.ueid.hex(),
            "device_class": self.device_class,
            "signing_public": self.signing_public.hex(),
            "kem": self.kem,
            "kem_public": base64.b64encode(self.kem_public).decode(),
            "signature": self.signature.hex(),
        }
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> DevicePublic:
        """Reads hostile text.

        Raises:
            RefusedError: `TOO_LARGE`; `MALFORMED`, when it is not the JSON that `to_json` describes; `KEY`,
                when a key is not one; `SIGNATURE`, when the device's signature does not hold.
        """
        value = _object(text)
        if value.keys() != _FIELDS or type(value["schema"]) is not int or value["schema"] != _FORMAT:
            raise RefusedError(Refusal.MALFORMED, "device identity does not have the fields of schema 1")
        device_class, kem = value["device_class"], value["kem"]
        if not isinstance(kem, str) or kem not in KEM_NAMES or not is_device_class(device_class):
            raise RefusedError(Refusal.MALFORMED, "device identity has a class or KEM that is not valid")
        public = cls(
            ueid=_hex(value["ueid"], UEID_BYTES),
            device_class=device_class,
            signing_public=_hex(value["signing_public"], KEY_BYTES),
            kem=kem,
            kem_public=_base64(value["kem_public"]),
            signature=_hex(value["signature"], _SIGNATURE_BYTES),
        )
        if not ed25519_verify(public.signing_public, public.signature, public.signed_bytes()):
            raise RefusedError(Refusal.SIGNATURE, "device identity is damaged or was edited")
        try:
            # A key of small order parses, and fails only when used; enrolment is the time to learn of it.
            hpke_seal(public.kem, public.kem_public, b"", b"")
        except ValueError:
            raise RefusedError(Refusal.KEY, "device identity has a KEM key that is not valid") from None
        return public

    def signed_bytes(self) -> bytes:
        """The bytes that the device signs."""
        fields = [_FORMAT, self.ueid, self.device_class, self.signing_public, self.kem, self.kem_public]
        return _CONTEXT + cbor.encode(fields)


def is_device_class(value: object) -> bool:
    """Whether a device class is 1 to 128 printable characters, as the manifest wants it."""
    return isinstance(value, str) and 1 <= len(value) <= MAX_CLASS_CHARACTERS and value.isprintable()


def _object(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_PUBLIC_TEXT_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"device identity exceeds {MAX_PUBLIC_TEXT_BYTES} bytes")
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise RefusedError(Refusal.MALFORMED, "device identity is not valid JSON") from None
    if not isinstance(value, dict):
        raise RefusedError(Refusal.MALFORMED, "device identity is not a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise RefusedError(Refusal.MALFORMED, "device identity names a field twice")
    return dict(pairs)


def _hex(value: object, length: int) -> bytes:
    """Lower case only, no white space: one text for one identity."""
    if isinstance(value, str) and len(value) == 2 * length:
        try:
            data = bytes.fromhex(value)
        except ValueError:
            data = b""
        if data.hex() == value:
            return data
    raise RefusedError(Refusal.MALFORMED, f"device identity lacks {length} bytes in hexadecimal")


def _base64(value: object) -> bytes:
    if isinstance(value, str):
        try:
            data = base64.b64decode(value, validate=True)
        except ValueError:
            data = b""
        if base64.b64encode(data).decode() == value:
            return data
    raise RefusedError(Refusal.MALFORMED, "device identity has a KEM key that is not in base64")
