"""A device's secret identity: its name, its signing key, and the key to which copies are sealed.

secret     CBOR [1, ueid, device class, Ed25519 seed, KEM name, KEM seed]
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from variegate.keys import cbor, keyfile
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.fields import UEID_BYTES
from variegate.keys.primitives import (
    KEM_HYBRID,
    KEM_NAMES,
    KEM_SEED_BYTES,
    KEY_BYTES,
    hpke_open,
    kem_private,
    kem_public_from_seed,
)
from variegate.keys.public_identity import MAX_CLASS_CHARACTERS, DevicePublic, is_device_class

__all__ = ["DeviceIdentity", "DevicePublic"]

_FORMAT = 1
_UEID_RAND = b"\x01"  # EAT UEID type RAND, RFC 9711 section 4.2.1


class DeviceIdentity:
    """A device's secrets in memory. Its text form shows the ueid only.

    Args:
        ueid: 33 bytes.
        device_class: Kind of device, 1 to 128 printable characters.
        ed25519_seed: 32 bytes.
        kem: One of `primitives.KEM_NAMES`.
        kem_seed: As `primitives.kem_private`.

    Raises:
        RefusedError: `KEY`, when any is out of its range.
    """

    def __init__(self, *, ueid: bytes, device_class: str, ed25519_seed: bytes, kem: str, kem_seed: bytes) -> None:
        if (
            len(ueid) != UEID_BYTES
            or not ueid.startswith(_UEID_RAND)
            or len(ed25519_seed) != KEY_BYTES
            or len(kem_seed) != KEM_SEED_BYTES.get(kem)
            or not is_device_class(device_class)
        ):
            raise RefusedError(Refusal.KEY, "device identity holds a value out of its range")
        self._secret = cbor.encode([_FORMAT, ueid, device_class, ed25519_seed, kem, kem_seed])
        self._signing = Ed25519PrivateKey.from_private_bytes(ed25519_seed)
        self._kem_private = kem_private(kem, kem_seed)
        unsigned = DevicePublic(
            ueid=ueid,
            device_class=device_class,
            signing_public=self._signing.public_key().public_bytes_raw(),
            kem=kem,
            kem_public=kem_public_from_seed(kem_seed),
            signature=b"",
        )
        self._public = replace(unsigned, signature=self._signing.sign(unsigned.signed_bytes()))

    def __repr__(self) -> str:
        return f"<DeviceIdentity {self._public.ueid.hex()}>"

    @classmethod
    def generate(cls, device_class: str, kem: str = KEM_HYBRID) -> DeviceIdentity:
        """A new identity from the system's generator.

        Raises:
            MisuseError: The class is not 1 to 128 printable characters, or the KEM is unknown.
        """
        if not is_device_class(device_class):
            raise MisuseError(f"a device class is 1 to {MAX_CLASS_CHARACTERS} printable characters")
        if kem not in KEM_NAMES:
            raise MisuseError(f"key agreement is one of {', '.join(KEM_NAMES)}")
        return cls(
            ueid=_UEID_RAND + os.urandom(UEID_BYTES - 1),
            device_class=device_class,
            ed25519_seed=os.urandom(KEY_BYTES),
            kem=kem,
            kem_seed=os.urandom(KEM_SEED_BYTES[kem]),
        )

    @property
    def public(self) -> DevicePublic:
        """The public half."""
        return self._public

    @property
    def signing_seed(self) -> bytes:
        """The Ed25519 key's 32 bytes."""
        return self._signing.private_bytes_raw()

    def unwrap(self, sealed: bytes, info: bytes) -> bytes:
        """Opens HPKE `sealed` (enc || ciphertext) under `info`.

        Raises:
            RefusedError: `SEALED`.
        """
        return hpke_open(self._public.kem, self._kem_private, info, sealed)

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes; the caller puts a context of its own before the message."""
        return self._signing.sign(message)

    def to_bytes(self) -> bytes:
        """The secrets in the clear, for sealed storage only."""
        return self._secret

    @classmethod
    def from_bytes(cls, secret: bytes) -> DeviceIdentity:
        """Reads `to_bytes`.

        Raises:
            RefusedError: `KEY`, when it is not a device's.
        """
        try:
            value = cbor.decode(secret, limit=keyfile.MAX_KEY_FILE_BYTES)
        except RefusedError:
            value = None
        match value:
            case [version, bytes(ueid), str(device_class), bytes(ed25519_seed), str(kem), bytes(kem_seed)] if (
                type(version) is int and version == _FORMAT
            ):
                return cls(
                    ueid=ueid,
                    device_class=device_class,
                    ed25519_seed=ed25519_seed,
                    kem=kem,
                    kem_seed=kem_seed,
                )
        raise RefusedError(Refusal.KEY, "secret is not a device identity of format 1")

    def save(self, path: Path, passphrase: str, *, overwrite: bool = False) -> None:
        """Writes the secrets to a key file.

        Raises:
            MisuseError: The passphrase is empty or no text, or the path cannot be taken.
            DeviceError: Storage failed, or there is not enough memory for Argon2id.
        """
        keyfile.save(path, keyfile.KIND_DEVICE, self._secret, passphrase, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path, passphrase: str) -> DeviceIdentity:
        """Reads a key file.

        Raises:
            RefusedError: `KEY` or `TOO_LARGE`, as `keyfile.load`.
            MisuseError: There is no such file, or the passphrase is empty or no text.
            DeviceError: Storage failed, or there is not enough memory for Argon2id.
        """
        return cls.from_bytes(keyfile.load(path, keyfile.KIND_DEVICE, passphrase))
