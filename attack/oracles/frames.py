"""The checks of every oracle: the caller gives frames as announced, and the device one class for each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle
from variegate.keys.errors import Refusal, RefusedError

MAX_CLASSES = 1 << 16
"""Most classes that a device may announce: toolkits are given as many scores."""


def check_frames(frames: object, oracle: Oracle) -> None:
    """Refuses, as a device does, frames in another format than announced.

    Args:
        frames: (N, *shape) of the oracle's dtype, N from 1 to its batch; float32 in [0, 1].
        oracle: Announces the format.

    Raises:
        RefusedError: `INPUT`, or `TOO_LARGE` for too many frames.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != oracle.dtype or frames.shape[1:] != oracle.shape:
        sides = ", ".join(map(str, oracle.shape))
        raise RefusedError(Refusal.INPUT, f"frames are not {oracle.dtype} of shape (N, {sides})")
    if not len(frames):
        raise RefusedError(Refusal.INPUT, "a query has at least one frame")
    if len(frames) > oracle.batch:
        raise RefusedError(Refusal.TOO_LARGE, f"a query has at most {oracle.batch} frames")
    # The comparison is also false for NaN.
    if frames.dtype == np.float32 and not (frames.min() >= 0 and frames.max() <= 1):
        raise RefusedError(Refusal.INPUT, "frames hold values outside of [0, 1]")


def check_labels(labels: NDArray[np.int64], count: int, classes: int) -> NDArray[np.int64]:
    """The labels, if a device may answer them.

    Args:
        labels: Its answer.
        count: Frames that were asked.
        classes: Number of classes.

    Raises:
        RefusedError: `MALFORMED`: too few, too many, or no classes of this device.
    """
    if labels.shape != (count,) or labels.dtype != np.int64:
        raise RefusedError(Refusal.MALFORMED, f"the device gave no {count} labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise RefusedError(Refusal.MALFORMED, f"the device gave labels outside of its {classes} classes")
    return labels
