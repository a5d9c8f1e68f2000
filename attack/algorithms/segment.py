"""The search on a segment, with as many queries as its end is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.steps import Step, fools
from variegate.attack.search import Norm, Problem


def to_edge(problem: Problem, far: NDArray[np.float32], tolerance: float, grey: float, norm: Norm = "l2") -> Step:
    """Bisects from a fooling point (l,) towards the clean image (HopSkipJump's algorithm 1).

    Args:
        problem: The image.
        far: The fooling point.
        tolerance: Ends when what is unknown is at most this share of the distance found.
        grey: `grid.grain` of the device; the search also ends when the pictures between both ends are used up.
        norm: In L2 points move on the straight segment, in Linf each pixel is held to a box around the clean one.

    Returns:
        The fooling end.
    """
    clean, way = problem.clean, far - problem.clean
    length = float(np.abs(way).max())
    if length == 0:
        return far

    def at(part: float) -> NDArray[np.float32]:
        point: NDArray[np.float32]
        if norm == "linf":
            box = np.float32(part * length)
            point = clean + np.clip(way, -box, box)
        else:
            point = clean + np.float32(part) * way
        return point

    # No pixel moves by half a level between both ends: what is between looks like one of them.
    least = grey / (2 * length)
    low, high = 0.0, 1.0
    while high - low > max(tolerance * high, least, _LEAST):
        middle = (low + high) / 2
        if (yield from fools(at(middle))):
            high = middle
        else:
            low = middle
    return at(high)


_LEAST = 1e-7
"""Of float32: no more halvings are worth a query."""
