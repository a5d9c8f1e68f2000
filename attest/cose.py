"""COSE_Sign1 (RFC 9052 section 4.2) by a device's Ed25519 key, one canonical encoding for each token.

    token      CBOR [protected, {}, payload, signature]      tag 18 left out
    protected  CBOR {1: -19 (Ed25519, RFC 9864), 4: kid, 16: typ}
    signed     CBOR ["Signature1", protected, h'', payload]

`typ` (RFC 9596) keeps kinds of token apart: explicit typing, as RFC 8725 section 3.11 asks of JWTs. External data is
empty, so that any verifier of plain CWTs or COSE can check the token.
"""

from __future__ import annotations

from collections.abc import Callable

from variegate.keys import cbor
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.primitives import ed25519_verify
from variegate.keys.signing import ALG_ED25519, key_id

Sign = Callable[[bytes], bytes]
"""Ed25519 (RFC 8032) by the device: message -> 64 bytes."""


def _protected(typ: str, public: bytes) -> bytes:
    return cbor.encode({1: ALG_ED25519, 4: key_id(public), 16: typ})


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor.encode(["Signature1", protected, b"", payload])


def sign1(typ: str, payload: bytes, sign: Sign, public: bytes) -> bytes:
    """Signs a payload.

    Args:
        typ: Media type of the token.
        payload: Any bytes.
        sign: The device's key.
        public: Its public half, 32 bytes.

    Returns:
        The token.
    """
    protected = _protected(typ, public)
    return cbor.encode([protected, {}, payload, sign(_to_be_signed(protected, payload))])


def verify1(typ: str, token: bytes, public: bytes, *, limit: int) -> bytes:
    """Checks a token.

    Args:
        typ: The kind expected.
        token: Hostile bytes.
        public: The device's Ed25519 key, from its enrolment.
        limit: The most bytes accepted.

    Returns:
        The payload.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED`, or `SIGNATURE`; the last also for another key or kind.
    """
    protected, payload, signature = _taken_apart(token, limit)
    good = protected == _protected(typ, public)
    good &= ed25519_verify(public, signature, _to_be_signed(protected, payload))
    if not good:
        raise RefusedError(Refusal.SIGNATURE, "token is not signed by this device")
    return payload


def unverified(token: bytes, *, limit: int) -> bytes:
    """The payload of a token with an unchecked signature, to find out which device it claims to be from.

    Raises:
        RefusedError: `TOO_LARGE` or `MALFORMED`.
    """
    return _taken_apart(token, limit)[1]


def _taken_apart(token: bytes, limit: int) -> tuple[bytes, bytes, bytes]:
    match cbor.decode(token, limit=limit):
        case [bytes(protected), {**unprotected}, bytes(payload), bytes(signature)] if not unprotected:
            return protected, payload, signature
    raise RefusedError(Refusal.MALFORMED, "token does not have the shape of COSE_Sign1")
