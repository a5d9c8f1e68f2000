"""Evidence: a device's fresh and signed statement about itself, as an Entity Attestation Token (RFC 9711).

Claims are those of RFC 9711 or, where it has none, have private-use numbers (below -65536, RFC 8392 section 9.1.1); the
folder's README has the CDDL. A token must have exactly these claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from variegate.attest import cose
from variegate.attest.cose import Sign
from variegate.keys import cbor
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.fields import Fields
from variegate.keys.primitives import HASH_BYTES, KEM_CLASSIC, KEM_HYBRID

SIMULATED = "tag:variegate.example,2026:simulated-device"
"""Profile (a tag URI, RFC 4151) of a device whose hardware is software: its evidence proves nothing to those who do not
trust the machine below."""
MAX_EVIDENCE_BYTES = 16 * 1024
TYP = "application/eat+cwt"
"""Media type of RFC 9782."""
NONCE_BYTES = range(8, 65)
"""RFC 9711 section 4.1."""
ROOT = "root"
"""Name of the measurement that is the fingerprint of the seller's root."""
MAX_NAMES = 64
MAX_REASON = 512
STATES = ("on", "off", "unavailable")
_FIELDS = Fields("token")
_KEM_PUBLIC_BYTES = {KEM_HYBRID: 1216, KEM_CLASSIC: 32}

_IAT, _NONCE, _UEID, _DBGSTAT, _PROFILE, _BOOTCOUNT = 6, 10, 256, 263, 265, 267
_COUNTER, _ROOT, _MODEL, _BUDGET, _PROTECTIONS, _EPHEMERAL, _MEASUREMENTS = range(-65537, -65544, -1)


class DebugStatus(IntEnum):
    """The claim `dbgstat` (RFC 9711 section 4.2.9)."""

    ENABLED = 0
    DISABLED = 1
    DISABLED_SINCE_BOOT = 2
    DISABLED_PERMANENTLY = 3
    DISABLED_FULLY_AND_PERMANENTLY = 4


class ProtectionClaim(NamedTuple):
    """One protection of the enclave.

    Attributes:
        name: Its name.
        state: One of `STATES`.
        reason: Why.
    """

    name: str
    state: str
    reason: str


