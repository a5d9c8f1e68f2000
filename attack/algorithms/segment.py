"""The search on a segment, with as many queries as its end is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.steps import Step, between, fools
from variegate.attack.search import Norm, Problem


def to_edge(problem: Problem, far: NDArray[np.float32], tolerance: float, grey: float, norm: Norm = "l2") -> Step:
    """Bisects from a fooling point (l,) towards the clean image (HopSkipJump's algorithm 1).

    Args:
        problem: The image.
        far: The fooling point.
        tolerance: Ends when what is unknown is at most this share of the distance found.
        grey: `grid.grain` of the device; the search also ends when the pictures between both ends are used up.
        norm: How points move, see `steps.between`.

    Returns:
        The fooling end.
    """
    clean = problem.clean
    length = float(np.abs(far - clean).max())
    if length == 0:
        return far
    # No pixel moves by half a level between both ends: what is between looks like one of them.
    least = grey / (2 * length)
    low, high = 0.0, 1.0
    while high - low > max(tolerance * high, least, _LEAST):
        middle = (low + high) / 2
        if (yield from fools(between(clean, far, middle, norm))):
            high = middle
        else:
            low = middle
    return between(clean, far, high, norm)


_LEAST = 1e-7
"""Of float32: no more halvings are worth a query."""
