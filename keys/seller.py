"""The seller's secrets: the master secret, from which every buyer's seed is derived, and the signing keys."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from variegate.keys import cbor, keyfile
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.primitives import KEY_BYTES, hkdf, hkdf_extract
from variegate.keys.signing import SellerRoot, Signer

MAX_SERIAL = (1 << 63) - 1
_FORMAT = 1
_BUYER_SEED = b"variegate/1/buyer-seed/"
_RELEASE_CEK = b"variegate/1/release-cek/"
_MAX_TEXT = 128


class SellerKeys(Protocol):
    """A holder of the seller's secrets: a key file's content in memory, or an HSM."""

    @property
    def serial(self) -> int:
        """How often the signing keys have been rotated."""
        ...

    @property
    def signer(self) -> Signer:
        """The signing keys."""
        ...

    @property
    def root(self) -> SellerRoot:
        """The public keys that devices pin."""
        ...

    def buyer_seed(self, buyer: str, epoch: int) -> bytes:
        """A buyer's seed for one epoch, 32 bytes; see `Seller.buyer_seed`."""
        ...

    def release_cek(self, release: str, cohort: str) -> bytes:
        """A cohort's content key, 32 bytes; see `Seller.release_cek`."""
        ...

    def reopener(self) -> Callable[[], SellerKeys]:
        """Opens the same secrets in a worker process of the same user. It holds secrets: never for a disk."""
        ...


_Keys_co = TypeVar("_Keys_co", covariant=True)


@dataclass(frozen=True)
class Reopener(Generic[_Keys_co]):
    """A call with secrets that crosses to a worker process. Unlike a `partial`, its text form does not show them.

    Attributes:
        call: The function that opens the keys.
        arguments: Its arguments.
    """

    call: Callable[..., _Keys_co]
    arguments: tuple[object, ...] = field(repr=False)

    def __call__(self) -> _Keys_co:
        """Opens the keys; raises what `call` raises."""
        return self.call(*self.arguments)


@dataclass(frozen=True)
class SellerSecrets:
    """The secrets that an HSM imports.

    Attributes:
        serial: How often the signing keys have been rotated.
        extract: HKDF-Extract of the master secret, 32 bytes: all that derivations need of it.
        ed25519_seed: 32 bytes, or None for a key that the HSM makes.
        mldsa65_seed: 32 bytes, or None for a seed that the HSM draws.
    """

    serial: int
    extract: bytes = field(repr=False)
    ed25519_seed: bytes | None = field(default=None, repr=False)
    mldsa65_seed: bytes | None = field(default=None, repr=False)


class SoftwareSigner:
    """Signing keys held in this process; a `signing.Signer`."""

    def __init__(self, ed25519_seed: bytes, mldsa65_seed: bytes) -> None:
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(ed25519_seed)
        self._mldsa65 = MLDSA65PrivateKey.from_seed_bytes(mldsa65_seed)
        self._root = SellerRoot(
            self._ed25519.public_key().public_bytes_raw(), self._mldsa65.public_key().public_bytes_raw()
        )

    @property
    def root(self) -> SellerRoot:
        """The public keys."""
        return self._root

    def ed25519(self, message: bytes) -> bytes:
        """An Ed25519 signature (RFC 8032), 64 bytes."""
        return self._ed25519.sign(message)

    def mldsa65(self, message: bytes) -> bytes:
        """An ML-DSA-65 signature (FIPS 204, hedged, empty context), 3,309 bytes."""
        return self._mldsa65.sign(message)


