"""Low frequencies: images whose planes are sums of a few two-dimensional cosines (the DCT's)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import MisuseError


@cache
def _cosines(side: int, frequencies: int) -> NDArray[np.float32]:
    """Orthonormal cosines of the lowest frequencies, (frequencies, side)."""
    at = (2 * np.arange(side) + 1) * math.pi / (2 * side)
    rows = math.sqrt(2 / side) * np.cos(np.arange(frequencies)[:, np.newaxis] * at)
    rows[0] = math.sqrt(1 / side)
    return rows.astype(np.float32)


def to_pixels(coefficients: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Images of coefficients; it keeps lengths and angles.

    Args:
        coefficients: (n, C, F, F), the lowest F frequencies of rows and columns.
        shape: (C, H, W) of an image.

    Returns:
        float32 (n, C * H * W).

    Raises:
        MisuseError: A side has fewer pixels than F.
    """
    channels, height, width = shape
    frequencies = coefficients.shape[-1]
    if frequencies > min(height, width):
        raise MisuseError(f"{frequencies} frequencies do not fit images of {height} x {width} pixels")
    across = coefficients.reshape(-1, frequencies) @ _cosines(width, frequencies)
    planes = _cosines(height, frequencies).T @ across.reshape(-1, frequencies, width)
    return planes.reshape(-1, channels * height * width)
