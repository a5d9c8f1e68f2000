"""Every cryptographic primitive that Variegate uses; none is its own.

Names follow the RFCs. Inputs from outside may be bytes of any content and length; a primitive that fails on them raises
`RefusedError` and reveals nothing about secrets.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from variegate.keys.errors import Refusal, RefusedError

KEY_BYTES = 32
TAG_BYTES = 16
HASH_BYTES = 32
KEM_HYBRID = "MLKEM768-X25519"
KEM_CLASSIC = "X25519"
KEM_NAMES = (KEM_HYBRID, KEM_CLASSIC)
_ML_KEM_SEED_BYTES = 64
KEM_SEED_BYTES = {KEM_HYBRID: _ML_KEM_SEED_BYTES + KEY_BYTES, KEM_CLASSIC: KEY_BYTES}
_ML_KEM_PUBLIC_BYTES = 1184
_KEMS = {KEM_HYBRID: hpke.KEM.MLKEM768_X25519, KEM_CLASSIC: hpke.KEM.X25519}

KemPrivateKey = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey
KemPublicKey = X25519PublicKey | hpke.MLKEM768X25519PublicKey


def sha256(*parts: bytes | memoryview) -> bytes:
    """SHA-256 (FIPS 180-4) of the parts in a row, 32 bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def hkdf(key: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256, extract with an empty salt, then expand (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(key)


def hkdf_extract(key: bytes) -> bytes:
    """HKDF-Extract with SHA-256 and an empty salt (RFC 5869 section 2.2), 32 bytes."""
    return HKDF.extract(hashes.SHA256(), None, key)


def hkdf_expand(key: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 section 2.3); `key` is already uniform."""
    return HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(key)


def keystream(key: bytes, length: int) -> bytes:
    """The first `length` bytes of the ChaCha20 keystream, counter and nonce zero (RFC 8439 section 2.4)."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return cipher.update(bytes(length))


def aead(key: bytes) -> AESGCM:
    """AES-256-GCM (NIST SP 800-38D) under a key of 32 bytes."""
    return AESGCM(key)


def aead_open(cipher: AESGCM, nonce: bytes, data: bytes | memoryview, aad: bytes, out: memoryview) -> None:
    """Decrypts into `out`, which is 16 bytes shorter than `data`.

    Raises:
        RefusedError: `COMPONENT`, when the tag does not match.
    """
    try:
        cipher.decrypt_into(nonce, data, aad, out)
    except (InvalidTag, ValueError):
        raise RefusedError(Refusal.COMPONENT, "chunk does not decrypt under this key") from None


def ed25519_verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature (RFC 8032) holds."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def mldsa65_verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an ML-DSA-65 signature (FIPS 204, empty context) holds."""
    try:
        MLDSA65PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def kem_private(kem: str, seed: bytes) -> KemPrivateKey:
    """A private key from its seed: 32 bytes for X25519; 96 (ML-KEM seed || X25519) for the hybrid.

    Raises:
        RefusedError: `KEY`, when the name or the length is wrong.
    """
    try:
        if kem == KEM_CLASSIC:
            return X25519PrivateKey.from_private_bytes(seed)
        if kem == KEM_HYBRID:
            return hpke.MLKEM768X25519PrivateKey(
                MLKEM768PrivateKey.from_seed_bytes(seed[:_ML_KEM_SEED_BYTES]),
                X25519PrivateKey.from_private_bytes(seed[_ML_KEM_SEED_BYTES:]),
            )
    except ValueError:
        raise RefusedError(Refusal.KEY, "key-agreement key has the wrong length") from None
    raise RefusedError(Refusal.KEY, "key-agreement algorithm is unknown")


def kem_public(kem: str, public: bytes) -> KemPublicKey:
    """A public key from its bytes: 32 for X25519; 1,216 (ML-KEM || X25519) for the hybrid.

    Raises:
        RefusedError: `KEY`, when the name, the length or the value is wrong.
    """
    try:
        if kem == KEM_CLASSIC:
            return X25519PublicKey.from_public_bytes(public)
        if kem == KEM_HYBRID:
            return hpke.MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(public[:_ML_KEM_PUBLIC_BYTES]),
                X25519PublicKey.from_public_bytes(public[_ML_KEM_PUBLIC_BYTES:]),
            )
    except ValueError:
        raise RefusedError(Refusal.KEY, "public key-agreement key is not valid") from None
    raise RefusedError(Refusal.KEY, "key-agreement algorithm is unknown")


def kem_public_from_seed(seed: bytes) -> bytes:
    """The public key of a seed that `kem_private` takes: ML-KEM's, when the seed has one, then X25519's."""
    ml_kem, x25519 = seed[:-KEY_BYTES], seed[-KEY_BYTES:]
    public = X25519PrivateKey.from_private_bytes(x25519).public_key().public_bytes_raw()
    if not ml_kem:
        return public
    return MLKEM768PrivateKey.from_seed_bytes(ml_kem).public_key().public_bytes_raw() + public


def hpke_seal(kem: str, public: bytes, info: bytes, plaintext: bytes) -> bytes:
    """HPKE base mode, single shot (RFC 9180 section 6.1), HKDF-SHA256, AES-256-GCM: enc || ciphertext.

    Raises:
        RefusedError: `KEY`, when the public key is not valid or of small order.
    """
    try:
        return _suite(kem).encrypt(plaintext, kem_public(kem, public), info=info)
    except ValueError:
        raise RefusedError(Refusal.KEY, "public key-agreement key is not valid") from None


def hpke_open(kem: str, private: KemPrivateKey, info: bytes, sealed: bytes) -> bytes:
    """The inverse of `hpke_seal`.

    Raises:
        RefusedError: `SEALED`, when it was not sealed to this key and this `info`.
    """
    try:
        return _suite(kem).decrypt(sealed, private, info=info)
    except (InvalidTag, ValueError):
        raise RefusedError(Refusal.SEALED, "sealed keys do not open with this device's key") from None


def _suite(kem: str) -> hpke.Suite:
    if kem not in _KEMS:
        raise RefusedError(Refusal.KEY, "key-agreement algorithm is unknown")
    return hpke.Suite(_KEMS[kem], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
