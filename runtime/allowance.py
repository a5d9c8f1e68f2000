"""What a device may still answer: the query budget and the rate.

The budget is a monotonic counter of the hardware. Queries are reserved on it in blocks *before* any is
answered, so a crash, a restart or a restored backup can lose queries and never regain one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from variegate.keys.errors import LimitError
from variegate.keys.manifest import Policy
from variegate.runtime.limits import LIMITS
from variegate.runtime.platform import Platform


class Allowance:
    """Budget and rate of one epoch on one device. Thread-safe."""

    def __init__(
        self, policy: Policy, epoch: int, platform: Platform, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._platform = platform
        self._counter = f"budget.{epoch}"
        self._clock = clock
        self._lock = threading.Lock()
        self._ready = 0  # reserved on the counter and not yet answered; a restart loses these
        # A bucket that starts empty: restarting gains nothing.
        self._tokens = 0.0
        self._filled_at = clock()

    @property
    def remaining(self) -> int | None:
        """Queries that may still be answered if the device is not restarted, or None for no bound."""
        if self._policy.budget is None:
            return None
        with self._lock:
            return max(0, self._policy.budget - self._platform.counter(self._counter)) + self._ready

    def take(self, count: int) -> None:
        """Spends `count` queries, all or none.

        Raises:
            LimitError: When budget or rate forbids them.
            DeviceError: When the counter could not be raised.
        """
        with self._lock:
            tokens = self._refill(count)
            self._reserve(count)
            self._ready -= count
            self._tokens = tokens - count

    def _refill(self, count: int) -> float:
        """Fills the bucket up to now and returns its level; with no rate, just enough."""
        if self._policy.rate_per_hour is None:
            return float(count)
        if count > self._policy.burst:
            raise LimitError(f"more than {self._policy.burst} queries at once are never allowed")
        now, per_second = self._clock(), self._policy.rate_per_hour / 3600
        self._tokens = min(self._policy.burst, self._tokens + (now - self._filled_at) * per_second)
        self._filled_at = now
        if self._tokens < count:
            wait = (count - self._tokens) / per_second
            raise LimitError("query rate exceeded", retry_after_s=wait)
        return self._tokens

    def _reserve(self, count: int) -> None:
        """Makes sure that `count` queries are reserved on the hardware's counter."""
        budget = self._policy.budget
        if budget is None:
            self._ready = count
            return
        missing = count - self._ready
        if missing <= 0:
            return
        block = min(LIMITS.reserve, budget // LIMITS.reserve_share)
        granted = self._platform.reserve(self._counter, missing, max(missing, block), budget)
        if granted < missing:
            raise LimitError("query budget is spent")
        self._ready += granted
