"""Signed statements: one payload, two COSE_Sign1 (RFC 9052 section 4.2), Ed25519 and ML-DSA-65.

    statement = [ [protected, {}, payload, signature],   Ed25519 over the payload
                  [protected, {}, nil, signature],       ML-DSA-65 over a batch, [size, root], detached
                  size, index, [hash, ...] ]             where the payload stands in that batch

One ML-DSA signature for each statement would limit the speed of a fleet's export, so one covers a batch. It signs the
size and the root of an RFC 9162 (section 2.1) hash tree whose leaves are the payloads, and each statement has its own
path. A single statement is a batch of one. This loses no security: a payload is valid only if its own Ed25519 signature
and the ML-DSA signature of its tree are both valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from variegate.keys import cbor, merkle
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.primitives import HASH_BYTES, ed25519_verify, mldsa65_verify, sha256

ALG_ED25519 = -19
"""Ed25519 (RFC 9864)."""
ALG_ML_DSA_65 = -49
"""ML-DSA-65 (IANA COSE registry)."""
MAX_STATEMENT_BYTES = 64 * 1024
_KID_BYTES = 16
_ED25519_PUBLIC_BYTES = 32
_ML_DSA_65_PUBLIC_BYTES = 1952
_MAX_PATH = 32


@dataclass(frozen=True)
class SellerRoot:
    """The two public keys that a device pins.

    Attributes:
        ed25519: 32 bytes.
        mldsa65: 1,952 bytes.
    """

    ed25519: bytes
    mldsa65: bytes

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of both keys: for comparison by people."""
        return sha256(self.ed25519, self.mldsa65)

    def to_bytes(self) -> bytes:
        """Both keys in a row."""
        return self.ed25519 + self.mldsa65

    @classmethod
    def from_bytes(cls, data: bytes) -> SellerRoot:
        """Reads `to_bytes`.

        Raises:
            RefusedError: `KEY`, when the length is wrong.
        """
        if len(data) != _ED25519_PUBLIC_BYTES + _ML_DSA_65_PUBLIC_BYTES:
            raise RefusedError(Refusal.KEY, "seller root has the wrong length")
        return cls(data[:_ED25519_PUBLIC_BYTES], data[_ED25519_PUBLIC_BYTES:])


class Signer(Protocol):
    """A holder of the seller's signing keys: a file or an HSM."""

    @property
    def root(self) -> SellerRoot:
        """The public keys."""
        ...

    def ed25519(self, message: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes."""
        ...

    def mldsa65(self, message: bytes) -> bytes:
        """An ML-DSA-65 signature, 3,309 bytes."""
        ...


def key_id(public: bytes) -> bytes:
    """COSE `kid`: the first 16 bytes of the SHA-256 of the raw public key."""
    return sha256(public)[:_KID_BYTES]


def _protected(alg: int, public: bytes) -> bytes:
    return cbor.encode({1: alg, 4: key_id(public)})


def _to_be_signed(protected: bytes, context: bytes, payload: bytes) -> bytes:
    """Sig_structure of RFC 9052 section 4.4; `context` is the external data, so kinds never mix."""
    return cbor.encode(["Signature1", protected, context, payload])


def _batch(size: int, root: bytes) -> bytes:
    """The bytes under the batch signature: without the size, one path would fit several sizes."""
    return cbor.encode([size, root])


def sign_batch(context: bytes, payloads: Sequence[bytes], signer: Signer) -> list[bytes]:
    """Signs payloads together.

    Args:
        context: The kind of statement, for example `b"variegate/1/envelope"`.
        payloads: At least one.
        signer: Holder of the keys.

    Returns:
        One encoded statement for each payload, each valid on its own.

    Raises:
        MisuseError: When there is no payload.
    """
    if not payloads:
        raise MisuseError("there is nothing to sign")
    root = signer.root
    tree = merkle.tree([merkle.leaf(payload) for payload in payloads])
    protected_batch = _protected(ALG_ML_DSA_65, root.mldsa65)
    signature = signer.mldsa65(_to_be_signed(protected_batch, context, _batch(len(payloads), tree[-1][0])))
    batch: list[object] = [protected_batch, {}, None, signature]
    protected = _protected(ALG_ED25519, root.ed25519)
    return [
        cbor.encode(
            [
                [protected, {}, payload, signer.ed25519(_to_be_signed(protected, context, payload))],
                batch,
                len(payloads),
                index,
                merkle.path(tree, index),
            ]
        )
        for index, payload in enumerate(payloads)
    ]


def verify(context: bytes, statement: bytes, root: SellerRoot) -> bytes:
    """Checks both signatures of a statement.

    Args:
        context: The kind expected.
        statement: Hostile bytes.
        root: The seller's keys.

    Returns:
        The payload.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`.
    """
    match cbor.decode(statement, limit=MAX_STATEMENT_BYTES):
        case [
            [bytes(protected), {**unprotected}, bytes(payload), bytes(signature)],
            [bytes(protected_batch), {**unprotected_batch}, None, bytes(signature_batch)],
            size,
            index,
            [*path],
        ] if (
            not unprotected
            and not unprotected_batch
            and type(size) is type(index) is int
            and 0 <= index < size
            and len(path) <= _MAX_PATH
            and all(isinstance(node, bytes) and len(node) == HASH_BYTES for node in path)
        ):
            pass
        case _:
            raise RefusedError(Refusal.MALFORMED, "statement does not have the shape of a signed statement")
    # Each signature is checked in full in any case: the refusal does not tell which one failed.
    good = protected == _protected(ALG_ED25519, root.ed25519)
    good &= ed25519_verify(root.ed25519, signature, _to_be_signed(protected, context, payload))
    tree_root = merkle.root_from_path(merkle.leaf(payload), index, size, path)
    good &= tree_root is not None and protected_batch == _protected(ALG_ML_DSA_65, root.mldsa65)
    message = _to_be_signed(protected_batch, context, _batch(size, tree_root or b""))
    good &= mldsa65_verify(root.mldsa65, signature_batch, message)
    if not good:
        raise RefusedError(Refusal.SIGNATURE, "statement is not signed by the seller's root")
    return payload
