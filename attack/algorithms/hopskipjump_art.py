"""HopSkipJump as the Adversarial Robustness Toolbox 1.20.1 runs it (profile `art-1.20`)."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.draws import spheres
from variegate.attack.algorithms.estimate import estimate
from variegate.attack.algorithms.fields import at_least, known_norm
from variegate.attack.algorithms.steps import Step, between, fools
from variegate.attack.search import Answers, Norm, Points, Problem, Result, Search
from variegate.keys.errors import MisuseError

_FIRST_DELTA = 0.1
_NOISE_THRESHOLD = 1e-3


@dataclass(frozen=True, kw_only=True)
class ArtHopSkipJump:
    """ART's HopSkipJump: its defaults, its order of operations, and the iterate that it returns.

    Differences from the paper (Chen, Jordan, Wainwright, S&P 2020, algorithm 2) that are kept here:

    - The result is the point after the last step towards the wanted side, not the one brought back to the boundary.
    - The first probes have radius 0.1; later ones 0.01 times the distance, taken before the search on the segment.
    - The segment's threshold theta is 0.01 / sqrt(l), in Linf 0.01 / l; for the first noise it is 0.001 in L2.
    - If all answers are equal, the estimate is the mean of the probes or its opposite, without a baseline.
    - Noise is drawn uniformly up to `init_size` times, for a target too; a starting picture is taken as it is.
    - Linf draws uniform noise in place of normal noise, puts it on the same sphere, and steps by signs.

    Not kept: float64 in places, and the unbounded loop over step sizes when the estimate is zero.

    Attributes:
        norm: Of the distance.
        max_iter: Iterations; the search ends there with queries left.
        max_eval: Most probes of an estimate.
        init_eval: Probes of the first estimate; the count grows with the square root of the iteration.
        init_size: Draws of noise before giving up.
    """

    norm: Norm = "l2"
    max_iter: int = 50
    max_eval: int = 10_000
    init_eval: int = 100
    init_size: int = 100
    name: ClassVar[str] = "hopskipjump"
    profile: ClassVar[str] = "art-1.20"
    result: ClassVar[Result] = "iterate"

    def __post_init__(self) -> None:
        known_norm(self.norm)
        at_least("max_iter", self.max_iter, 0)
        at_least("init_eval", self.init_eval, 1)
        at_least("init_size", self.init_size, 1)
        if self.max_eval < self.init_eval:
            raise MisuseError("max_eval must be at least init_eval")

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`."""
        point = yield from art_given(problem)
        if point is None:
            point = yield from art_noise(problem, self.init_size)
            if point is None:
                return
            point = yield from _to_boundary(problem, point, "l2", _NOISE_THRESHOLD)
        problem.keep(point)
        size = problem.clean.size
        theta = 0.01 / (math.sqrt(size) if self.norm == "l2" else size)
        for t in range(self.max_iter):
            delta = 0.01 * self._distance(problem, point) if t else _FIRST_DELTA
            point = yield from _to_boundary(problem, point, self.norm, theta)
            count = min(int(self.init_eval * math.sqrt(t + 1)), self.max_eval)
            update = yield from self._update(problem, point, count, delta)
            if not update.any():
                return
            epsilon = 2 * self._distance(problem, point) / math.sqrt(t + 1)
            while True:
                epsilon /= 2
                moved = np.clip(point + np.float32(epsilon) * update, 0, 1)
                if (yield from fools(moved)):
                    break
            point = moved
            problem.keep(point)

    def _update(self, problem: Problem, point: NDArray[np.float32], count: int, delta: float) -> Step:
        """The direction of the step (`_compute_update`)."""

        def draw(n: int) -> Points:
            if self.norm == "l2":
                probes = spheres(problem.rng, n, point.size, delta)
            else:
                probes = problem.rng.random((n, point.size), np.float32)
                probes -= np.float32(0.5)
                probes *= (np.float32(delta) / np.linalg.norm(probes, axis=1))[:, np.newaxis]
            probes += point
            return np.clip(probes, 0, 1, out=probes)

        direction = (yield from estimate(point, count, draw)).with_baseline()
        if self.norm == "linf":
            return np.sign(direction)
        length = np.linalg.norm(direction)
        out: NDArray[np.float32] = direction / length if length > 0 else direction
        return out

    def _distance(self, problem: Problem, point: NDArray[np.float32]) -> float:
        away = point - problem.clean
        return float(np.linalg.norm(away) if self.norm == "l2" else np.abs(away).max())


Found = Generator[Points, Answers, NDArray[np.float32] | None]


def art_given(problem: Problem) -> Found:
    """The first given start that is answered as wanted, as it is (ART's `x_adv_init`, of which it takes one)."""
    if len(problem.starts):
        fooled = yield problem.starts
        if fooled.any():
            given: NDArray[np.float32] = problem.starts[int(fooled.argmax())]
            return given
    return None


def art_noise(problem: Problem, draws: int) -> Found:
    """Uniform noise that is answered as wanted, for a target too."""
    for _ in range(draws):
        point = problem.rng.random(problem.clean.size, np.float32)
        if (yield from fools(point)):
            return point
    return None


def _to_boundary(problem: Problem, far: NDArray[np.float32], norm: Norm, theta: float) -> Step:
    """Bisects between the clean image and `far`; in Linf over boxes around the clean image."""
    clean = problem.clean
    if norm == "l2":
        low, high, threshold = 0.0, 1.0, theta
    else:
        low, high = 0.0, float(np.abs(clean - far).max())
        threshold = min(high * theta, theta)

    def at(share: float) -> NDArray[np.float32]:
        if norm == "l2":
            return between(clean, far, share)
        return np.clip(far, clean - np.float32(share), clean + np.float32(share))

    while high - low > threshold:
        middle = (low + high) / 2
        if (yield from fools(at(middle))):
            high = middle
        else:
            low = middle
    return at(high)
