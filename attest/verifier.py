"""The verifier (RFC 9334): compares evidence with reference values and names the checks that failed.

If an enrolled device has signed the evidence, appraisal uses up its nonce, whatever the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from variegate.attest import evidence as tokens
from variegate.attest.evidence import SIMULATED, DebugStatus, Evidence
from variegate.attest.groups import members
from variegate.attest.nonces import Nonces, NonceState
from variegate.attest.policy import AppraisalPolicy
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.public_identity import DevicePublic
from variegate.keys.rotation import Revocations

Devices = Callable[[bytes], DevicePublic | None]
"""Finds an enrolled device by its ueid."""


class Tier(StrEnum):
    """How far evidence can be relied on: the trustworthiness tiers of draft-ietf-rats-ar4si."""

    NONE = "none"
    """It could not be appraised: nobody known has signed it."""
    AFFIRMING = "affirming"
    WARNING = "warning"
    """Every check passed, but the policy allows a simulated device or debuggers, which deserve no full trust."""
    CONTRAINDICATED = "contraindicated"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: The check's name.
        passed: How it went.
        detail: Why, for people; holds no secret.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Appraisal:
    """The result of an appraisal.

    Attributes:
        evidence: The claims, or None when nobody known has signed them.
        checks: In order.
        tier: The result of all checks.
        fresh: Whether its nonce was taken: only so often for one device, while old evidence can come any number of
            times and from anybody.
    """

    evidence: Evidence | None
    checks: tuple[Check, ...]
    tier: Tier
    fresh: bool

    @property
    def good(self) -> bool:
        """Whether every check passed."""
        return self.evidence is not None and all(check.passed for check in self.checks)

    def require(self) -> Evidence:
        """The evidence, when it is good.

        Raises:
            RefusedError: `EVIDENCE`, naming the checks that failed.
        """
        if self.evidence is None or not self.good:
            failed = "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)
            raise RefusedError(Refusal.EVIDENCE, f"evidence fails these checks: {failed}")
        return self.evidence


class Verifier:
    """Appraises evidence. Thread-safe.

    Args:
        policy: The rules for evidence.
        devices: The enrolled devices.
        nonces: For freshness.
        clock: Unix time in seconds.
        revocations: Gives the devices that no longer count, at each appraisal.
        roots: Gives the fingerprints of the roots that one seller has had. Where the policy takes one of them as a
            device's root, it takes all.
    """

    def __init__(
        self,
        policy: AppraisalPolicy,
        devices: Devices,
        nonces: Nonces,
        clock: Callable[[], float],
        *,
        revocations: Callable[[], Revocations] = Revocations,
        roots: Callable[[], Iterable[bytes]] = tuple,
    ) -> None:
        self._policy, self._devices, self._nonces = policy, devices, nonces
        self._clock, self._revocations, self._roots = clock, revocations, roots

    def challenge(self) -> bytes:
        """A nonce for one piece of evidence."""
        return self._nonces.issue()

    def appraise(self, token: bytes) -> Appraisal:
        """Appraises a token.

        Args:
            token: Hostile bytes.

        Returns:
            Every check with how it went; bad evidence is a result, not an error.

        Raises:
            LimitError: This device has asked too often.
            DeviceError: Storage failed.
        """
        return self.judge(self.identify(token))

    def identify(self, token: bytes) -> Evidence | Check:
        """Finds out who signed a token. It takes no nonce, so that the signer is known even if `judge` fails.

        Args:
            token: Hostile bytes.

        Returns:
            The claims of an enrolled device, whose signature holds; or the check that failed.

        Raises:
            DeviceError: Storage failed.
        """
        try:
            claimed = tokens.claimed(token)
        except RefusedError as error:
            return Check("form", False, error.message)
        device = self._devices(claimed.ueid)
        if device is None or device.ueid != claimed.ueid:
            return Check("device", False, f"device {claimed.ueid.hex()} is not enrolled")
        try:
            return tokens.verify(token, device.signing_public)
        except RefusedError as error:
            return Check("signature", False, error.message)

    def judge(self, identified: Evidence | Check) -> Appraisal:
        """Appraises the result of `identify`.

        Args:
            identified: From `identify` of this verifier and from nowhere else: signatures are not looked at again.

        Returns:
            As `appraise`.

        Raises:
            LimitError: This device has asked too often.
            DeviceError: Storage failed.
        """
        if isinstance(identified, Check):
            return Appraisal(None, (identified,), Tier.NONE, fresh=False)
        evidence = identified
        state = self._nonces.take(evidence.nonce, evidence.ueid)
        fresh = state is NonceState.FRESH
        checks = (
            Check("signature", True, f"device {evidence.ueid.hex()}"),
            Check("nonce", fresh, str(state)),
            *self._checks(evidence),
        )
        return Appraisal(evidence, checks, _tier(evidence, checks), fresh)

    def _checks(self, evidence: Evidence) -> Iterator[Check]:
        policy = self._policy
        revoked = self._revocations().contains(evidence.ueid)
        yield Check("revocation", not revoked, "device is revoked" if revoked else "not revoked")
        off = evidence.issued_at - self._clock()
        yield Check(
            "clock", abs(off) <= policy.clock_skew_s, f"the device's clock differs from this one by {off:+.0f} s"
        )
        yield Check("profile", evidence.profile in policy.profiles, evidence.profile)
        closed = evidence.debug is not DebugStatus.ENABLED
        yield Check("debug", closed or policy.debug, evidence.debug.name.lower().replace("_", " "))
        for name in sorted(policy.measurements.keys() | evidence.measurements.keys()):
            yield self._measurement(name, evidence.measurements.get(name))
        claims = {claim.name: claim for claim in evidence.protections}
        for name in members(policy.require, claims):
            claim = claims.get(name)
            detail = "not mentioned" if claim is None else f"{claim.state}: {claim.reason}"
            yield Check(f"protection {name}", claim is not None and claim.state == "on", detail)

    def _measurement(self, name: str, value: bytes | None) -> Check:
        accepted = self._policy.measurements.get(name)
        title = f"measurement {name}"
        if value is None:
            return Check(title, False, "not measured")
        if accepted is None:
            return Check(title, False, f"{value.hex()}, which has no reference value")
        if name == tokens.ROOT and value not in accepted:
            same = frozenset(self._roots())
            return Check(title, value in same and not same.isdisjoint(accepted), value.hex())
        return Check(title, value in accepted, value.hex())


def _tier(evidence: Evidence, checks: tuple[Check, ...]) -> Tier:
    if not all(check.passed for check in checks):
        return Tier.CONTRAINDICATED
    doubtful = evidence.profile == SIMULATED or evidence.debug is DebugStatus.ENABLED
    return Tier.WARNING if doubtful else Tier.AFFIRMING
