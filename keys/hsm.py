"""The seller's secrets in an HSM: a PKCS#11 token holds and uses them, instead of a `Seller` in memory.

The master secret is used through HKDF only, and the token holds its extract. The expansion of 32 bytes is one HMAC (RFC
5869 section 2.3: T(1) = HMAC(PRK, info || 1)), so derived keys equal those of `Seller` with the same master secret.
Tokens with ML-DSA (PKCS#11 v3.2) are still rare: the token protects that seed at rest, and the seed is in this
process's memory during a signature.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from pkcs11 import Attribute, Mechanism, exceptions

from variegate.keys import hsm_objects
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.hsm_objects import Heir, Record
from variegate.keys.hsm_token import HsmToken, hsm_calls
from variegate.keys.pkcs11_uri import Pkcs11Uri
from variegate.keys.primitives import KEY_BYTES, ed25519_verify
from variegate.keys.seller import Reopener, SellerSecrets, buyer_info, release_info
from variegate.keys.signing import SellerRoot

_CHECK = b"variegate/1/hsm-check/"
_FIRST_BLOCK = b"\x01"


class HsmSigner:
    """Signing keys in a token; a `signing.Signer`."""

    def __init__(self, signing: Any, wrapping: Any, record: Record) -> None:
        self._signing, self._wrapping, self._record = signing, wrapping, record

    @property
    def root(self) -> SellerRoot:
        """The public keys."""
        return self._record.root

    def ed25519(self, message: bytes) -> bytes:
        """An Ed25519 signature (RFC 8032), 64 bytes, made in the token.

        Raises:
            DeviceError: The token fails or is gone.
        """
        with hsm_calls("sign"):
            return bytes(self._signing.sign(message, mechanism=Mechanism.EDDSA))

    def mldsa65(self, message: bytes) -> bytes:
        """An ML-DSA-65 signature (FIPS 204, hedged, empty context), 3,309 bytes, made in this process.

        Raises:
            RefusedError: `KEY`, when the token's record does not open.
            DeviceError: The token fails or is gone.
        """
        return self.open_mldsa65().sign(message)

    def open_mldsa65(self) -> MLDSA65PrivateKey:
        """Decrypts the ML-DSA seed in the token, and checks that it is the root's.

        Raises:
            RefusedError: `KEY`, when it does not open or is another's.
            DeviceError: The token is gone.
        """
        sealed, gcm = self._record.sealed, self._record.gcm
        try:
            with hsm_calls("decrypt"):
                seed = self._wrapping.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=gcm)
        except DeviceError as error:
            # A wrong tag is CKR_ENCRYPTED_DATA_INVALID by the standard; SoftHSM says CKR_GENERAL_ERROR.
            if isinstance(error.__cause__, exceptions.EncryptedDataInvalid | exceptions.GeneralError):
                raise hsm_objects.damaged() from error
            raise
        private = MLDSA65PrivateKey.from_seed_bytes(seed) if len(seed) == KEY_BYTES else None
        if private is None or private.public_key().public_bytes_raw() != self.root.mldsa65:
            raise hsm_objects.damaged()
        return private


class HsmSeller:
    """The seller's secrets in a token; a `seller.SellerKeys`. Its text form shows the public fingerprint only.

    `open` and `create` make one.
    """

    def __init__(self, where: Pkcs11Uri, pin: str, token: HsmToken, record: Record) -> None:
        self._where, self._pin, self._token, self._record = where, pin, token, record
        self._master = hsm_objects.held(token, where.label, hsm_objects.MASTER, "master key", Attribute.SIGN)
        signing = hsm_objects.held(token, where.label, hsm_objects.SIGNING, "signing key", Attribute.SIGN)
        wrapping = hsm_objects.held(token, where.label, hsm_objects.WRAPPING, "wrapping key", Attribute.DECRYPT)
        self._signer = HsmSigner(signing, wrapping, record)
        self._check()

    def __repr__(self) -> str:
        return f"<HsmSeller {self.root.fingerprint.hex()}>"

    @classmethod
    def open(cls, where: Pkcs11Uri, pin: str) -> HsmSeller:
        """Opens a set made by `create`, and checks that its parts belong together.

        Raises:
            MisuseError: There is no such module, token or object.
            RefusedError: `KEY`: wrong PIN, a key that the token would give out, or a damaged record.
            DeviceError: The token fails or lacks a mechanism.
        """
        with contextlib.ExitStack() as undo:
            token = HsmToken(where, pin)
            undo.callback(token.close)
            if not token.all_of(where.label):
                raise MisuseError(f"token {where.token} holds no object {where.label}", hint="see object in the URI")
            seller = cls(where, pin, token, hsm_objects.read_record(token, where.label))
            undo.pop_all()
        return seller

    @classmethod
    def create(
        cls, where: Pkcs11Uri, pin: str, *, secrets: SellerSecrets | None = None, after: HsmSeller | None = None
    ) -> HsmSeller:
        """Makes a seller's keys in a token, all or none.

        Args:
            where: Token and new label.
            pin: The user's PIN.
            secrets: The secrets to import; seeds that it lacks, and all of it when it is None, the token makes itself.
            after: The seller in the same token whose master secret is kept, under new signing keys and the next
                serial. Not together with `secrets`.

        Raises:
            MisuseError: The label is taken, there is no such token, or `after` lives in another.
            RefusedError: `KEY`: wrong PIN.
            DeviceError: The token fails, is full, or lacks a mechanism.
        """
        objects: list[Any] = []
        with contextlib.ExitStack() as undo:
            token = HsmToken(where, pin, writes=True)
            undo.callback(token.close)
            if token.all_of(where.label):
                hint = "choose another; what is left of a broken start can be removed with pkcs11-tool"
                raise MisuseError(f"token {where.token} holds an object {where.label} already", hint=hint)
            if after is not None and after.token_serial != token.serial:
                hint = "rotate into another object of the same token"
                raise MisuseError("master secret cannot leave its HSM", hint=hint)
            undo.callback(_remove, objects)
            heir = None if after is None else Heir(after.label, after.serial + 1)
            record = hsm_objects.make(token, where.label, secrets, objects, after=heir)
            seller = cls(where, pin, token, record)
            undo.pop_all()
        return seller

    @property
    def serial(self) -> int:
        """How often the signing keys have been rotated."""
        return self._record.serial

    @property
    def signer(self) -> HsmSigner:
        """The signing keys."""
        return self._signer

    @property
    def root(self) -> SellerRoot:
        """The public keys that devices pin."""
        return self._record.root

    @property
    def label(self) -> str:
        """The label of its objects."""
        return self._where.label

    @property
    def token_serial(self) -> str:
        """The token's serial number."""
        return self._token.serial

    def buyer_seed(self, buyer: str, epoch: int) -> bytes:
        """k_i, as `Seller.buyer_seed`, expanded in the token.

        Raises:
            MisuseError: An argument is out of its range.
            DeviceError: The token fails or is gone.
        """
        return self._expand(buyer_info(buyer, epoch))

    def release_cek(self, release: str, cohort: str) -> bytes:
        """A cohort's content key, as `Seller.release_cek`, expanded in the token; errors as `buyer_seed`."""
        return self._expand(release_info(release, cohort))

    def reopener(self) -> Callable[[], HsmSeller]:
        """Opens the same keys in a worker process of the same user. It holds the PIN: never for a disk."""
        return Reopener(HsmSeller.open, (self._where, self._pin))

    def close(self) -> None:
        """Ends its session with the token."""
        self._token.close()

    def destroy(self) -> None:
        """Removes all its objects from the token, when it was just made and is not wanted after all.

        Raises:
            DeviceError: The token fails, or its session only reads.
        """
        for thing in self._token.all_of(self._where.label):
            with hsm_calls("remove"):
                thing.destroy()

    def _expand(self, info: bytes) -> bytes:
        with hsm_calls("derive"):
            return bytes(self._master.sign(info + _FIRST_BLOCK, mechanism=Mechanism.SHA256_HMAC))

    def _check(self) -> None:
        """That the private keys are the root's: a mixed-up set would seal copies that no device takes."""
        self._signer.open_mldsa65()
        message = _CHECK + os.urandom(KEY_BYTES)
        if not ed25519_verify(self.root.ed25519, self._signer.ed25519(message), message):
            raise hsm_objects.damaged()


def _remove(objects: list[Any]) -> None:
    for thing in objects:
        with contextlib.suppress(exceptions.PKCS11Error):
            thing.destroy()
