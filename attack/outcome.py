"""The checked result of one search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray


class Status(StrEnum):
    """How a search ended."""

    FOUND = "found"
    """With a sample that fools the device when asked alone."""
    NONE = "none"
    """Without one."""
    FAILED = "failed"
    """The attack raised, or its sample was answered otherwise when asked alone."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result for one image.

    Attributes:
        key: The task's.
        status: How it ended.
        reason: Why it failed; empty otherwise.
        sample: The frame found, (C, H, W) of the device's dtype, or None.
        label: The device's answer when asked alone, or None.
        distance: Of the sample to the clean frame in the attack's norm, pixels in 0..1; infinite without one.
        queries: Labels asked for, the judgement included.
        trace: (queries so far, distance) at each improvement, or of each iterate.
        checkpoints: The sample so far at each number of queries asked for in the task; None before the first.
    """

    key: int
    status: Status
    reason: str
    sample: NDArray[Any] | None = field(repr=False)
    label: int | None
    distance: float
    queries: int
    trace: tuple[tuple[int, float], ...] = field(repr=False)
    checkpoints: Mapping[int, NDArray[Any] | None] = field(repr=False)

    def distance_at(self, queries: int) -> float:
        """Of the sample so far after so many queries; infinite before the first.

        The best point only comes nearer; an iterate may move away again.
        """
        return next((length for asked, length in reversed(self.trace) if asked <= queries), float("inf"))
