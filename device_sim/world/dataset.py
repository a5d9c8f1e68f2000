"""An endless stream of photographed signs: frame i is a function of the seed and of i alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count as count_from

import numpy as np
from numpy.typing import NDArray

from variegate.device_sim.world.camera import CROP, Board, Pose, photograph
from variegate.device_sim.world.signs import SIGNS, render
from variegate.keys.errors import MisuseError

_TEXTURE = 128  # pixels across a sign: more than twice what the sensor sees at the nearest distance drawn
_WORD = 2**64


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        image: uint8 (3, 32, 32), RGB.
        label: Class index in `SIGNS`.
        pose: How the sign was seen.
    """

    image: NDArray[np.uint8]
    label: int
    pose: Pose


@dataclass(frozen=True)
class Batch:
    """Consecutive frames.

    Attributes:
        images: uint8 (N, 3, 32, 32), RGB.
        labels: int64 (N,), class indices in `SIGNS`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def frame(seed: int, index: int) -> Frame:
    """Make one frame.

    The generator is Philox4x64 (Salmon et al., SC 2011) keyed by (seed, index); streams of different keys are
    independent, so frames can be made in any order.

    Args:
        seed: Which stream, 0 to 2^64 - 1.
        index: Which frame of it, 0 to 2^64 - 1.

    Raises:
        MisuseError: Seed or index is out of range.
    """
    _check("seed", seed)
    _check("index", index)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    label = int(rng.integers(len(SIGNS)))
    pose = Pose.draw(rng)
    image = photograph(_board(label), pose)
    return Frame(np.ascontiguousarray(image.transpose(2, 0, 1)), label, pose)


def stream(seed: int, *, start: int = 0) -> Iterator[Frame]:
    """Yield frames for ever.

    Args:
        seed: Which stream.
        start: First frame.

    Raises:
        MisuseError: Seed or start is out of range; raised here, not at the first frame.
    """
    _check("seed", seed)
    _check("start", start)
    return (frame(seed, index) for index in count_from(start))


def batch(seed: int, start: int, count: int) -> Batch:
    """Make frames start to start + count - 1 of a stream.

    Raises:
        MisuseError: Seed, start or count is out of range.
    """
    _check("count", count)
    images = np.empty((count, 3, CROP, CROP), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for row, seen in zip(range(count), stream(seed, start=start), strict=False):
        images[row], labels[row] = seen.image, seen.label
    return Batch(images, labels)


def _check(name: str, value: int) -> None:
    if not 0 <= value < _WORD:
        raise MisuseError(f"{name} is {value}", hint="use a whole number from 0 to 2^64 - 1")


@lru_cache(maxsize=len(SIGNS))
def _board(label: int) -> Board:
    return Board.of_sign(render(SIGNS[label], _TEXTURE))
