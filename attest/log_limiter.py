"""Limits log lines that others can cause at no cost, so that nobody fills the disk with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

STRANGERS_PER_MINUTE = 60
"""Lines that those may cause whom no enrolled device's signature vouches for."""
PER_DEVICE = 10
"""Lines a minute about one device's evidence whose nonce is not fresh."""
DEVICES = 4096
"""Devices with a limit of their own at a time; the others share that of strangers."""
_MINUTE_S = 60.0


@dataclass(frozen=True)
class Line:
    """The decision on one line.

    Attributes:
        entered: Whether it goes into the log.
        missed: How many before it did not.
        wait_s: Seconds until the next one will, when this one does not.
    """

    entered: bool
    missed: int = 0
    wait_s: float = 0.0


@dataclass
class _Quota:
    per_minute: int
    since: float
    count: int = 0
    missed: int = 0

    def is_over(self, now: float) -> bool:
        # A clock set back starts again, too.
        return not 0 <= now - self.since < _MINUTE_S

    def take(self, now: float) -> Line:
        if self.is_over(now):
            self.since, self.count = now, 0
        if self.count >= self.per_minute:
            self.missed += 1
            return Line(False, wait_s=self.since + _MINUTE_S - now)
        self.count += 1
        missed, self.missed = self.missed, 0
        return Line(True, missed)


class LogLimiter:
    """Lets so many lines a minute through, for each device and for all strangers together. Thread-safe.

    Args:
        clock: Unix time in seconds.
        devices: Devices with a limit of their own at a time.
    """

    def __init__(self, clock: Callable[[], float], *, devices: int = DEVICES) -> None:
        self._clock, self._most = clock, devices
        self._lock = threading.Lock()
        self._strangers = _Quota(STRANGERS_PER_MINUTE, clock())
        self._devices: dict[bytes, _Quota] = {}

    def take(self, ueid: bytes | None) -> Line:
        """Counts one line.

        Args:
            ueid: The device that signed for it, or None for a stranger.

        Returns:
            The decision.
        """
        with self._lock:
            now = self._clock()
            quota = self._strangers if ueid is None else self._of(ueid, now)
            return quota.take(now)

    def _of(self, ueid: bytes, now: float) -> _Quota:
        device = self._devices.get(ueid)
        if device is not None:
            return device
        if len(self._devices) >= self._most:
            for name in [name for name, quota in self._devices.items() if quota.is_over(now)]:
                # Counted on, so that the log still says how much it lacks.
                self._strangers.missed += self._devices.pop(name).missed
        if len(self._devices) >= self._most:
            return self._strangers
        return self._devices.setdefault(ueid, _Quota(PER_DEVICE, now))
