"""The Boundary attack over labels (Brendel, Rauber, Bethge, ICLR 2018), L2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.boundary_art import MOST_AT_ONCE, ArtBoundary
from variegate.attack.algorithms.draws import signs
from variegate.attack.algorithms.fields import above, at_least, between, within
from variegate.attack.algorithms.grid import grain
from variegate.attack.algorithms.segment import to_edge
from variegate.attack.algorithms.steps import first_start
from variegate.attack.search import Norm, Points, Problem, Result, Search

_FIRST_EDGE = 1e-3
_LEAST, _MOST = 1e-5, 0.5
"""Bounds of both steps, as shares of the distance: beyond them nothing is left to adapt."""


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Boundary, profile `corrected`: a random walk on the boundary that only comes nearer (algorithm 1).

    A proposal is a step orthogonal to the direction to the image, brought back to the sphere, and a step towards the
    image. A few are asked at once, and the nearest that fools is the next point. Every few rounds the orthogonal steps
    are asked alone: if half of them fool, the boundary is nearly flat and they may grow (the paper's section 2.3); the
    step towards the image follows the proposals' own rate. The first point is brought to the boundary by bisection,
    from the nearest of several starts. Orthogonal steps are drawn from the corners of a cube, which needs one random
    bit for each pixel. On a device of bytes they stay above half a grey level; points are not rounded, so that small
    steps add up.

    Attributes:
        delta: First length of the step across, as a share of the distance.
        epsilon: First length of the step towards the image, as a share of the distance.
        step_adapt: Factor that makes either smaller; its inverse makes them larger.
        proposals: Asked at once.
        every: Rounds of proposals between two that ask the steps across alone.
        noises: Draws of noise before giving up, without a start that is answered as wanted.
    """

    delta: float = 0.1
    epsilon: float = 0.02
    step_adapt: float = 0.667
    proposals: int = 6
    every: int = 5
    noises: int = 100
    name: ClassVar[str] = "boundary"
    profile: ClassVar[str] = "corrected"
    norm: ClassVar[Norm] = "l2"
    result: ClassVar[Result] = "best"

    def __post_init__(self) -> None:
        above("delta", self.delta, 0)
        between("epsilon", self.epsilon, 0, 1)
        between("step_adapt", self.step_adapt, 0, 1)
        within("proposals", self.proposals, 1, MOST_AT_ONCE)
        at_least("every", self.every, 1)
        at_least("noises", self.noises, 1)

    @classmethod
    def art(cls) -> ArtBoundary:
        """As ART 1.20.1 runs it."""
        return ArtBoundary()

    @classmethod
    def corrected(cls) -> Boundary:
        """As the paper has it, for bytes, too."""
        return cls()

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`."""
        grey = grain(problem)
        point = yield from first_start(problem, self.noises)
        if point is None:
            return
        point = yield from to_edge(problem, point, _FIRST_EDGE, grey)
        delta, epsilon, turn = self.delta, self.epsilon, 0
        while (away := float(np.linalg.norm(point - problem.clean))) > 0:
            turn += 1
            across = max(delta, grey / 2 * math.sqrt(point.size) / away)
            alone = turn % (self.every + 1) == 0
            moved = np.clip(_proposed(problem, point, self.proposals, across, 0.0 if alone else epsilon), 0, 1)
            fooled = yield moved
            share = fooled.mean()
            if alone:
                delta = self._adapted(delta, share, 0.2, 0.5)
                continue
            epsilon = self._adapted(epsilon, share, 0.1, 0.25)
            if fooled.any():
                nearer = moved[fooled]
                lengths = np.linalg.norm(nearer - problem.clean, axis=1)
                if lengths.min() < away:
                    point = nearer[lengths.argmin()]

    def _adapted(self, size: float, share: float, few: float, many: float) -> float:
        factor = self.step_adapt if share < few else 1 / self.step_adapt if share > many else 1.0
        return min(_MOST, max(_LEAST, size * factor))


def _proposed(problem: Problem, point: NDArray[np.float32], count: int, delta: float, epsilon: float) -> Points:
    """Steps across the way to the clean image, back to the sphere, then towards the image.

    Args:
        problem: The image.
        point: (l,), apart from the clean image.
        count: Of proposals.
        delta: Length of the step across as a share of the distance.
        epsilon: Share of the way that is then gone towards the image.

    Returns:
        float32 (count, l), not clipped.
    """
    away = point - problem.clean
    distance = float(np.linalg.norm(away))
    # Every proposal is clean + left * (away + step - its part along away): one factor for a pass over the pixels.
    left = (1 - epsilon) / math.sqrt(1 + delta**2)
    out = signs(problem.rng, count, point.size, left * delta * distance / math.sqrt(point.size))
    length = np.float32(left) - (out @ away) / np.float32(distance**2)
    out += length[:, np.newaxis] * away
    out += problem.clean
    return out
