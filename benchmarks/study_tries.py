"""k tries on the victim: the chance that one of several samples fools it.

Assumes that the victim may be shown several frames of the same thing (a vehicle sees a sign many times), and that the
attacker learns nothing between tries. So the order rests on what the attacker's own device tells: a sample that still
fools it when shaken lies deep in a region, more likely the base's, and goes first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle, ask_all, to_frames, to_points
from variegate.keys.errors import MisuseError


def firmness(
    own: Oracle,
    samples: NDArray[Any],
    classes: NDArray[np.int64],
    *,
    sigma: float,
    votes: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """How often samples fool the attacker's own device when noise is added.

    Args:
        own: The attacker's device.
        samples: Frames (N, *shape) of its dtype.
        classes: int64 (N,), the images' own.
        sigma: Standard deviation of the noise for each pixel, scale 0..1.
        votes: Noisy frames for each sample; so many queries.
        rng: Of the noise.

    Returns:
        Shares in [0, 1], float64 (N,).

    Raises:
        MisuseError: `votes` below 1 or `sigma` below 0.
        LimitError, RefusedError, DeviceError: The device's.
    """
    if votes < 1 or not sigma >= 0:
        raise MisuseError("firmness needs a vote and a sigma from 0 up")
    out = np.zeros(len(samples))
    for _ in range(votes):
        noise = rng.standard_normal(samples.shape, np.float32) * np.float32(sigma)
        out += ask_all(own, to_frames(to_points(samples) + noise, own.dtype)) != classes
    return out / votes


def ordered(known: NDArray[np.float64], distances: NDArray[np.float64]) -> NDArray[np.int64]:
    """In which order to try: the firmest first, and among equals the nearest.

    Args:
        known: `firmness` of the candidates of each image, (N, k).
        distances: Of the candidates to the clean images, (N, k).

    Returns:
        Indices of candidates, int64 (N, k).
    """
    return np.lexsort((distances, -known), axis=1)


def chances(fooled: NDArray[np.bool_], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of images for which one of the first 1, 2, ..., k tries fools the victim, float64 (k,).

    Args:
        fooled: Whether each candidate fools the victim, (N, k).
        order: From `ordered`.
    """
    tried = np.take_along_axis(fooled, order, axis=1)
    out: NDArray[np.float64] = np.logical_or.accumulate(tried, axis=1).mean(axis=0)
    return out


def tried(victim: Oracle, candidates: NDArray[Any], classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each candidate fools the victim, (N, k), of candidates (N, k, *shape) for images of `classes` (N,).

    Raises:
        LimitError, RefusedError, DeviceError: The victim's.
    """
    count, k = candidates.shape[:2]
    labels = ask_all(victim, candidates.reshape(count * k, *candidates.shape[2:])).reshape(count, k)
    out: NDArray[np.bool_] = labels != classes[:, np.newaxis]
    return out
