"""The envelope: the manifest and the keys sealed to one device, signed by the seller.

envelope = signed statement (see `signing`) with context "variegate/1/envelope" over [manifest, sealed]
sealed   = HPKE to the device's key, info = "variegate/1/sealed/" || SHA-256(manifest), of CEK || seed,
           XOR the broker's share where the manifest names a broker (see `broker`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from variegate.keys import cbor, signing
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import KEY_BYTES, hpke_seal, sha256
from variegate.keys.signing import SellerRoot, Signer

CONTEXT = b"variegate/1/envelope"
SHARE_BYTES = 2 * KEY_BYTES
_SEALED_CONTEXT = b"variegate/1/sealed/"

Unwrap = Callable[[bytes, bytes], bytes]
"""Opens `sealed` under `info` with the device's key: `unwrap(sealed, info) -> plaintext`."""


@dataclass(frozen=True)
class Envelope:
    """An envelope whose signatures held.

    Attributes:
        manifest: Its manifest.
        digest: SHA-256 of the manifest's bytes.
        sealed: The sealed keys, opaque.
    """

    manifest: Manifest
    digest: bytes
    sealed: bytes

    def unseal(self, unwrap: Unwrap, share: bytes | None = None) -> SealedKeys:
        """Opens the keys with the device's key, and a broker's share where the manifest names a broker.

        Args:
            unwrap: Decrypts with the device's key.
            share: 64 bytes, or None without a broker. A wrong one gives wrong keys, which open no component.

        Raises:
            RefusedError: `SEALED`; also when there is a broker and no share, or a share and no broker.
        """
        if (share is None) != (self.manifest.release is None):
            raise RefusedError(Refusal.SEALED, "copy and broker's share do not belong together")
        keys = SealedKeys.from_bytes(unwrap(self.sealed, _SEALED_CONTEXT + self.digest))
        return keys if share is None else keys.masked(share)


@dataclass(frozen=True)
class SealedKeys:
    """The secrets that only the device learns. Never printed.

    Attributes:
        cek: Content encryption key of the component, 32 bytes.
        seed: The rewriter's seed, 32 bytes.
    """

    cek: bytes = field(repr=False)
    seed: bytes = field(repr=False)

    def to_bytes(self) -> bytes:
        """CEK || seed."""
        return self.cek + self.seed

    def masked(self, share: bytes) -> SealedKeys:
        """These keys XOR a share of 64 bytes; twice gives them back.

        Raises:
            RefusedError: `SEALED`, when the share has the wrong length.
        """
        if len(share) != SHARE_BYTES:
            raise RefusedError(Refusal.SEALED, "share has the wrong length")
        return SealedKeys.from_bytes(bytes(a ^ b for a, b in zip(self.to_bytes(), share, strict=True)))

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedKeys:
        """Reads `to_bytes`.

        Raises:
            RefusedError: `SEALED`, when the length is wrong.
        """
        if len(data) != 2 * KEY_BYTES:
            raise RefusedError(Refusal.SEALED, "sealed keys have the wrong length")
        return cls(data[:KEY_BYTES], data[KEY_BYTES:])


@dataclass(frozen=True)
class EnvelopeDraft:
    """What one envelope shall hold.

    Attributes:
        manifest: Its manifest; the `ueid` is the device's.
        keys: The keys to seal.
        kem: The device's key-agreement algorithm.
        kem_public: The device's public key.
    """

    manifest: Manifest
    keys: SealedKeys
    kem: str
    kem_public: bytes = field(repr=False)


def seal_batch(drafts: Sequence[EnvelopeDraft], signer: Signer) -> list[bytes]:
    """Seals and signs envelopes together; each stands on its own afterwards."""
    payloads = []
    for draft in drafts:
        manifest = draft.manifest.to_bytes()
        info = _SEALED_CONTEXT + sha256(manifest)
        sealed = hpke_seal(draft.kem, draft.kem_public, info, draft.keys.to_bytes())
        payloads.append(cbor.encode([manifest, sealed]))
    return signing.sign_batch(CONTEXT, payloads, signer)


def open_envelope(data: bytes, root: SellerRoot) -> Envelope:
    """Checks the signatures, then reads the manifest.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`.
    """
    payload = signing.verify(CONTEXT, data, root)
    match cbor.decode(payload, limit=signing.MAX_STATEMENT_BYTES):
        case [bytes(manifest), bytes(sealed)]:
            return Envelope(Manifest.from_bytes(manifest), sha256(manifest), sealed)
    raise RefusedError(Refusal.MALFORMED, "envelope does not hold a manifest and sealed keys")
