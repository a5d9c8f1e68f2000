"""The grid of whole grey levels, which a device of bytes can distinguish. Points and probes on it waste no queries."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.draws import signs
from variegate.attack.oracle import LEVELS
from variegate.attack.search import Points, Problem

_SPARSEST = 6


def grain(problem: Problem) -> float:
    """The least difference of a pixel that the device can distinguish: 1/255 for uint8, 0 for float32."""
    return 1 / LEVELS if problem.dtype == "uint8" else 0.0


def settled(point: NDArray[np.float32], grey: float) -> NDArray[np.float32]:
    """The point that the device sees when asked for this one."""
    inside: NDArray[np.float32] = np.clip(point, 0, 1)
    if grey:
        np.multiply(inside, np.float32(LEVELS), out=inside)
        np.rint(inside, out=inside)
        np.multiply(inside, np.float32(grey), out=inside)
    return inside


def probes(problem: Problem, point: NDArray[np.float32], count: int, radius: float, grey: float) -> Points:
    """Probes around a point at about `radius`, each pixel up or down by the same.

    Such a corner of a cube is as good a direction as a point of a sphere and takes one random bit a pixel. On a device
    of bytes the point must be settled; then a pixel moves by whole grey levels, and where `radius` would take less than
    one, only a share of all pixels moves, 1/64 at the least, so that each probe is seen as it is meant.

    Args:
        problem: The image.
        point: (l,).
        count: Probes.
        radius: Root of the mean squared length, pixels in 0..1.
        grey: `grain` of the device.

    Returns:
        float32 (count, l) in [0, 1].
    """
    size = radius / math.sqrt(point.size)
    sparser = 0
    if grey:
        if size < grey:
            sparser = min(_SPARSEST, round(-2 * math.log2(size / grey)))
        size = max(1, round(size / grey)) * grey
    out = signs(problem.rng, count, point.size, size, sparser)
    out += point
    return np.clip(out, 0, 1, out=out)
