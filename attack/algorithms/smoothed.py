"""The attack "smoothed": HopSkipJump on votes over noise, which sees the base without the ripples of a rewriter.

A copy's attractors repeat with a period d along each message. Noise that is wide compared with d/2 reaches both sides
of every ripple, so that votes average the ripples out. The base's own boundary remains, slightly rounded: this is
randomised smoothing (Cohen, Rosenfeld, Kolter, ICML 2019, section 3.2.1), used against a defence. Wide probes keep the
search away from the remaining attractors. The cost is `votes` labels for each point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.search import Norm, Problem, Result, Search
from variegate.keys.errors import MisuseError


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Smoothed search in L2, profile `corrected`.

    The result is the nearest point for which both most votes and its own label are of another class.

    Attributes:
        votes: Labels for each point: its own, and those of noisy copies of it.
        sigma: Standard deviation of the noise for each pixel, scale 0..1.
        wide: First radius of HopSkipJump's probes, as a share of the distance.
        finest: Least such radius.
    """

    votes: int = 7
    sigma: float = 0.02
    wide: float = 0.5
    finest: float = 0.1
    name: ClassVar[str] = "smoothed"
    profile: ClassVar[str] = "corrected"
    norm: ClassVar[Norm] = "l2"
    result: ClassVar[Result] = "iterate"

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise MisuseError("votes must be at least 1")
        if not 0 <= self.sigma < math.inf:
            raise MisuseError("sigma must be a number from 0")
        HopSkipJump(wide=self.wide, finest=self.finest)

    def search(self, problem: Problem) -> Search:
        """As `Attack.search`: asks each point of HopSkipJump's several times, and answers it with the majority."""
        inner = HopSkipJump(wide=self.wide, finest=self.finest).search(problem)
        nearest = math.inf
        points = next(inner)
        while True:
            shape = (len(points), self.votes, problem.clean.size)
            noise = problem.rng.standard_normal(shape, np.float32) * np.float32(self.sigma)
            noise[:, 0] = 0
            frames = np.clip(points[:, np.newaxis] + noise, 0, 1)
            fooled = (yield frames.reshape(-1, problem.clean.size)).reshape(shape[:2])
            votes = fooled.mean(axis=1) > 0.5  # noqa: PLR2004 - most of them
            for i in np.flatnonzero(votes & fooled[:, 0]):
                length = float(np.linalg.norm(points[i] - problem.clean))
                if length < nearest:
                    nearest = length
                    problem.keep(points[i].copy())
            try:
                points = inner.send(votes)
            except StopIteration:
                return
