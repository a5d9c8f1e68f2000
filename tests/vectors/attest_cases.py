"""Evidence and receipts under a published key: Ed25519 is deterministic, so these are the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from testbed.reference import published_device, secret_of
from variegate.attest import cose, receipt
from variegate.attest import evidence as tokens
from variegate.attest.evidence import DebugStatus, Ephemeral, Evidence, ProtectionClaim
from variegate.attest.receipt import Receipt
from variegate.keys import cbor
from variegate.keys.errors import RefusedError
from variegate.keys.primitives import KEM_CLASSIC, kem_public_from_seed, sha256

DEVICE = published_device("x25519")
FRAMES = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
EVIDENCE = Evidence(
    nonce=bytes(range(16)),
    ueid=DEVICE.public.ueid,
    issued_at=1_800_000_000,
    debug=DebugStatus.DISABLED_SINCE_BOOT,
    boot_count=3,
    measurements={"runtime": sha256(b"runtime"), "interpreter": sha256(b"interpreter")},
    security_counter=2,
    root=sha256(b"root"),
    model=sha256(b"manifest"),
    budget_used=41,
    protections=(ProtectionClaim("isolation", "on", "a process"), ProtectionClaim("pages", "unavailable", "old")),
    ephemeral=Ephemeral(KEM_CLASSIC, kem_public_from_seed(secret_of("ephemeral"))),
)
RECEIPT = Receipt(
    ueid=DEVICE.public.ueid,
    model=sha256(b"manifest"),
    boot_count=3,
    sequence=17,
    time_s=1_800_000_001,
    frames=receipt.frames_digest(FRAMES),
    labels=(4, 300),
)


def outcome(kind: str, token: bytes) -> str | None:
    """The class of refusal, or None when the token is taken."""
    verify = {"evidence": tokens.verify, "receipt": receipt.verify}[kind]
    try:
        verify(token, DEVICE.public.signing_public)
    except RefusedError as error:
        return error.refusal.value
    return None


def attest_vectors() -> dict[str, Any]:
    """Tokens, good and bad, with the refusal expected."""
    return {
        "warning": "TEST KEYS derived from a published seed: never for use",
        "signing_public": DEVICE.public.signing_public.hex(),
        "frames": {"dtype": "uint8", "shape": list(FRAMES.shape), "bytes": FRAMES.tobytes().hex()},
        "vectors": [
            {"name": name, "kind": kind, "token": token.hex(), "refusal": outcome(kind, token)}
            for name, kind, token in _tokens()
        ],
    }


def _signed(typ: str, payload: bytes) -> bytes:
    return cose.sign1(typ, payload, DEVICE.sign, DEVICE.public.signing_public)


def _tokens() -> Iterator[tuple[str, str, bytes]]:
    good = tokens.issue(EVIDENCE, DEVICE.sign, DEVICE.public.signing_public)
    claims = cbor.decode(EVIDENCE.to_bytes(), limit=1 << 16)
    shown = receipt.issue(RECEIPT, DEVICE.sign, DEVICE.public.signing_public)
    outer = cbor.decode(good, limit=1 << 16)
    yield "evidence-good", "evidence", good
    yield "evidence-other-kind", "evidence", _signed(receipt.TYP, EVIDENCE.to_bytes())
    yield "evidence-signature", "evidence", good[:-1] + bytes([good[-1] ^ 1])
    yield "evidence-tagged", "evidence", b"\xd2" + good
    yield "evidence-unprotected", "evidence", cbor.encode([outer[0], {4: b"x"}, *outer[2:]])
    yield "evidence-unknown-claim", "evidence", _signed(tokens.TYP, cbor.encode({**claims, 7: b"cti"}))
    yield "evidence-nonce-short", "evidence", _signed(tokens.TYP, cbor.encode({**claims, 10: bytes(7)}))
    yield "evidence-debug-boolean", "evidence", _signed(tokens.TYP, cbor.encode({**claims, 263: True}))
    yield "receipt-good", "receipt", shown
    yield "receipt-other-kind", "receipt", good
    yield "receipt-no-labels", "receipt", _signed(receipt.TYP, RECEIPT.to_bytes()[:-5] + b"\x80")
