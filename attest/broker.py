"""The key broker: releases a copy's share against good, fresh evidence (background check, RFC 9334 section 5.2).

In terms of RFC 9334 it is relying party and verifier in one. Every refusal has the same answer; the broker's log has
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from variegate.attest.broker_store import BrokerStore
from variegate.attest.evidence import Evidence
from variegate.attest.log_limiter import LogLimiter
from variegate.attest.nonces import Nonces
from variegate.attest.policy import AppraisalPolicy
from variegate.attest.release import release_info
from variegate.attest.verifier import Verifier
from variegate.keys.broker import BrokerKey
from variegate.keys.envelope import Envelope, open_envelope
from variegate.keys.errors import DeviceError, LimitError, Refusal, RefusedError
from variegate.keys.primitives import hpke_seal
from variegate.keys.signing import SellerRoot

_MAX_DETAIL = 2000


class Broker:
    """A key broker; an `attest.release.Exchange`. Thread-safe.

    Args:
        key: The key to which shares are sealed.
        root: Whose envelopes it serves: the root it was made for. Those that the seller has had since are in the books.
        store: Its books.
        policy: The rules for evidence.
        clock: Unix time in seconds.
        nonces: For freshness; over `store` with the usual bounds by default.
    """

    def __init__(
        self,
        key: BrokerKey,
        root: SellerRoot,
        store: BrokerStore,
        policy: AppraisalPolicy,
        clock: Callable[[], float],
        *,
        nonces: Nonces | None = None,
    ) -> None:
        self._key, self._root, self._store, self._clock = key, root, store, clock
        nonces = Nonces(store.database, clock) if nonces is None else nonces
        self._verifier = Verifier(
            policy,
            store.device,
            nonces,
            clock,
            revocations=store.revocations,
            roots=lambda: [one.fingerprint for one in store.roots(root)],
        )
        self._thinning = LogLimiter(clock)

    def challenge(self) -> bytes:
        """A nonce for one request."""
        return self._verifier.challenge()

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """The share of a copy, sealed to the ephemeral key in the evidence.

        Args:
            token: Evidence, hostile bytes.
            envelope: Of the copy, hostile bytes.

        Returns:
            HPKE: enc || ciphertext, under `release.release_info(token)`.

        Raises:
            RefusedError: `RELEASE`, for every fault.
            LimitError: This device has asked too often, or evidence of it that is not fresh has come too often.
            DeviceError: The broker's storage failed.
        """
        case, wait_s = _Case(), 0.0
        try:
            sealed = self._released(token, envelope, case)
        except LimitError as error:
            self._record("limited", case, error.message)
            raise
        except RefusedError as error:
            wait_s = self._record("refused", case, f"{error.refusal}: {error.message}")
        except DeviceError as error:
            # Storage may have failed for good, and then the log with it.
            raise DeviceError("broker's storage failed") from error
        else:
            # Before it leaves: nothing is released that is not in the log.
            self._record("released", case, "")
            return sealed
        # Outside of the handlers, so that the reason is not the error's context.
        if case.evidence is not None and wait_s:
            # Whoever has captured a token can send it for ever. This does not delay the device's own fresh evidence.
            raise LimitError("evidence that is not fresh comes too often", retry_after_s=wait_s)
        raise RefusedError(Refusal.RELEASE, "the broker releases nothing for this request")

    def _released(self, token: bytes, envelope: bytes, case: _Case) -> bytes:
        identified = self._verifier.identify(token)
        if isinstance(identified, Evidence):
            # Before the nonce is taken, so that the log names the device also when it is held to its limits.
            case.evidence = identified
        appraisal = self._verifier.judge(identified)
        case.fresh = appraisal.fresh
        evidence = appraisal.require()
        roots = self._store.roots(self._root)
        opened, root = _opened(envelope, roots)
        case.envelope = opened
        self._match(evidence, opened, root)
        if root != roots[-1] and not self._store.was_released(evidence.ueid, opened.digest):
            # As on a device: copies from before the rotation stay valid, and no new one is valid under the old root.
            raise RefusedError(Refusal.ROLLED_BACK, "copy is under an earlier root, and was not opened before")
        manifest = opened.manifest
        if not self._store.is_allowed(manifest.buyer, manifest.ueid):
            raise RefusedError(Refusal.REVOKED, "buyer is not authorised on this device, or no longer")
        if evidence.ephemeral is None:
            raise RefusedError(Refusal.EVIDENCE, "evidence holds no key for the answer")
        share = self._key.share_of(manifest)
        kem, public = evidence.ephemeral
        return hpke_seal(kem, public, release_info(token), share)

    def _match(self, evidence: Evidence, opened: Envelope, root: SellerRoot) -> None:
        """That the evidence speaks of this envelope, and the envelope is one that its device may open now."""
        manifest = opened.manifest
        if evidence.root != root.fingerprint:
            raise RefusedError(Refusal.EVIDENCE, "device pins another root, of this seller or another one")
        if manifest.ueid != evidence.ueid:
            raise RefusedError(Refusal.WRONG_DEVICE, "envelope is for another device")
        if evidence.model != opened.digest:
            raise RefusedError(Refusal.EVIDENCE, "evidence is about another copy")
        if manifest.security_counter < evidence.security_counter:
            raise RefusedError(Refusal.ROLLED_BACK, "copy is older than what the device has confirmed")
        if manifest.not_after is not None and self._clock() > manifest.not_after + manifest.policy.grace_s:
            raise RefusedError(Refusal.EXPIRED, "copy has expired")

    def _record(self, event: str, case: _Case, detail: str) -> float:
        """Writes a line, unless its kind has filled its minute.

        Returns:
            Seconds until the next one of its kind will be written, or 0.0 when this one was.
        """
        evidence, opened = case.evidence, case.envelope
        if not case.fresh:
            line = self._thinning.take(None if evidence is None else evidence.ueid)
            if not line.entered:
                return line.wait_s
            detail += f" ({line.missed} such requests before it not entered)" if line.missed else ""
        self._store.record(
            event,
            ueid=None if evidence is None else evidence.ueid,
            buyer="" if opened is None else opened.manifest.buyer,
            model=None if opened is None else opened.digest,
            detail=detail[:_MAX_DETAIL],
        )
        return 0.0


def _opened(envelope: bytes, roots: Sequence[SellerRoot]) -> tuple[Envelope, SellerRoot]:
    """The envelope, and which of the seller's roots it is under; today's is tried first."""
    for root in reversed(roots[1:]):
        try:
            return open_envelope(envelope, root), root
        except RefusedError as error:
            if error.refusal is not Refusal.SIGNATURE:
                raise
    return open_envelope(envelope, roots[0]), roots[0]


@dataclass
class _Case:
    """The known facts about one request; only those that a signature confirms.

    Attributes:
        evidence: Of an enrolled device.
        fresh: Whether its nonce was taken: such lines are few, since a device may use only so many.
        envelope: Of the seller.
    """

    evidence: Evidence | None = None
    fresh: bool = False
    envelope: Envelope | None = None
