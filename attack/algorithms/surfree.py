"""SurFree: Maho, Furon and Le Merrer, "SurFree: a fast surrogate-free black-box attack", CVPR 2021; random basis."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.circle import Circle
from variegate.attack.algorithms.draws import normals
from variegate.attack.algorithms.fields import at_least, between
from variegate.attack.algorithms.grid import grain
from variegate.attack.algorithms.steps import first_start, fools, to_boundary
from variegate.attack.search import Answers, Norm, Points, Problem, Result, Search


@dataclass(frozen=True, kw_only=True)
class SurFree:
    """Rotates the last point about the image in planes of random directions; no gradient is estimated.

    Each direction makes a circle whose diameter is the segment from the image to the last point. Angles of both signs
    are tried on it, the largest first; one that fools is widened by bisection up to the boundary.

    The paper's settings are T = 3, rho = 0.98 and l = 10. In thousands of dimensions a random direction gains about a
    degree. To find its boundary to a thousandth costs more than another direction gains, so one angle of each sign, and
    one step of bisection, come nearer at every budget. On a device of bytes an arc is at least an eighth of a level for
    every pixel: shorter ones gain less than the effect of rounding. Points are clipped when asked, but kept without
    clipping, so that values outside may return.

    Attributes:
        theta: First largest angle, in degrees.
        tries: Angles of each sign that are tried (the paper's T).
        rho: Factor of the largest angle after a direction without success, and its divisor after one with.
        halvings: Steps of a bisection (the paper's l).
        block: Directions made orthogonal to each other at a time; the paper keeps as many of the last.
        tolerance: L2 length at which the first bisection ends, and the arc at which the search does.
        noises: Draws of noise before giving up, without a start that is answered as wanted.
    """

    theta: float = 30.0
    tries: int = 1
    rho: float = 0.95
    halvings: int = 1
    block: int = 100
    tolerance: float = 1e-4
    noises: int = 100
    name: ClassVar[str] = "surfree"
    profile: ClassVar[str] = "corrected"
    norm: ClassVar[Norm] = "l2"
    result: ClassVar[Result] = "best"

    def __post_init__(self) -> None:
        between("theta", self.theta, 0, 90)
        at_least("tries", self.tries, 1)
        between("rho", self.rho, 0, 1)
        at_least("halvings", self.halvings, 1)
        at_least("block", self.block, 1)
        between("tolerance", self.tolerance, 0, 1)
        at_least("noises", self.noises, 1)

    @classmethod
    def corrected(cls) -> SurFree:
        """As described."""
        return cls()

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`; ends, too, when the largest angle has shrunk to nothing."""
        start = yield from first_start(problem, self.noises)
        if start is None:
            return
        length = float(np.linalg.norm(start - problem.clean))
        point = yield from to_boundary(problem, start, self.tolerance / max(length, self.tolerance))
        widest, least = math.radians(self.theta), grain(problem) / 8 * math.sqrt(problem.clean.size)
        for direction in _directions(problem, self.block):
            circle = Circle.through(problem.clean, point, direction)
            if circle is None:
                return
            widest = min(max(widest, least / circle.radius), math.pi / 2)
            if widest * circle.radius < self.tolerance:
                return
            angle = yield from self._angle(circle, widest)
            if angle:
                point = circle.at(angle)
                widest = min(widest / self.rho, math.pi / 2)
            else:
                widest *= self.rho

    def _angle(self, circle: Circle, widest: float) -> Generator[Points, Answers, float]:
        """The largest angle found that fools, of either sign; 0 for none."""
        step = widest / self.tries
        for k in range(self.tries, 0, -1):
            for sign in (1, -1):
                if (yield from fools(circle.at(sign * k * step))):
                    low, high = k * step, min((k + 1) * step, math.pi / 2)
                    for _ in range(self.halvings):
                        if (high - low) * circle.radius <= self.tolerance:
                            break
                        middle = (low + high) / 2
                        if (yield from fools(circle.at(sign * middle))):
                            low = middle
                        else:
                            high = middle
                    return sign * low
        return 0.0


def _directions(problem: Problem, block: int) -> Iterator[NDArray[np.float32]]:
    """Unit vectors (l,), each block of them orthogonal, uniform over all such blocks.

    Normals R with covariance R R' = L L' give the orthogonal L^-1 R. It takes a ninth of the time of Householder's
    way, and is as exact as long as rows are few beside columns.
    """
    size = problem.clean.size
    count = max(1, min(block, size // 4))
    while True:
        drawn = normals(problem.rng, count, size)
        root: NDArray[np.float32] = np.linalg.cholesky(drawn @ drawn.T)
        yield from np.linalg.inv(root).astype(np.float32, copy=False) @ drawn
