"""Fixed limits of the runtime, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits for input from outside.

    Attributes:
        batch: Frames in one call of `classify_batch`.
        slice: Frames in one pass through the network; bounds its memory.
        reserve: Most queries reserved ahead on the device's counter; also the most that a crash can lose.
        reserve_share: At most one in so many of the whole budget is reserved at once.
    """

    batch: int = 16384
    slice: int = 64
    reserve: int = 1024
    reserve_share: int = 64


LIMITS = Limits()
