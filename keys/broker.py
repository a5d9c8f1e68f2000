"""A key broker's keys, and the sealing of a copy so that it opens only with the broker's help.

share     64 random bytes, one for each envelope; (CEK || seed) XOR share is sealed to the device
release   [broker's key id, HPKE to the broker's key of share], in the manifest;
          info = "variegate/1/share/" || SHA-256(the same manifest without its release)

The device has one half and the broker the key to the other, so neither can open a copy alone. Sealing needs the
broker's public key only, and the broker keeps nothing for each copy.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from variegate.keys import cbor, keyfile
from variegate.keys.envelope import SHARE_BYTES, SealedKeys
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.manifest import BROKER_ID_BYTES, Manifest, Release
from variegate.keys.primitives import (
    KEM_HYBRID,
    KEM_NAMES,
    KEM_SEED_BYTES,
    hpke_open,
    hpke_seal,
    kem_private,
    kem_public_from_seed,
    sha256,
)

MAX_PUBLIC_BYTES = 4096
_FORMAT = 1
_ID_CONTEXT = b"variegate/1/broker/"
_SHARE_CONTEXT = b"variegate/1/share/"
_FIELDS = {"schema", "kem", "kem_public"}


@dataclass(frozen=True)
class BrokerPublic:
    """The public part of a broker, for which the seller seals copies.

    Attributes:
        kem: One of `primitives.KEM_NAMES`.
        kem_public: The public key.
    """

    kem: str
    kem_public: bytes = field(repr=False)

    @property
    def id(self) -> bytes:
        """16 bytes that name the key in manifests."""
        return sha256(_ID_CONTEXT, cbor.encode([_FORMAT, self.kem, self.kem_public]))[:BROKER_ID_BYTES]

    def to_json(self) -> str:
        """JSON with sorted keys; `kem_public` in base64."""
        public = base64.b64encode(self.kem_public).decode()
        value = {"schema": _FORMAT, "kem": self.kem, "kem_public": public}
        return json.dumps(value, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> BrokerPublic:
        """Reads `to_json`.

        Raises:
            RefusedError: `TOO_LARGE`; `MALFORMED`, when it is not that JSON; `KEY`, when the key is not valid.
        """
        if len(text) > MAX_PUBLIC_BYTES:
            raise RefusedError(Refusal.TOO_LARGE, f"broker's public key exceeds {MAX_PUBLIC_BYTES} bytes")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if (
            not isinstance(value, dict)
            or value.keys() != _FIELDS
            or type(value["schema"]) is not int
            or value["schema"] != _FORMAT
            or value["kem"] not in KEM_NAMES
            or not isinstance(value["kem_public"], str)
        ):
            raise RefusedError(Refusal.MALFORMED, "file is not a broker's public key of schema 1")
        try:
            public = cls(value["kem"], base64.b64decode(value["kem_public"], validate=True))
        except ValueError:
            raise RefusedError(Refusal.MALFORMED, "broker's public key is not in base64") from None
        # A key of small order parses and fails only when used; this is the time to learn of it.
        hpke_seal(public.kem, public.kem_public, b"", b"")
        return public

    def split(self, manifest: Manifest, keys: SealedKeys) -> tuple[Manifest, SealedKeys]:
        """Makes a copy depend on this broker.

        Args:
            manifest: Without a release.
            keys: The keys that open the copy.

        Returns:
            The manifest to sign, and the bytes to seal to the device instead of `keys`.

        Raises:
            MisuseError: The manifest has a release already.
        """
        if manifest.release is not None:
            raise MisuseError("this copy depends on a broker already")
        share = os.urandom(SHARE_BYTES)
        sealed = hpke_seal(self.kem, self.kem_public, _info(manifest), share)
        return replace(manifest, release=Release(self.id, sealed)), keys.masked(share)


class BrokerKey:
    """A broker's secret key, drawn at random: a broker is online, and shall hold nothing that leads to the master.

    Args:
        kem: One of `primitives.KEM_NAMES`.
        seed: As `primitives.kem_private`.

    Raises:
        RefusedError: `KEY`, when either is out of its range.
    """

    def __init__(self, kem: str, seed: bytes) -> None:
        if len(seed) != KEM_SEED_BYTES.get(kem):
            raise RefusedError(Refusal.KEY, "broker key holds a value out of its range")
        self._secret = cbor.encode([_FORMAT, kem, seed])
        self._private = kem_private(kem, seed)
        self.public = BrokerPublic(kem, kem_public_from_seed(seed))

    def __repr__(self) -> str:
        return f"<BrokerKey {self.public.id.hex()}>"

    @classmethod
    def generate(cls, kem: str = KEM_HYBRID) -> BrokerKey:
        """A new key from the system's generator.

        Raises:
            MisuseError: The KEM is unknown.
        """
        if kem not in KEM_SEED_BYTES:
            raise MisuseError(f"key agreement is one of {', '.join(KEM_NAMES)}")
        return cls(kem, os.urandom(KEM_SEED_BYTES[kem]))

    def share_of(self, manifest: Manifest) -> bytes:
        """The share of a copy, 64 bytes.

        Raises:
            RefusedError: `SEALED`, when the copy does not depend on this broker, or the share is another manifest's.
        """
        release = manifest.release
        if release is None or release.broker != self.public.id:
            raise RefusedError(Refusal.SEALED, "copy does not depend on this broker's key")
        share = hpke_open(self.public.kem, self._private, _info(replace(manifest, release=None)), release.sealed)
        if len(share) != SHARE_BYTES:
            raise RefusedError(Refusal.SEALED, "share has the wrong length")
        return share

    def save(self, path: Path, passphrase: str) -> None:
        """Writes the secret to a key file; errors as `keyfile.save`."""
        keyfile.save(path, keyfile.KIND_BROKER, self._secret, passphrase)

    @classmethod
    def load(cls, path: Path, passphrase: str) -> BrokerKey:
        """Reads a key file; errors as `keyfile.load`."""
        return cls.from_secret(keyfile.load(path, keyfile.KIND_BROKER, passphrase))

    @classmethod
    def from_secret(cls, secret: bytes) -> BrokerKey:
        """Reads the plaintext of a key file.

        Raises:
            RefusedError: `KEY`, when it is not a broker's.
        """
        try:
            value = cbor.decode(secret, limit=keyfile.MAX_KEY_FILE_BYTES)
        except RefusedError:
            value = None
        match value:
            case [version, str(kem), bytes(seed)] if type(version) is int and version == _FORMAT:
                return cls(kem, seed)
        raise RefusedError(Refusal.KEY, "key file does not hold a broker key of format 1")


def _info(manifest: Manifest) -> bytes:
    """Binds a share to its manifest, except for the field that will hold it."""
    return _SHARE_CONTEXT + sha256(manifest.to_bytes())
