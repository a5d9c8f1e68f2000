"""Limits the evidence that a device gives, because the enclave chooses each token's signature.

A signature can hide data without a trace, so an enclave under an attacker's control could reveal uncounted labels in
it. Evidence is needed rarely, so a limit does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from variegate.keys.errors import LimitError

BURST = 60
"""Tokens of evidence that a device gives at once."""
PER_SECOND = 1.0
"""Tokens that it may give again, each second after that."""
_CLOCK_STEP_S = 0.001
_rations: dict[bytes, EvidenceQuota] = {}
_lock = threading.Lock()


class EvidenceQuota:
    """Tokens of evidence of one device, full at first. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._left, self._filled_at = float(BURST), clock()

    def take(self) -> None:
        """Spends one token, even if it is not given out then.

        Raises:
            LimitError: None is left now.
        """
        with self._lock:
            now = self._clock()
            self._left = min(float(BURST), self._left + (now - self._filled_at) * PER_SECOND)
            self._filled_at = now
            if self._left < 1:
                # A little later than due, so that rounding does not refuse who waits exactly that long.
                wait = (1 - self._left) / PER_SECOND + _CLOCK_STEP_S
                raise LimitError("more evidence is asked for than this device gives", retry_after_s=wait)
            self._left -= 1


def quota_of(ueid: bytes) -> EvidenceQuota:
    """The quota of a device, for all its enclaves and copies while this process lives."""
    with _lock:
        return _rations.setdefault(ueid, EvidenceQuota())
