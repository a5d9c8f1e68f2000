"""Overshoot: scales a perturbation, x + s (x_adv - x).

Assumes that the attacker values success above a small distance: a sample just over the boundary of one copy may be
pushed over that of another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import LEVELS
from variegate.keys.errors import MisuseError

OVERSHOOTS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
"""The factors s that replication is given for."""


def stretched(clean: NDArray[Any], sample: NDArray[Any], s: float, dtype: str) -> NDArray[Any]:
    """Goes to x + s (x_adv - x), clipped, as a frame of the device's dtype.

    Args:
        clean: Clean images, of the shape of `sample` or of its last axes: uint8 frames or floats in 0..1.
        sample: Samples found, likewise.
        s: Overshoot; 1 gives the sample, 0 the clean image.
        dtype: Of the result: "uint8" (0..255, rounded) or "float32" (0..1).

    Returns:
        Frames of the shape of `sample`; with s = 1 and the dtype kept, the sample itself.

    Raises:
        MisuseError: `dtype` is neither, s is negative or not finite, or the shapes do not fit.
    """
    if dtype not in {"uint8", "float32"}:
        raise MisuseError(f"frames of dtype {dtype!r} are not supported", hint="choose uint8 or float32")
    if not (np.isfinite(s) and s >= 0):
        raise MisuseError(f"{s} is not a valid overshoot", hint="choose a number from 0 up")
    if clean.ndim > sample.ndim or clean.shape != sample.shape[sample.ndim - clean.ndim :]:
        raise MisuseError(f"a clean image of {clean.shape} does not fit samples of {sample.shape}")
    if s == 1 and str(sample.dtype) == dtype:
        return sample  # exactly, without the rounding of x + (x_adv - x)
    # In grey levels, bytes are whole numbers and a half is a half: nothing hangs on a division by 255.
    start, end = _grey(clean), _grey(sample)
    moved = np.clip(start + s * (end - start), 0, LEVELS)
    out: NDArray[Any] = np.rint(moved).astype(np.uint8) if dtype == "uint8" else (moved / LEVELS).astype(np.float32)
    return out


def _grey(images: NDArray[Any]) -> NDArray[np.float64]:
    """Frames of either dtype on the scale 0..255."""
    floats = images.astype(np.float64)
    return floats if images.dtype == np.uint8 else floats * LEVELS