class Ephemeral(NamedTuple):
    """A key-agreement key that lives as long as one opening of a copy.

    Attributes:
        kem: One of `keys.primitives.KEM_NAMES`.
        public: Its public half.
    """

    kem: str
    public: bytes


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The claims of one token.

    Attributes:
        nonce: The verifier's, 8 to 64 bytes.
        ueid: The device, 33 bytes.
        issued_at: Unix time in seconds, by the device's clock.
        profile: The kind of device; `SIMULATED` here.
        debug: Whether debuggers may look in.
        boot_count: Times the device was booted.
        measurements: The measurements before the launch, by name, 32 bytes each.
        security_counter: The device's rollback counter.
        root: Fingerprint of the seller's root that it pins, 32 bytes.
        model: SHA-256 of the manifest of the copy concerned, or None.
        budget_used: Labels charged in that copy's epoch.
        protections: Of the enclave.
        ephemeral: The key to seal a broker's answer to, or None.
    """

    nonce: bytes
    ueid: bytes
    issued_at: int
    profile: str = SIMULATED
    debug: DebugStatus
    boot_count: int
    measurements: Mapping[str, bytes]
    security_counter: int
    root: bytes
    model: bytes | None = None
    budget_used: int = 0
    protections: tuple[ProtectionClaim, ...] = ()
    ephemeral: Ephemeral | None = field(default=None, repr=False)

    def to_bytes(self) -> bytes:
        """The claims set, deterministic CBOR."""
        return cbor.encode(
            {
                _IAT: self.issued_at,
                _NONCE: self.nonce,
                _UEID: self.ueid,
                _DBGSTAT: int(self.debug),
                _PROFILE: self.profile,
                _BOOTCOUNT: self.boot_count,
                _COUNTER: self.security_counter,
                _ROOT: self.root,
                _MODEL: self.model,
                _BUDGET: self.budget_used,
                _PROTECTIONS: [list(claim) for claim in self.protections],
                _EPHEMERAL: None if self.ephemeral is None else list(self.ephemeral),
                _MEASUREMENTS: [[name, value] for name, value in sorted(self.measurements.items())],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Evidence:
        """Reads a claims set.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`.
        """
        match cbor.decode(data, limit=MAX_EVIDENCE_BYTES):
            case {
                6: issued_at,
                10: bytes(nonce),
                256: ueid,
                263: debug,
                265: profile,
                267: boot_count,
                -65537: counter,
                -65538: root,
                -65539: model,
                -65540: budget,
                -65541: [*protections],
                -65542: ephemeral,
                -65543: [*measurements],
                **rest,
            } if not rest and len(nonce) in NONCE_BYTES and max(len(protections), len(measurements)) <= MAX_NAMES:
                evidence = cls(
                    nonce=nonce,
                    ueid=_FIELDS.ueid(ueid),
                    issued_at=_FIELDS.uint(issued_at),
                    profile=_FIELDS.text(profile),
                    debug=DebugStatus(_FIELDS.uint(debug, most=max(DebugStatus))),
                    boot_count=_FIELDS.uint(boot_count),
                    measurements=dict(_FIELDS.measurement(item) for item in measurements),
                    security_counter=_FIELDS.uint(counter),
                    root=_FIELDS.octets(root, HASH_BYTES),
                    model=None if model is None else _FIELDS.octets(model, HASH_BYTES),
                    budget_used=_FIELDS.uint(budget),
                    protections=tuple(_protection(item) for item in protections),
                    ephemeral=None if ephemeral is None else _ephemeral(ephemeral),
                )
                # Measurements out of order or twice would be second encodings, and let two readers see two devices.
                names = {claim.name for claim in evidence.protections}
                if evidence.to_bytes() == data and len(names) == len(protections):
                    return evidence
        raise RefusedError(Refusal.MALFORMED, "token does not hold the claims of a device")


def issue(evidence: Evidence, sign: Sign, public: bytes) -> bytes:
    """Signs evidence.

    Args:
        evidence: The claims.
        sign: The device's signing key.
        public: Its public half, 32 bytes.

    Returns:
        The token: an EAT as an untagged COSE_Sign1.

    Raises:
        RefusedError: `MALFORMED` or `TOO_LARGE`, when no verifier would read these claims.
    """
    token = cose.sign1(TYP, evidence.to_bytes(), sign, public)
    claimed(token)
    return token


def verify(token: bytes, public: bytes) -> Evidence:
    """Checks the signature and reads the claims. Says nothing about whether they are good; see `verifier`.

    Args:
        token: Hostile bytes.
        public: The device's Ed25519 key, 32 bytes.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`.
    """
    return Evidence.from_bytes(cose.verify1(TYP, token, public, limit=MAX_EVIDENCE_BYTES))


def claimed(token: bytes) -> Evidence:
    """Reads the claims of a token with an unchecked signature, to find the device's key and to show them.

    Raises:
        RefusedError: `TOO_LARGE` or `MALFORMED`.
    """
    return Evidence.from_bytes(cose.unverified(token, limit=MAX_EVIDENCE_BYTES))


def _protection(item: Any) -> ProtectionClaim:
    match item:
        case [name, str(state), reason] if state in STATES:
            return ProtectionClaim(_FIELDS.text(name), state, _FIELDS.text(reason, least=0, most=MAX_REASON))
    raise RefusedError(Refusal.MALFORMED, "token holds a protection that is not valid")


def _ephemeral(item: Any) -> Ephemeral:
    match item:
        case [str(kem), public] if kem in _KEM_PUBLIC_BYTES:
            return Ephemeral(kem, _FIELDS.octets(public, _KEM_PUBLIC_BYTES[kem]))
    raise RefusedError(Refusal.MALFORMED, "token holds a key-agreement key that is not valid")
