"""The query budget and the rate of a device.

The budget is a monotonic counter of the hardware. Queries are reserved on it in blocks *before* any is answered, so a
crash, a restart or a restored backup can only lose queries.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from variegate.keys.errors import DeviceError, LimitError
from variegate.keys.manifest import Policy
from variegate.runtime.limits import LIMITS
from variegate.runtime.platform import Platform

_CLOCK_STEP_S = 0.001


def budget_counter(epoch: int) -> str:
    """Name of the counter of labels charged in an epoch."""
    return f"budget.{epoch}"


class _Bucket:
    """Tokens of one device. It starts empty, so that restarting gains nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.Lock()
        self.clock = clock
        self.tokens = 0.0
        self.filled_at = clock()


_buckets: WeakKeyDictionary[Platform, _Bucket] = WeakKeyDictionary()
"""The rate is the device's: enclaves of one platform share its bucket."""
_buckets_lock = threading.Lock()


class Allowance:
    """Budget and rate of one epoch on one device. Thread-safe; of no use after a fork."""

    def __init__(
        self, policy: Policy, epoch: int, platform: Platform, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._platform = platform
        self._counter = budget_counter(epoch)
        self._process = os.getpid()
        self._ready = 0  # reserved on the counter and not yet answered; a restart loses these
        self._block = 1
        with _buckets_lock:
            self._bucket = _buckets.setdefault(platform, _Bucket(clock))

    @property
    def remaining(self) -> int | None:
        """Queries that may still be answered if the device is not restarted, or None for no bound."""
        if self._policy.budget is None:
            return None
        with self._bucket.lock:
            return max(0, self._policy.budget - self._platform.counter(self._counter)) + self._ready

    def take(self, count: int) -> None:
        """Spends `count` queries, all or none.

        Raises:
            LimitError: When budget or rate forbids them.
            DeviceError: When the counter could not be raised, or this is not the process that opened the device.
        """
        if os.getpid() != self._process:
            # A fork copies the reservation; both processes would use it.
            raise DeviceError("device was opened by another process", hint="open it after the fork")
        with self._bucket.lock:
            tokens = self._refill(count)
            self._reserve(count)
            self._ready -= count
            self._bucket.tokens = tokens - count

    def _refill(self, count: int) -> float:
        """Fills the bucket up to now and returns its level; with no rate, just enough."""
        if self._policy.rate_per_hour is None:
            return float(count)
        if count > self._policy.burst:
            raise LimitError(f"more than {self._policy.burst} queries at once are never allowed")
        bucket, per_second = self._bucket, self._policy.rate_per_hour / 3600
        now = bucket.clock()
        bucket.tokens = min(self._policy.burst, bucket.tokens + (now - bucket.filled_at) * per_second)
        bucket.filled_at = now
        if bucket.tokens < count:
            wait = (count - bucket.tokens) / per_second
            # A little later than due, so that rounding does not refuse who waits exactly that long.
            raise LimitError("query rate exceeded", retry_after_s=wait + _CLOCK_STEP_S)
        return bucket.tokens

    def _reserve(self, count: int) -> None:
        """Makes sure that `count` queries are reserved on the hardware's counter.

        Blocks double from one up to a cap, so that a process with few queries loses few.
        """
        budget = self._policy.budget
        if budget is None:
            self._ready = count
            return
        missing = count - self._ready
        if missing <= 0:
            return
        granted = self._platform.reserve(self._counter, missing, max(missing, self._block), budget)
        if granted < missing:
            raise LimitError("query budget is spent")
        self._ready += granted
        self._block = min(2 * self._block, LIMITS.reserve, max(1, budget // LIMITS.reserve_share))
