"""What of a platform an enclave may use. It may have been taken over, so it gets no more than serving takes."""

from __future__ import annotations

from typing import Protocol

from variegate.isolation.wire import Lost
from variegate.keys.manifest import Manifest
from variegate.runtime.allowance import budget_counter
from variegate.runtime.limits import LIMITS
from variegate.runtime.platform import Platform

EVENTS = ("refused", "enclave")
"""What it may write into the device's log."""
MAX_DETAIL = 400
MAX_RECORDS = 64
"""Entries of one launch: the log is bounded, and a flood would push out what it held."""


class Brokered(Platform, Protocol):
    """A platform with a way to a key broker."""

    def challenge(self) -> bytes:
        """As `attest.release.Exchange.challenge`; `DeviceError` where no broker is known."""
        ...

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """As `attest.release.Exchange.release`; `DeviceError` where no broker is known."""
        ...


class Offered:
    """One launch's view of the platform, for one copy.

    Raises:
        Lost: From each method, when it is asked for what no sound enclave asks.
    """

    def __init__(self, platform: Brokered, manifest: Manifest) -> None:
        self._platform = platform
        self._budget = manifest.policy.budget
        self._counter = budget_counter(manifest.epoch)
        self._records = 0

    def counter(self, name: str) -> int:
        """The budget's counter."""
        self._only_budget(name)
        return self._platform.counter(name)

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """As `runtime.platform.Platform.reserve`, within the signed budget."""
        self._only_budget(name)
        if limit != self._budget or not 1 <= least <= most <= LIMITS.batch:
            raise Lost("enclave would go beyond the budget")
        return self._platform.reserve(name, least, most, limit)

    def record(self, event: str, detail: str) -> None:
        """Writes a line of the device's log; beyond `MAX_RECORDS` it is dropped."""
        if event not in EVENTS:
            raise Lost("enclave would write what it has no say in")
        self._records += 1
        if self._records <= MAX_RECORDS:
            self._platform.record(event, detail[:MAX_DETAIL])

    def challenge(self) -> bytes:
        """A broker's nonce."""
        return self._platform.challenge()

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """A broker's answer to evidence."""
        return self._platform.release(token, envelope)

    def _only_budget(self, name: str) -> None:
        if name != self._counter:
            raise Lost("enclave asks for another counter")
