"""HopSkipJump over labels (Chen, Jordan, Wainwright, IEEE S&P 2020), L2 and Linf."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.estimate import estimate, unit
from variegate.attack.algorithms.fields import above, at_least, between, known_norm
from variegate.attack.algorithms.grid import grain, probes, settled
from variegate.attack.algorithms.hopskipjump_art import ArtHopSkipJump
from variegate.attack.algorithms.segment import to_edge
from variegate.attack.algorithms.steps import Step, first_start, fools
from variegate.attack.search import Norm, Points, Problem, Result, Search

_STEPS = 30


@dataclass(frozen=True, kw_only=True)
class HopSkipJump:
    """HopSkipJump, profile `corrected`: the paper's algorithm 2, changed for rippled copies, bytes and few queries.

    - **Probes are wide at first.** Narrow probes far from the image see only the ripples of attractors, and the search
      stays in the first one. Their radius starts at `wide` of the distance and shrinks by `narrower` after each step
      that brought little, down to `finest`. The paper's radius is dist / d.
    - **Estimates use few probes**, a quarter of the paper's at first and slowly more: many steps in a worse direction
      reach the image sooner than few in a good one.
    - **Probes are corners of a cube** (`grid.probes`), not points of a sphere, and of several starts the one with the
      nearest boundary is taken.
    - **Probes are whole grey levels** on a device of bytes, where the paper's radius would be rounded away; so is the
      least step. In L2 the search keeps fractions of a level, because small steps add up.
    - **The search on the segment ends at `tolerance` of a probe's reach along the normal**, radius / sqrt(d). On bytes
      it ends when no picture is left in between.

    The best of all points asked counts, so a step that ends early loses no earlier point.

    Attributes:
        norm: Of the distance.
        first: Probes of the first estimate (B_0, the paper has 100).
        growth: The count grows as the iteration to this power; the paper's is 0.5, for larger budgets.
        most: Most probes of an estimate (B_max).
        wide: First radius as a share of the distance.
        finest: Least radius as a share of the distance.
        narrower: Factor of the radius after a step that brought less than `progress`.
        progress: A step's new distance over its old one that is progress enough.
        tolerance: Of the search on the segment, as a share of a probe's standard deviation along the normal: a point
            farther off the boundary than that makes most answers alike.
        noises: Draws of noise before giving up, without a start that is answered as wanted.
    """

    norm: Norm = "l2"
    first: int = 25
    growth: float = 0.25
    most: int = 10_000
    wide: float = 0.5
    finest: float = 0.01
    narrower: float = 0.7
    progress: float = 0.97
    tolerance: float = 0.5
    noises: int = 100
    name: ClassVar[str] = "hopskipjump"
    profile: ClassVar[str] = "corrected"
    result: ClassVar[Result] = "best"

    def __post_init__(self) -> None:
        known_norm(self.norm)
        at_least("first", self.first, 1)
        at_least("growth", self.growth, 0)
        at_least("most", self.most, self.first)
        above("finest", self.finest, 0)
        at_least("wide", self.wide, self.finest)
        between("narrower", self.narrower, 0, 1)
        between("progress", self.progress, 0, 1)
        above("tolerance", self.tolerance, 0)
        at_least("noises", self.noises, 1)

    @classmethod
    def art(cls, norm: Norm = "l2") -> ArtHopSkipJump:
        """As ART 1.20.1 runs it."""
        return ArtHopSkipJump(norm=norm)

    @classmethod
    def corrected(cls, norm: Norm = "l2") -> HopSkipJump:
        """As the paper has it, for copies and for bytes."""
        return cls(norm=norm)

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`."""
        grey = grain(problem)
        point = yield from first_start(problem, self.noises, self.norm)
        if point is None:
            return
        share, t = self.wide, 0
        unknown = self.tolerance / math.sqrt(point.size)
        point = yield from to_edge(problem, point, unknown * share, grey, self.norm)
        while (before := self._distance(problem, point)) > 0:
            t += 1
            seen = settled(point, grey)
            if self.norm == "linf":  # The worst pixel counts: a part of a level is worth nothing.
                point = seen
            radius = self._radius(problem, seen, share, grey)
            count = min(self.most, int(self.first * t**self.growth))
            direction = yield from self._direction(problem, seen, count, radius, grey)
            moved = yield from self._step(point, direction, before / math.sqrt(t), grey)
            point = yield from to_edge(problem, moved, unknown * share, grey, self.norm)
            if self._distance(problem, point) > self.progress * before:
                share = max(self.finest, share * self.narrower)

    def _direction(self, problem: Problem, point: NDArray[np.float32], count: int, radius: float, grey: float) -> Step:
        """Into the fooling side, of length 1 in the norm (equation 16 with its baseline)."""

        def draw(n: int) -> Points:
            return probes(problem, point, n, radius, grey)

        slope = (yield from estimate(point, count, draw)).with_baseline()
        return unit(slope) if self.norm == "l2" else np.sign(slope)

    def _step(self, point: NDArray[np.float32], direction: NDArray[np.float32], size: float, grey: float) -> Step:
        """Halves the step until it stays on the fooling side (algorithm 2, step 3), down to one that moves no pixel."""
        longest = float(np.abs(direction).max())
        least = grey / longest if longest > 0 else 0.0
        size = max(size, least)
        for _ in range(_STEPS):
            moved = np.clip(point + np.float32(size) * direction, 0, 1)
            if (yield from fools(moved)):
                return moved
            size /= 2
            if size < least:
                break
        return point

    def _radius(self, problem: Problem, point: NDArray[np.float32], share: float, grey: float) -> float:
        """Of probes in L2: a share of the distance, but no less than half a grey level."""
        away = float(np.linalg.norm(point - problem.clean))
        return max(share * away, grey / 2 * math.sqrt(point.size))

    def _distance(self, problem: Problem, point: NDArray[np.float32]) -> float:
        away = point - problem.clean
        return float(np.linalg.norm(away) if self.norm == "l2" else np.abs(away).max())
