"""The normal of a decision boundary from labels of probes around a point on it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.attack.search import Answers, Points

CHUNK = 64
"""Probes yielded at once: as many as stay in a core's cache, so that many searches can wait in little memory."""

Draw = Callable[[int], Points]
"""So many probes around the point, (n, l) in [0, 1]."""


@dataclass(frozen=True)
class Estimate:
    """Sums over all probes asked.

    Attributes:
        count: Probes.
        hits: Of them, those that fooled.
        fooled: Sum of the steps from the point to the probes that fooled, (l,).
        all: Sum of the steps to all probes, (l,).
    """

    count: int
    hits: int
    fooled: NDArray[np.float32]
    all: NDArray[np.float32]

    def with_baseline(self) -> NDArray[np.float32]:
        """HopSkipJump's equation 16, times n / 2: steps weighted by answers of +-1 minus their mean.

        This reduces the error of a point that is slightly off the boundary. If all answers are equal, it is equation
        12.
        """
        if self.hits in (0, self.count):
            return self.plain()
        out: NDArray[np.float32] = self.fooled - np.float32(self.hits / self.count) * self.all
        return out

    def plain(self) -> NDArray[np.float32]:
        """The sum of steps weighted by answers of +-1 (HopSkipJump's equation 12, GeoDA's equation 10)."""
        out: NDArray[np.float32] = 2 * self.fooled - self.all
        return out


def estimate(point: NDArray[np.float32], count: int, draw: Draw) -> Generator[Points, Answers, Estimate]:
    """Asks `count` probes around a point (l,); each is credited with the step that was asked, clipped and all."""
    fooled, every = np.zeros_like(point), np.zeros_like(point)
    hits = 0
    scratch = np.empty((min(count, CHUNK), point.size), np.float32)
    weights = np.ones((2, len(scratch)), np.float32)
    left = count
    while left:
        n = min(left, CHUNK)
        probes = draw(n)
        answers = yield probes
        np.subtract(probes, point, out=scratch[:n])
        weights[0, :n] = answers
        sums = weights[:, :n] @ scratch[:n]
        fooled += sums[0]
        every += sums[1]
        hits += int(answers.sum())
        left -= n
    return Estimate(count, hits, fooled, every)


def unit(direction: NDArray[np.float32]) -> NDArray[np.float32]:
    """The direction with length 1; zeros stay."""
    length = np.linalg.norm(direction)
    out: NDArray[np.float32] = direction / length if length > 0 else direction
    return out
