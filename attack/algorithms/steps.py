"""Steps that several attacks share, as sub-generators: `answer = yield from step(...)`."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from variegate.attack.search import Answers, Points, Problem

Step = Generator[Points, Answers, NDArray[np.float32]]
Asked = Generator[Points, Answers, bool]


def fools(point: NDArray[np.float32]) -> Asked:
    """Asks one point (l,)."""
    return bool((yield point[np.newaxis])[0])


def first_start(problem: Problem, noises: int = 100) -> Generator[Points, Answers, NDArray[np.float32] | None]:
    """A point that is answered as wanted: the nearest given start that is, else uniform noise, one by one.

    Args:
        problem: The image.
        noises: Draws of noise before giving up; none for a targeted search.

    Returns:
        The point (l,), or None.
    """
    if len(problem.starts):
        fooled = yield problem.starts
        if fooled.any():
            there = problem.starts[fooled]
            nearest: NDArray[np.float32] = there[np.linalg.norm(there - problem.clean, axis=1).argmin()]
            return nearest
    if problem.target is None:
        for _ in range(noises):
            point = problem.rng.random(problem.clean.size, np.float32)
            if (yield from fools(point)):
                return point
    return None


def to_boundary(problem: Problem, far: NDArray[np.float32], tolerance: float) -> Step:
    """Bisects the segment from the clean image to a fooling point.

    Args:
        problem: The image.
        far: A point (l,) that fools.
        tolerance: Ends when the share of the segment that is unknown is at most this.

    Returns:
        The fooling end.
    """
    low, high = 0.0, 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        if (yield from fools(between(problem.clean, far, middle))):
            high = middle
        else:
            low = middle
    return between(problem.clean, far, high)


def between(clean: NDArray[np.float32], far: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """The point at `share` of the way from clean to far."""
    way: NDArray[np.float32] = clean + np.float32(share) * (far - clean)
    return way
