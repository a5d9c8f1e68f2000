"""The search on a segment, with a number of queries that suits the value of its end point."""

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
        tolerance: Ends when the uncertainty is at most this share of the distance found.
        grey: `grid.grain` of the device; the search also ends when the device sees no picture between both ends.
        norm: How points move, see `steps.between`.

    Returns:
        The fooling end.
    """
    clean = problem.clean
    away = np.abs(far - clean)
    if not away.any():
        return far
    # In Linf the pixels that move pass from level to level together; in L2 each does so at a place of its own.
    least = grey / float(2 * away.max() if norm == "linf" else away.sum())
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
