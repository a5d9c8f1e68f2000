"""The two statements that an enclave signs with the device's key: evidence of its software, receipts of its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attest import evidence, receipt
from variegate.attest.cose import Sign
from variegate.attest.evidence import DebugStatus, Ephemeral, Evidence, ProtectionClaim
from variegate.attest.receipt import Receipt
from variegate.isolation.platform_client import PlatformClient, Settings
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import sha256
from variegate.runtime.admission import SECURITY_COUNTER
from variegate.runtime.allowance import budget_counter
from variegate.runtime.enclave import Protection

_RECEIPT_BITS = 32
"""Receipts that one launch can give."""


class Claims:
    """The content of the statements of one launch of one copy: both sides know it, to the byte, before it is signed."""

    def __init__(self, settings: Settings, manifest: Manifest, protections: tuple[Protection, ...]) -> None:
        self._settings = settings
        self._model = sha256(manifest.to_bytes())
        self._protections = tuple(ProtectionClaim(p.name, str(p.state), p.reason) for p in protections)
        self._receipts = settings.launches << _RECEIPT_BITS

    def evidence(
        self, nonce: bytes, *, now: float, security: int, used: int, ephemeral: Ephemeral | None = None
    ) -> Evidence:
        """The claims of a token.

        Args:
            nonce: The verifier's.
            now: Unix time in seconds.
            security: The security counter.
            used: Labels charged in the copy's epoch.
            ephemeral: The key to seal a broker's answer to, if one is asked.
        """
        settings = self._settings
        return Evidence(
            nonce=nonce,
            ueid=settings.ueid,
            issued_at=int(now),
            debug=DebugStatus.ENABLED if settings.policy.debug else DebugStatus.DISABLED_SINCE_BOOT,
            boot_count=settings.boots,
            measurements=settings.measurements,
            security_counter=security,
            root=settings.root.fingerprint,
            model=self._model,
            budget_used=used,
            protections=self._protections,
            ephemeral=ephemeral,
        )

    def receipt(self, frames: NDArray[Any], labels: NDArray[np.int64], *, now: float) -> Receipt:
        """The next receipt. No number comes twice in a boot: each launch has numbers of its own.

        Args:
            frames: (N, *shape): the frames shown.
            labels: int64 (N,): the answer.
            now: Unix time in seconds.
        """
        self._receipts += 1
        return Receipt(
            ueid=self._settings.ueid,
            model=self._model,
            boot_count=self._settings.boots,
            sequence=self._receipts,
            time_s=int(now),
            frames=receipt.frames_digest(frames),
            labels=receipt.labels_of(labels),
        )


class Statements:
    """Makes and signs statements about one copy on one device."""

    def __init__(
        self,
        below: PlatformClient,
        manifest: Manifest,
        protections: tuple[Protection, ...],
        sign: Sign,
        public: bytes,
    ) -> None:
        """Prepares.

        Args:
            below: The device.
            manifest: Of the copy.
            protections: Of the enclave.
            sign: The device's signing key.
            public: Its public half, 32 bytes.
        """
        self._below = below
        self._counter = budget_counter(manifest.epoch)
        self._claims = Claims(below.settings, manifest, protections)
        self._sign, self._public = sign, public

    def evidence(self, nonce: bytes, ephemeral: Ephemeral | None = None) -> bytes:
        """A token for a verifier.

        Args:
            nonce: The verifier's, 8 to 64 bytes.
            ephemeral: The key to seal a broker's answer to, if one is asked.

        Raises:
            RefusedError: `MALFORMED`, when no verifier would read it: the nonce is too short or too long.
        """
        below = self._below
        claims = self._claims.evidence(
            nonce,
            now=below.now(),
            security=below.counter(SECURITY_COUNTER),
            used=below.counter(self._counter),
            ephemeral=ephemeral,
        )
        return evidence.issue(claims, self._sign, self._public)

    def receipt(self, frames: NDArray[Any], labels: NDArray[np.int64]) -> bytes:
        """A receipt for one answered query.

        Args:
            frames: (N, *shape): the frames shown.
            labels: int64 (N,): the answer.
        """
        return receipt.issue(self._claims.receipt(frames, labels, now=self._below.now()), self._sign, self._public)