class Seller:
    """The seller's secrets in memory. Its text form shows the public fingerprint only.

    Args:
        serial: How often the signing keys have been rotated.
        master: Master secret k, 32 bytes; outlives rotations, so that copies stay reproducible.
        ed25519_seed: 32 bytes.
        mldsa65_seed: 32 bytes (xi of FIPS 204).

    Raises:
        RefusedError: `KEY`, when a length is wrong.
    """

    def __init__(self, *, serial: int, master: bytes, ed25519_seed: bytes, mldsa65_seed: bytes) -> None:
        if any(len(secret) != KEY_BYTES for secret in (master, ed25519_seed, mldsa65_seed)):
            raise RefusedError(Refusal.KEY, "seller key has the wrong length")
        self._serial = serial
        self._master = master
        self._seeds = (ed25519_seed, mldsa65_seed)
        self._signer = SoftwareSigner(ed25519_seed, mldsa65_seed)

    def __repr__(self) -> str:
        return f"<Seller {self.root.fingerprint.hex()}>"

    @classmethod
    def generate(cls) -> Seller:
        """New secrets from the system's generator."""
        return cls(
            serial=0,
            master=os.urandom(KEY_BYTES),
            ed25519_seed=os.urandom(KEY_BYTES),
            mldsa65_seed=os.urandom(KEY_BYTES),
        )

    @property
    def serial(self) -> int:
        """How often the signing keys have been rotated."""
        return self._serial

    @property
    def signer(self) -> SoftwareSigner:
        """The signing keys."""
        return self._signer

    @property
    def root(self) -> SellerRoot:
        """The public keys that devices pin."""
        return self._signer.root

    def with_new_signing_keys(self) -> Seller:
        """The same master secret with new signing keys and the next serial; see `rotation.rotate`."""
        return Seller(
            serial=self._serial + 1,
            master=self._master,
            ed25519_seed=os.urandom(KEY_BYTES),
            mldsa65_seed=os.urandom(KEY_BYTES),
        )

    def buyer_seed(self, buyer: str, epoch: int) -> bytes:
        """k_i, a buyer's seed for one epoch, 32 bytes: HKDF of the master secret.

        Args:
            buyer: Buyer id, 1 to 128 printable characters, as in the manifest.
            epoch: Key epoch, from 0.

        Raises:
            MisuseError: An argument is out of its range.
        """
        return hkdf(self._master, buyer_info(buyer, epoch))

    def release_cek(self, release: str, cohort: str) -> bytes:
        """The content encryption key of a component that a cohort shares, 32 bytes.

        The same arguments give the same key for ever. A component id under it must therefore stand for one
        payload only: derive the id from the payload, or draw it at random; two payloads under one key and id
        would repeat AES-GCM nonces.

        Raises:
            MisuseError: An argument is not 1 to 128 printable characters.
        """
        return hkdf(self._master, release_info(release, cohort))

    def reopener(self) -> Callable[[], Seller]:
        """Makes the same seller in a worker process of the same user. It holds the secrets: never for a disk."""
        return Reopener(Seller.from_secret, (self.to_secret(),))

    def secrets(self) -> SellerSecrets:
        """The secrets that an HSM imports for this seller."""
        return SellerSecrets(self._serial, hkdf_extract(self._master), *self._seeds)

    def to_secret(self) -> bytes:
        """The plaintext of a key file, for a worker process of the same user; never for a disk."""
        return cbor.encode([_FORMAT, self._serial, self._master, *self._seeds])

    def save(self, path: Path, passphrase: str, *, overwrite: bool = False) -> None:
        """Writes the secrets to a key file.

        Raises:
            MisuseError: The passphrase is empty or no text, or the path cannot be taken.
            DeviceError: Storage failed, or there is not enough memory for Argon2id.
        """
        keyfile.save(path, keyfile.KIND_SELLER, self.to_secret(), passphrase, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path, passphrase: str) -> Seller:
        """Reads a key file.

        Raises:
            RefusedError: `KEY` or `TOO_LARGE`, as `keyfile.load`.
            MisuseError: There is no such file, or the passphrase is empty or no text.
            DeviceError: Storage failed, or there is not enough memory for Argon2id.
        """
        return cls.from_secret(keyfile.load(path, keyfile.KIND_SELLER, passphrase))

    @classmethod
    def from_secret(cls, secret: bytes) -> Seller:
        """Reads the plaintext of a key file.

        Raises:
            RefusedError: `KEY`, when it is not a seller's.
        """
        try:
            value = cbor.decode(secret, limit=keyfile.MAX_KEY_FILE_BYTES)
        except RefusedError:
            value = None
        match value:
            case [version, serial, bytes(master), bytes(ed25519_seed), bytes(mldsa65_seed)] if (
                type(version) is int and version == _FORMAT and type(serial) is int and 0 <= serial < MAX_SERIAL
            ):
                return cls(serial=serial, master=master, ed25519_seed=ed25519_seed, mldsa65_seed=mldsa65_seed)
        raise RefusedError(Refusal.KEY, "key file does not hold a seller key of format 1")


def buyer_info(buyer: str, epoch: int) -> bytes:
    """The `info` of a buyer's seed; arguments and errors as `Seller.buyer_seed`."""
    if type(epoch) is not int or not 0 <= epoch <= MAX_SERIAL:
        raise MisuseError("an epoch is a whole number from 0")
    return _BUYER_SEED + cbor.encode([_name(buyer, "buyer id"), epoch])


def release_info(release: str, cohort: str) -> bytes:
    """The `info` of a cohort's content key; arguments and errors as `Seller.release_cek`."""
    return _RELEASE_CEK + cbor.encode([_name(release, "release"), _name(cohort, "cohort")])


def _name(value: str, what: str) -> str:
    if not 1 <= len(value) <= _MAX_TEXT or not value.isprintable():
        raise MisuseError(f"a {what} is 1 to {_MAX_TEXT} printable characters")
    return value
