"""The background of a sign: sky, a line of trees or houses, the ground, and the pole."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_COARSE = 6  # cells of the noise that shapes clouds and trees

# Colours from 0 to 255; a scene mixes between the two of a pair.
_SKIES = np.array(
    [
        [[95, 150, 215], [190, 215, 240]],  # clear, from the zenith down to the horizon
        [[165, 170, 178], [215, 217, 220]],  # overcast
        [[70, 80, 110], [225, 165, 120]],  # dusk
    ],
    dtype=np.float32,
)
_GROUNDS = np.array(
    [
        [[25, 50, 22], [95, 130, 60]],  # trees
        [[80, 62, 40], [165, 140, 90]],  # fields
        [[70, 70, 74], [135, 132, 130]],  # road
        [[120, 80, 65], [205, 190, 170]],  # houses
    ],
    dtype=np.float32,
)
_POLE_GREY = 125.0
_POLE_WIDTH = 0.09  # of the box


def background(rng: np.random.Generator, side: int, *, pole_x: float) -> NDArray[np.float32]:
    """Draw the inside of the detector's box without the sign.

    Args:
        rng: Fixes the scene.
        side: Side of the box in sensor pixels.
        pole_x: Middle of the pole from the left, as a part of the side.

    Returns:
        float32 (3, side, side), RGB, about 0 to 255.
    """
    horizon, softness, raggedness, texture, brightness = rng.random(5)
    sky = _SKIES[rng.integers(len(_SKIES))]
    ground = _GROUNDS[rng.integers(len(_GROUNDS))]
    noise = rng.standard_normal((3, _COARSE, _COARSE), dtype=np.float32)
    grain = rng.standard_normal((side, side), dtype=np.float32)

    spread = _spread(side)
    shape, clouds, patches = spread @ noise @ spread.T
    down = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    height = down - np.float32(-0.1 + 1.3 * horizon) + np.float32(0.35 * raggedness) * shape
    is_ground = np.clip(0.5 + np.float32(4 + 26 * softness) * height, 0, 1)

    in_sky = _mix(sky, np.clip(down + 0.15 * clouds, 0, 1))
    in_ground = _mix(ground, np.clip(0.5 + np.float32(0.1 + 0.3 * texture) * (patches + 0.5 * grain), 0, 1))
    scene: NDArray[np.float32] = in_sky + is_ground * (in_ground - in_sky)
    first, last = (int(side * np.clip(pole_x + s * _POLE_WIDTH / 2, 0, 1)) for s in (-1, 1))
    scene[:, side // 2 :, first:last] = _POLE_GREY
    scene *= np.float32(0.75 + 0.35 * brightness)
    return scene


def _mix(pair: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blend two colours (2, 3) by a share (H, W) of the second, to (3, H, W)."""
    start, end = pair[0][:, None, None], pair[1][:, None, None]
    mixed: NDArray[np.float32] = start + share * (end - start)
    return mixed


@lru_cache(maxsize=256)
def _spread(side: int) -> NDArray[np.float32]:
    """Matrix (side, coarse) that interpolates the coarse cells linearly."""
    position = np.linspace(0, _COARSE - 1, side, dtype=np.float32)[:, None]
    weights: NDArray[np.float32] = np.clip(1 - np.abs(position - np.arange(_COARSE, dtype=np.float32)), 0, None)
    return weights
