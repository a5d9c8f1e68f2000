"""A seller, a broker, a device and a copy that depends on the broker. All are real; the clock is a number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed import artefact_parts as parts
from testbed.artefacts import MemorySigner
from variegate.attest import evidence as tokens
from variegate.attest.broker import Broker
from variegate.attest.broker_store import BrokerStore
from variegate.attest.evidence import DebugStatus, Ephemeral, Evidence, ProtectionClaim
from variegate.attest.policy import AppraisalPolicy
from variegate.attest.release import Exchange, request
from variegate.keys.broker import BrokerKey
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, open_envelope, seal_batch
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC

NOW = 1_800_000_000.0
KEYS = SealedKeys(bytes(range(32)), bytes(range(32, 64)))
BUYER = "test-buyer"


class Clock:
    """Unix time that stands still until it is moved."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Scene:
    """Everything around one device that is allowed to open one copy.

    Args:
        folder: Where the broker's books go.
        changes: Fields of the manifest.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.clock = Clock()
        self.device = DeviceIdentity.generate("camera-v1", KEM_CLASSIC)
        self.signer = MemorySigner()
        self.key = BrokerKey.generate(KEM_CLASSIC)
        self.policy = AppraisalPolicy.of(self.evidence(bytes(8)))
        self.store = BrokerStore(folder / "books.sqlite", self.clock, create=True)
        self.store.allow(BUYER, self.device.public)
        self.envelope = self.seal(**changes)

    @property
    def broker(self) -> Broker:
        """A broker over the books, as after a restart."""
        return Broker(self.key, self.signer.root, self.store, self.policy, self.clock)

    def seal(self, **changes: Any) -> bytes:
        """An envelope for the device that depends on the broker."""
        plain = parts.manifest(device=self.device, **{"buyer": BUYER, "security_counter": 3, **changes})
        manifest, keys = self.key.public.split(plain, KEYS)
        public = self.device.public
        return seal_batch([EnvelopeDraft(manifest, keys, public.kem, public.kem_public)], self.signer)[0]

    def evidence(self, nonce: bytes, ephemeral: Ephemeral | None = None, **changes: Any) -> Evidence:
        """Good evidence, with changes."""
        envelope = getattr(self, "envelope", None)
        good = Evidence(
            nonce=nonce,
            ueid=self.device.public.ueid,
            issued_at=int(self.clock()),
            debug=DebugStatus.DISABLED_SINCE_BOOT,
            boot_count=7,
            measurements={"interpreter": bytes([1]) * 32, "runtime": bytes([2]) * 32},
            security_counter=3,
            root=self.signer.root.fingerprint,
            model=None if envelope is None else open_envelope(envelope, self.signer.root).digest,
            protections=(ProtectionClaim("isolation", "on", "a process"), ProtectionClaim("x", "off", "not asked for")),
            ephemeral=ephemeral,
        )
        return replace(good, **changes)

    def token(self, nonce: bytes, ephemeral: Ephemeral | None = None, **changes: Any) -> bytes:
        """Good evidence, with changes, signed by the device."""
        evidence = self.evidence(nonce, ephemeral, **changes)
        return tokens.issue(evidence, self.device.sign, self.device.public.signing_public)

    def share(self, exchange: Exchange | None = None, envelope: bytes | None = None, **changes: Any) -> bytes:
        """Asks for the share; `changes` are fields of the evidence."""
        return request(
            self.envelope if envelope is None else envelope,
            lambda nonce, ephemeral: self.token(**{"nonce": nonce, "ephemeral": ephemeral, **changes}),
            self.broker if exchange is None else exchange,
        )

    def opened(self, share: bytes | None, envelope: bytes | None = None) -> SealedKeys:
        """The keys of the copy, as its device opens them."""
        opened = open_envelope(self.envelope if envelope is None else envelope, self.signer.root)
        return opened.unseal(self.device.unwrap, share)

    def last_reason(self) -> str:
        """Event and detail of the last line of the broker's log."""
        entry = list(self.store.log())[-1]
        return f"{entry.event}: {entry.detail}"
