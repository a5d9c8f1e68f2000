"""The Boundary attack as the Adversarial Robustness Toolbox 1.20.1 runs it (profile `art-1.20`)."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.draws import spheres
from variegate.attack.algorithms.fields import above, at_least, between, within
from variegate.attack.algorithms.hopskipjump_art import art_given, art_noise
from variegate.attack.search import Answers, Norm, Points, Problem, Result, Search

MOST_AT_ONCE = 1000
"""Most candidates asked at once: a bound on memory."""
_FEW, _MANY = 0.2, 0.5
"""Shares of successes below and above which a step is changed."""

Candidates = Generator[Points, Answers, Points | None]


@dataclass(frozen=True, kw_only=True)
class ArtBoundary:
    """ART's Boundary attack: its defaults, its order of operations, and the iterate that it returns.

    Differences from the paper (Brendel, Rauber, Bethge, ICLR 2018) that are kept here:

    - It starts from the noise itself, without a search on the segment to the clean image.
    - An iteration draws `sample_size` steps on the sphere, and takes the step towards the image from all that fool; the
      nearest of the points that still fool is the next iterate, even if it is farther than the last.
    - Either step is drawn again, smaller, until one succeeds, `num_trial` times at most; then the search ends. Both
      sizes are unlimited, so the step towards the image may go past it.

    Attributes:
        delta: First length of the step on the sphere, as a share of the distance.
        epsilon: First length of the step towards the image, as a share of the distance.
        step_adapt: Factor that makes either smaller; its inverse makes them larger.
        max_iter: Iterations; the search ends there with queries left.
        num_trial: Trials of each step.
        sample_size: Candidates of a trial.
        init_size: Draws of noise before giving up.
        min_epsilon: The search ends below this `epsilon`.
    """

    delta: float = 0.01
    epsilon: float = 0.01
    step_adapt: float = 0.667
    max_iter: int = 5_000
    num_trial: int = 25
    sample_size: int = 20
    init_size: int = 100
    min_epsilon: float = 0.0
    name: ClassVar[str] = "boundary"
    profile: ClassVar[str] = "art-1.20"
    norm: ClassVar[Norm] = "l2"
    result: ClassVar[Result] = "iterate"

    def __post_init__(self) -> None:
        above("delta", self.delta, 0)
        above("epsilon", self.epsilon, 0)
        between("step_adapt", self.step_adapt, 0, 1)
        at_least("max_iter", self.max_iter, 0)
        at_least("num_trial", self.num_trial, 1)
        within("sample_size", self.sample_size, 1, MOST_AT_ONCE)
        at_least("init_size", self.init_size, 1)
        at_least("min_epsilon", self.min_epsilon, 0)

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`."""
        point = yield from art_given(problem)
        if point is None and (point := (yield from art_noise(problem, self.init_size))) is None:
            return
        problem.keep(point)
        sizes = _Sizes(self.delta, self.epsilon, self.step_adapt)
        for _ in range(self.max_iter):
            around = yield from self._around(problem, point, sizes)
            if around is None:
                return
            nearer = yield from self._nearer(problem, around, sizes)
            point = _nearest(problem, around if nearer is None else nearer)
            problem.keep(point)
            if nearer is None or sizes.epsilon < self.min_epsilon:
                return

    def _around(self, problem: Problem, point: NDArray[np.float32], sizes: _Sizes) -> Candidates:
        """Points on the sphere that are answered as wanted."""
        for _ in range(self.num_trial):
            candidates = on_sphere(problem, point, self.sample_size, sizes.delta)
            fooled = yield candidates
            sizes.delta = sizes.adapted(sizes.delta, fooled)
            if fooled.any():
                return candidates[fooled]
        return None

    def _nearer(self, problem: Problem, around: Points, sizes: _Sizes) -> Candidates:
        """Those of them that are still answered so after a step towards the image."""
        for _ in range(self.num_trial):
            candidates = np.clip(around + np.float32(sizes.epsilon) * (problem.clean - around), 0, 1)
            fooled = yield candidates
            sizes.epsilon = sizes.adapted(sizes.epsilon, fooled)
            if fooled.any():
                return candidates[fooled]
        return None


@dataclass
class _Sizes:
    delta: float
    epsilon: float
    factor: float

    def adapted(self, size: float, fooled: NDArray[np.bool_]) -> float:
        share = fooled.mean()
        return size * self.factor if share < _FEW else size / self.factor if share > _MANY else size


def on_sphere(problem: Problem, point: NDArray[np.float32], count: int, delta: float) -> Points:
    """Steps of `delta` of the distance across the way to the clean image, brought back to the distance.

    Returns:
        float32 (count, l) in [0, 1].
    """
    away = point - problem.clean
    distance = float(np.linalg.norm(away))
    steps = spheres(problem.rng, count, point.size, delta * distance)
    if distance > 0:
        direction = away / np.float32(distance)
        steps -= (steps @ direction)[:, np.newaxis] * direction
    long = math.sqrt(1 + delta**2)
    steps += away
    steps *= np.float32(1 / long)
    steps += problem.clean
    return np.clip(steps, 0, 1, out=steps)


def _nearest(problem: Problem, points: Points) -> NDArray[np.float32]:
    out: NDArray[np.float32] = points[np.linalg.norm(points - problem.clean, axis=1).argmin()]
    return out
