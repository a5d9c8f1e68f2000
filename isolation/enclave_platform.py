"""The part of a platform that an enclave may use. An attacker may control it, so it gets only what serving needs."""

from __future__ import annotations

from typing import Protocol

from variegate.isolation.wire import Lost
from variegate.runtime.platform import Platform

EVENTS = ("refused", "enclave")
"""The events that it may write into the device's log."""
MAX_DETAIL = 400
MAX_RECORDS = 64
"""Entries of one launch: the log is bounded, and a flood would push out older entries."""


class Brokered(Platform, Protocol):
    """A platform with a way to a key broker."""

    def challenge(self) -> bytes:
        """As `attest.release.Exchange.challenge`; `DeviceError` where no broker is known."""
        ...

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """As `attest.release.Exchange.release`; `DeviceError` where no broker is known."""
        ...


SELF_TEST = "self-test: the enclave says that canary frames get other labels than the seller's"
"""The supervisor's entry when a serving enclave fails its self-test; the enclave's own words could reveal labels."""


class EnclavePlatform:
    """One launch's view of the platform, for one copy. It counts nothing, and raises no counter.

    Attributes:
        serving: Whether the copy is open: from then on there is no way to a broker, and no line of its own.

    Raises:
        Lost: From each method, when it gets a request that no sound enclave makes.
    """

    def __init__(self, platform: Brokered) -> None:
        self._platform = platform
        self._records = 0
        self.serving = False

    def record(self, event: str, detail: str) -> None:
        """Writes a line of the device's log; beyond `MAX_RECORDS`, and once the copy is open, it is dropped."""
        if event not in EVENTS:
            raise Lost("enclave would write an event that only the supervisor may write")
        if self.serving:
            return  # the number of lines tells something, too: the supervisor writes its own
        self._records += 1
        if self._records <= MAX_RECORDS:
            self._platform.record(event, detail[:MAX_DETAIL])

    def challenge(self) -> bytes:
        """A broker's nonce."""
        self._opening()
        return self._platform.challenge()

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """A broker's answer to evidence."""
        self._opening()
        return self._platform.release(token, envelope)

    def _opening(self) -> None:
        if self.serving:
            raise Lost("enclave asks for a broker although its copy is open")
