"""The time that an oracle waits for a device that cannot answer now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from variegate.keys.errors import LimitError, MisuseError

_LEAST_S = 0.01
"""A device that asks for less is asked no sooner, so that waiting ends in any case."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Waits out a rate, within a bound; a spent budget is never waited for.

    Attributes:
        longest_s: Most seconds from a query's first refusal to its last wait's end; 0 raises at once.
        waiting: Called before each wait, with its seconds.

    Raises:
        MisuseError: `longest_s` is negative or not a number.
    """

    longest_s: float = 0.0
    waiting: Callable[[float], None] = lambda _: None

    def __post_init__(self) -> None:
        if not 0 <= self.longest_s < math.inf:
            raise MisuseError("the longest wait is a number of seconds, not below 0")

    def asked(self, ask: Callable[[], T]) -> T:
        """The result of `ask`, as soon as the device allows it.

        Args:
            ask: Asks once. It must not have been answered when it raises a `LimitError`.

        Raises:
            LimitError: The device's, when it never allows it, or not within the bound.
        """
        until: float | None = None
        while True:
            try:
                return ask()
            except LimitError as error:
                if error.retry_after_s is None:
                    raise
                wait, now = max(_LEAST_S, error.retry_after_s), time.monotonic()
                # From the clock, since a device that is slow to refuse takes time, too.
                until = now + self.longest_s if until is None else until
                if not now + wait <= until:
                    raise
            self.waiting(wait)
            time.sleep(wait)


NONE = Patience()
"""Raises at once."""
