"""HopSkipJump over labels (Chen, Jordan, Wainwright, IEEE S&P 2020), L2, untargeted, on a camera's bytes.

Three things differ from the paper's algorithm 2, because the device takes bytes and its copy is a rippled surface:

- **Probes are whole grey levels.** The paper's radius, dist / d, lies far below one grey level, where rounding
  would undo every probe. Here a probe moves each pixel by -1, 0 or 1, sparsely, so that it is exact; its length
  is `FLOOR` grey levels per pixel (root mean square) at the least.
- **Probes are wide at first.** Far from the image, narrow probes see only the ripples of attractors, and the search
  stays in the first one. So the radius starts at `WIDE` of the distance and shrinks by `NARROWER` after each step
  that brought little.
- **Searches on a segment end when the pictures between are used up**: fewer than one grey level, summed over all
  pixels, separates both ends. It stands in for the paper's theta = d^(-3/2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import MisuseError

Labels = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""What the attacker has: uint8 (N, C, H, W) to labels, int64 (N,)."""

Array = NDArray[np.float64]

LEVELS = 255
PROBES = 100
"""Probes of a gradient estimate, the paper's B_0. There the number grows with the square root of the steps made; on a
small budget many coarse steps came nearer."""
WIDE, NARROWER, PROGRESS = 0.5, 0.7, 0.97
FLOOR = 0.5
_NOISES, _NOISE_ROUNDS = 16, 8


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        adversarial: uint8 (C, H, W), answered differently from the clean image when asked again alone, or None.
        label: What it was answered with, or None.
        queries: Labels asked for, the last one included.
        distances: (queries so far, L2 distance with pixels in 0..1) at each improvement.
    """

    adversarial: NDArray[np.uint8] | None
    label: int | None
    queries: int
    distances: tuple[tuple[int, float], ...]

    @property
    def distance(self) -> float:
        """L2 distance of the result with pixels in 0..1; infinite without a result."""
        return self.distances[-1][1] if self.adversarial is not None else float("inf")


class _SpentError(Exception):
    """The search's own budget is used up."""


