"""How an enclave gets a copy's share from a key broker (background check, RFC 9334 section 5.2).

    enclave -> broker   challenge
    broker  -> enclave  nonce
    enclave -> broker   evidence (nonce, ephemeral public key, measurements, model), envelope
    broker  -> enclave  HPKE to the ephemeral key of share, info = "variegate/1/release/" || SHA-256(evidence)

The host between the two sees only tokens and ciphertext. The ephemeral private key lives in the process that opens the
copy and ends with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from variegate.attest.evidence import NONCE_BYTES, Ephemeral
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.primitives import (
    KEM_HYBRID,
    KEM_SEED_BYTES,
    hpke_open,
    kem_private,
    kem_public_from_seed,
    sha256,
)

_CONTEXT = b"variegate/1/release/"

MakeEvidence = Callable[[bytes, Ephemeral], bytes]
"""Makes a token from the broker's nonce and the key to answer to."""


class Exchange(Protocol):
    """The way to a broker: the broker itself, a client over HTTP, or a relay in front of one."""

    def challenge(self) -> bytes:
        """A fresh nonce.

        Raises:
            RefusedError, LimitError, DeviceError: No answer, or none that helps.
        """
        ...

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """The share, sealed to the ephemeral key in the token.

        Raises:
            RefusedError: `RELEASE`.
            LimitError, DeviceError: Not now.
        """
        ...


def release_info(token: bytes) -> bytes:
    """HPKE `info` that binds an answer to the evidence it was given for."""
    return _CONTEXT + sha256(token)


def request(envelope: bytes, make_evidence: MakeEvidence, exchange: Exchange) -> bytes:
    """Gets the share that `keys.envelope.Envelope.unseal` asks for.

    Args:
        envelope: The signed envelope, as it is in the artefact.
        make_evidence: Makes and signs the token; its `model` is the envelope's `digest`.
        exchange: The way to the broker; not trusted.

    Returns:
        The share.

    Raises:
        RefusedError: `RELEASE` when the broker refuses; `SEALED`, when its answer does not open; `MALFORMED`, when its
            nonce is none.
        LimitError, DeviceError: As `exchange`.
    """
    seed = os.urandom(KEM_SEED_BYTES[KEM_HYBRID])
    private = kem_private(KEM_HYBRID, seed)
    nonce = exchange.challenge()
    if len(nonce) not in NONCE_BYTES:
        raise RefusedError(Refusal.MALFORMED, "broker's nonce has the wrong length")
    token = make_evidence(nonce, Ephemeral(KEM_HYBRID, kem_public_from_seed(seed)))
    return hpke_open(KEM_HYBRID, private, release_info(token), exchange.release(token, envelope))
