"""HPKE opened by hand from RFC 9180 and the X-Wing draft, as the README of `keys/` describes it."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC, KEM_HYBRID, hpke_seal

VERSION = b"HPKE-v1"
X_WING_LABEL = rb"\.//^" + b"\\"


def extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    """LabeledExtract, RFC 9180 section 4."""
    return hmac.new(salt or bytes(32), VERSION + suite + label + key, hashlib.sha256).digest()


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand, RFC 9180 section 4, for at most 32 bytes."""
    labelled = length.to_bytes(2, "big") + VERSION + suite + label + info
    return hmac.new(key, labelled + b"\x01", hashlib.sha256).digest()[:length]


def dh_kem(seed: bytes, enc: bytes) -> bytes:
    """Decap of DHKEM(X25519, HKDF-SHA256), RFC 9180 section 4.1."""
    private = X25519PrivateKey.from_private_bytes(seed)
    suite = b"KEM\x00\x20"
    prk = extract(suite, b"", b"eae_prk", private.exchange(X25519PublicKey.from_public_bytes(enc)))
    context = enc + private.public_key().public_bytes_raw()
    return expand(suite, prk, b"shared_secret", context, 32)


def x_wing(seed: bytes, enc: bytes) -> bytes:
    """Decapsulate of draft-connolly-cfrg-xwing-kem section 5.5, with both private keys given."""
    private = X25519PrivateKey.from_private_bytes(seed[64:])
    first = MLKEM768PrivateKey.from_seed_bytes(seed[:64]).decapsulate(enc[:1088])
    second = private.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    own = private.public_key().public_bytes_raw()
    return hashlib.sha3_256(first + second + enc[1088:] + own + X_WING_LABEL).digest()


@pytest.mark.parametrize(
    ("kem", "kem_id", "enc_bytes"), [(KEM_CLASSIC, b"\x00\x20", 32), (KEM_HYBRID, b"\x64\x7a", 1120)]
)
def test_sealed_keys_open_by_hand(kem: str, kem_id: bytes, enc_bytes: int) -> None:
    device = DeviceIdentity.generate("camera-v1", kem)
    sealed = hpke_seal(kem, device.public.kem_public, b"the info", bytes(range(64)))
    assert len(sealed) == enc_bytes + 64 + 16
    seed = seed_of(device)
    shared = (dh_kem if kem == KEM_CLASSIC else x_wing)(seed, sealed[:enc_bytes])
    suite = b"HPKE" + kem_id + b"\x00\x01\x00\x02"
    context = b"\x00" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", b"the info")
    secret = extract(suite, shared, b"secret", b"")
    key = expand(suite, secret, b"key", context, 32)
    nonce = expand(suite, secret, b"base_nonce", context, 12)
    assert AESGCM(key).decrypt(nonce, sealed[enc_bytes:], b"") == bytes(range(64))


def seed_of(device: DeviceIdentity) -> bytes:
    """The last field of the identity's CBOR."""
    return device.to_bytes()[-(96 if device.public.kem == KEM_HYBRID else 32) :]
