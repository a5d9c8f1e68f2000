"""CGBA: Reza, Rahmati, Wu and Dai, "CGBA: Curvature-aware Geometric Black-box Attack", ICCV 2023; full dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.circle import Circle
from variegate.attack.algorithms.estimate import estimate, unit
from variegate.attack.algorithms.fields import at_least, between
from variegate.attack.algorithms.grid import grain, probes, settled
from variegate.attack.algorithms.steps import Step, first_start, fools, to_boundary
from variegate.attack.search import Norm, Points, Problem, Result, Search
from variegate.keys.errors import MisuseError

Boundary = Literal["auto", "flat", "curved"]
_TRIES = 12
"""Most halvings before a search on the circle gives up: 90 degrees / 2^12 is a fiftieth of a degree."""
_HALVINGS = 40
_FRUITLESS = 20
"""Estimates in a row that lead nowhere before a search ends."""
_PROGRESS = 0.97
"""A turn's new distance over its old one that is progress enough."""
_GAIN = 1e-4
"""Share of the distance that a turn must gain to have led anywhere: less may be rounding."""


@dataclass(frozen=True, kw_only=True)
class Cgba:
    """Walks along the boundary on semicircles whose diameter is the segment from the clean image to the last point.

    On such a circle every point is nearer than the last. It lies in the plane of that segment and of the normal
    estimated at the last point. CGBA (`flat`) bisects on the circle, which gives the nearest point if the boundary is
    flat. CGBA-H (`curved`) halves the angle, starting at the normal's, until a point fools, and bisects the straight
    segment from there to the image. It suits curved boundaries around small regions, such as those of a target class.

    Differences from the paper: probes are corners of a cube (`grid.probes`) and get narrower during the search; the
    mean of their answers is subtracted (HopSkipJump's equation 16); of several starts the one with the nearest boundary
    is taken.

    Attributes:
        first: Probes of the first estimate.
        growth: Estimate t has `first * t^growth` (section 3.3 has 0.5): more turns come nearer than better normals.
        sigma: Least root mean square of a probe's pixel, pixels in 0..1; on a device of bytes at least a quarter of a
            level. The paper's code has 2e-4: on a network of 3,072 pixels a wider probe sees more of the boundary.
        wide: First radius of the probes as a share of the distance: narrow probes far from the image see the ripples of
            a copy's attractors alone, and the search stays there.
        narrower: Factor of that share after a turn that brought little.
        tolerance: L2 length at which a bisection ends, below `sigma`, as a probe moves that far along the normal; the
            code's is 1e-4. On a device of bytes at least one level of one pixel.
        boundary: "flat" is CGBA, "curved" CGBA-H, "auto" the latter for a target, as the paper has it.
        noises: Draws of noise before giving up, without a start that is answered as wanted.
    """

    first: int = 30
    growth: float = 0.25
    sigma: float = 1e-3
    wide: float = 0.2
    narrower: float = 0.5
    tolerance: float = 5e-4
    boundary: Boundary = "auto"
    noises: int = 100
    name: ClassVar[str] = "cgba"
    profile: ClassVar[str] = "corrected"
    norm: ClassVar[Norm] = "l2"
    result: ClassVar[Result] = "best"

    def __post_init__(self) -> None:
        at_least("first", self.first, 1)
        at_least("growth", self.growth, 0)
        between("sigma", self.sigma, 0, 1)
        at_least("wide", self.wide, 0)
        between("narrower", self.narrower, 0, 1)
        between("tolerance", self.tolerance, 0, 1)
        at_least("noises", self.noises, 1)
        if self.boundary not in get_args(Boundary):
            raise MisuseError(f"boundary must be one of {', '.join(get_args(Boundary))}, not {self.boundary!r}")

    @classmethod
    def corrected(cls) -> Cgba:
        """As described."""
        return cls()

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`; ends, too, when estimates lead nowhere any more."""
        start = yield from first_start(problem, self.noises)
        if start is None:
            return
        grey = grain(problem)
        tolerance = max(self.tolerance, grey)
        finest = max(self.sigma, grey / 4) * math.sqrt(problem.clean.size)
        curved = self.boundary == "curved" or (self.boundary == "auto" and problem.target is not None)
        point = yield from _straight(problem, start, tolerance)
        share, turn, fruitless = self.wide, 0, 0
        while fruitless < _FRUITLESS:
            turn += 1
            fruitless += 1
            before = float(np.linalg.norm(point - problem.clean))
            radius = max(finest, share * before)
            normal = yield from _normal(problem, point, int(self.first * turn**self.growth), radius)
            circle = Circle.through(problem.clean, point, normal)
            if circle is None:
                continue
            if curved:
                near = yield from _falling(circle)
                near = yield from _straight(problem, near, tolerance)
            else:
                near = yield from _bisected(circle, tolerance)
            away = float(np.linalg.norm(near - problem.clean))
            if away < (1 - _GAIN) * before:
                fruitless = 0
            if away < before:
                point = near
            if away > _PROGRESS * before:
                share *= self.narrower


def _normal(problem: Problem, point: NDArray[np.float32], count: int, radius: float) -> Step:
    """Estimated into the fooling side, of length 1, or zeros. With the baseline of HopSkipJump's equation 16."""
    grey = grain(problem)
    seen = settled(point, grey)

    def draw(n: int) -> Points:
        return probes(problem, seen, n, radius, grey)

    return unit((yield from estimate(seen, count, draw)).with_baseline())


def _straight(problem: Problem, far: NDArray[np.float32], tolerance: float) -> Step:
    """The boundary on the segment to the image."""
    length = float(np.linalg.norm(far - problem.clean))
    return (yield from to_boundary(problem, far, tolerance / max(length, tolerance)))


def _bisected(circle: Circle, tolerance: float) -> Step:
    """CGBA's search: past the boundary in growing steps, then halves of the arc."""
    low, high = 0.0, math.pi / 2
    best = _inside(circle, 0)
    # 90 (1 - 2^-k) degrees until one does not fool; those before it bound the arc from below.
    for k in range(1, _TRIES):
        angle = math.pi / 2 * (1 - 0.5**k)
        there = _inside(circle, angle)
        if not (yield from fools(there)):
            high = angle
            break
        low, best = angle, there
    for _ in range(_HALVINGS):
        if (high - low) * circle.radius <= tolerance:
            break
        angle = (low + high) / 2
        there = _inside(circle, angle)
        if (yield from fools(there)):
            low, best = angle, there
        else:
            high = angle
    return best


def _falling(circle: Circle) -> Step:
    """CGBA-H's search: from the normal's angle in halves until a point fools; at last the point itself."""
    angle = min(circle.angle, math.pi / 2)
    for _ in range(_TRIES):
        angle /= 2
        there = _inside(circle, angle)
        if (yield from fools(there)):
            return there
    return _inside(circle, 0)


def _inside(circle: Circle, angle: float) -> NDArray[np.float32]:
    """Not rounded on a device of bytes: small moves add up."""
    return np.clip(circle.at(angle), 0, 1)