class _Oracle:
    """Counts queries, stops at the budget and keeps the nearest adversarial picture of all that were asked."""

    def __init__(self, labels: Labels, image: NDArray[np.uint8], label: int, budget: int) -> None:
        self._labels, self._shape, self._label, self._budget = labels, image.shape, label, budget
        self.clean: Array = image.reshape(-1).astype(np.float64)
        self.queries = 0
        self.best: NDArray[np.uint8] | None = None
        self.distances: list[tuple[int, float]] = []

    def ask(self, pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether pictures, uint8 (N, l), are answered differently from the clean image."""
        if self.queries + len(pictures) > self._budget:
            raise _SpentError
        self.queries += len(pictures)
        fooled: NDArray[np.bool_] = self._labels(pictures.reshape(-1, *self._shape)) != self._label
        if fooled.any():
            lengths = np.linalg.norm(pictures[fooled] - self.clean, axis=1) / LEVELS
            nearest = int(lengths.argmin())
            if not self.distances or lengths[nearest] < self.distances[-1][1]:
                self.best = pictures[fooled][nearest]
                self.distances.append((self.queries, float(lengths[nearest])))
        return fooled

    def ask_one(self, point: Array) -> bool:
        """Whether a point, float (l,), is adversarial once rounded."""
        return bool(self.ask(_rounded(point)[np.newaxis])[0])


def hop_skip_jump(
    labels: Labels,
    image: NDArray[np.uint8],
    label: int,
    *,
    queries: int,
    rng: np.random.Generator,
    start: NDArray[np.uint8] | None = None,
) -> Found:
    """Searches the nearest picture that is answered differently.

    Args:
        labels: The device.
        image: The clean image, uint8 (C, H, W).
        label: What the device says of it.
        queries: Most labels to ask for; at least 2.
        rng: All randomness.
        start: Pictures of other kinds to start from, uint8 (N, C, H, W): the one whose boundary is nearest is
            taken. None draws noise, as the paper does.

    Returns:
        The result, asked again by itself. Without a starting picture that is answered differently it has none.

    Raises:
        MisuseError: When fewer than two queries are allowed, or shapes or dtypes do not fit.
    """
    starts = np.empty((0, *image.shape), np.uint8) if start is None else start
    if image.dtype != np.uint8 or starts.dtype != np.uint8 or starts.shape[1:] != image.shape:
        raise MisuseError("image and starting pictures must be uint8 of one shape")
    if queries < 2:  # noqa: PLR2004
        raise MisuseError("a search needs at least two queries")
    oracle = _Oracle(labels, image, label, queries - 1)  # one is kept for the judgement at the end
    with contextlib.suppress(_SpentError):
        _search(oracle, None if start is None else starts.reshape(len(starts), image.size), rng)
    if oracle.best is None:
        return Found(None, None, oracle.queries, ())
    picture = oracle.best.reshape(image.shape)
    answer = int(labels(picture[np.newaxis])[0])
    kept = picture if answer != label else None
    return Found(kept, None if kept is None else answer, oracle.queries + 1, tuple(oracle.distances))


def _search(oracle: _Oracle, starts: NDArray[np.uint8] | None, rng: np.random.Generator) -> None:
    """Walks along the boundary until the budget is spent, or no further step is possible."""
    if starts is None:
        starts = _noise(oracle, rng)
    elif len(starts):
        starts = starts[oracle.ask(starts)]
    if not len(starts):
        return
    firsts = [_to_boundary(oracle, picture.astype(np.float64)) for picture in starts]
    point = min(firsts, key=lambda first: _distance(oracle, first))
    wide, t = WIDE, 0
    while (before := _distance(oracle, point)) > 0:
        t += 1
        spread = max(FLOOR, wide * before / np.sqrt(point.size))
        direction = _estimate(oracle, point, PROBES, spread, rng)
        # Geometric progression, algorithm 2 step 3: halve until the step stays on the adversarial side.
        step = before / np.sqrt(t)
        while step > FLOOR and not oracle.ask_one(moved := np.clip(point + step * direction, 0, LEVELS)):
            step /= 2
        if step > FLOOR:
            point = _to_boundary(oracle, moved)
        if _distance(oracle, point) > PROGRESS * before:
            wide *= NARROWER


def _noise(oracle: _Oracle, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One picture of uniform noise that is answered differently, uint8 (1, l); none where all are alike."""
    for _ in range(_NOISE_ROUNDS):
        drawn = rng.integers(0, LEVELS + 1, (_NOISES, oracle.clean.size), np.uint8)
        fooled = drawn[oracle.ask(drawn)]
        if len(fooled):
            return fooled[:1]
    return drawn[:0]


def _to_boundary(oracle: _Oracle, far: Array) -> Array:
    """The point nearest to the clean image, by bisection, on the segment to an adversarial point (algorithm 1)."""
    low, high = 0.0, 1.0
    way = far - oracle.clean
    length = np.abs(way).sum()
    while (high - low) * length >= 1:
        middle = (low + high) / 2
        if oracle.ask_one(oracle.clean + middle * way):
            high = middle
        else:
            low = middle
    point: Array = oracle.clean + high * way
    return point


def _estimate(oracle: _Oracle, point: Array, count: int, spread: float, rng: np.random.Generator) -> Array:
    """The direction into the adversarial side: equation 16 of the paper, with its baseline.

    Each probe is credited with the step that was really asked for, after rounding and clipping.
    """
    middle = _rounded(point).astype(np.int16)
    if spread < 1:
        nonzero = rng.random((count, point.size), np.float32) < spread**2
        steps = np.where(nonzero, rng.integers(0, 2, nonzero.shape, np.int8) * 2 - 1, 0)
    else:
        steps = np.rint(rng.standard_normal((count, point.size), np.float32) * np.float32(spread))
    probes = np.clip(middle + steps.astype(np.int16), 0, LEVELS)
    answers = np.where(oracle.ask(probes.astype(np.uint8)), 1.0, -1.0)
    mean = answers.mean()
    weights = answers - mean if abs(mean) < 1 else answers
    total = weights.astype(np.float32) @ (probes - middle).astype(np.float32)
    length = np.linalg.norm(total)
    out: Array = (total / length if length > 0 else total).astype(np.float64)
    return out


def _distance(oracle: _Oracle, point: Array) -> float:
    return float(np.linalg.norm(point - oracle.clean))


def _rounded(point: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(point, 0, LEVELS)).astype(np.uint8)
