"""RayS: Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020; Linf, untargeted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.draws import signs
from variegate.attack.algorithms.fields import at_least, between
from variegate.attack.algorithms.grid import grain
from variegate.attack.algorithms.steps import fools
from variegate.attack.search import Answers, Norm, Points, Problem, Result, Search
from variegate.keys.errors import MisuseError

At = Callable[[NDArray[np.float32], float], NDArray[np.float32]]
"""The point (l,) of a ray, signs (l,), at a radius."""
_PLAIN = 2
_ROUNDING = 1.001
"""A step of `tolerance` must not be halved for a rounding error."""


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Searches the vertex of a cube around the image whose ray meets the boundary soonest; no gradient is estimated.

    Blocks of the signs are flipped one after the other, all pixels at first, then halves, quarters and so on (algorithm
    3). A flip is kept if the ray still fools at the best radius; then its own radius is searched (algorithm 2),
    downwards in growing steps and then by bisection of the last step, because late in a search the next radius is near.
    After the single pixels the search begins again; it ends when a whole pass brings no improvement.

    A device of bytes sees whole levels, and no single flip improves the radius by a whole level. So each pixel's radius
    gets its own fraction of a level: the device's rounding lets some pixels go one level further than others, and
    fractions of the radius become measurable.

    Attributes:
        tolerance: Part of the radius, pixels in 0..1, that a bisection leaves unknown. The paper's 1e-3 stops short of
            what 2,000 queries can reach where the best radius is a hundredth.
        openings: Rays at full radius that are tried for a first one: all up, all down, towards the starts, random ones.
    """

    tolerance: float = 3e-4
    openings: int = 100
    name: ClassVar[str] = "rays"
    profile: ClassVar[str] = "corrected"
    norm: ClassVar[Norm] = "linf"
    result: ClassVar[Result] = "best"

    def __post_init__(self) -> None:
        between("tolerance", self.tolerance, 0, 1)
        at_least("openings", self.openings, 1)

    @classmethod
    def corrected(cls) -> Rays:
        """As described."""
        return cls()

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`.

        Raises:
            MisuseError: The search has a target: a ray says nothing of which class it meets.
        """
        if problem.target is not None:
            raise MisuseError("rays has no targeted form")
        fraction = problem.rng.random(problem.clean.size, np.float32)
        fraction -= np.float32(0.5)
        fraction *= np.float32(grain(problem))

        def at(ray: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
            # The driver clips it.
            point: NDArray[np.float32] = np.multiply(ray, np.float32(radius) + fraction)
            point += problem.clean
            return point

        ray = yield from self._first(problem, at)
        if ray is None:
            return
        radius, better = (yield from self._bisected(lambda r: at(ray, r), 0.0, 1.0)), True
        while better and radius > self.tolerance:
            better = False
            for block in _blocks(ray.size):
                # In place: a copy for each query would cost as much as all the rest.
                np.negative(ray[block], out=ray[block])
                if (yield from fools(at(ray, radius))):
                    shorter = yield from self._shortened(lambda r: at(ray, r), radius)
                    better = better or shorter < radius
                    radius = shorter
                else:
                    np.negative(ray[block], out=ray[block])

    def _first(self, problem: Problem, at: At) -> Generator[Points, Answers, NDArray[np.float32] | None]:
        """Signs (l,) of a ray that fools at full radius, or None."""
        size, one = problem.clean.size, np.float32(1)
        for i in range(self.openings):
            if i < _PLAIN:
                ray = np.full(size, one if i == 0 else -one)
            elif i < _PLAIN + len(problem.starts):
                ray = np.where(problem.starts[i - _PLAIN] < problem.clean, -one, one)
            else:
                ray = signs(problem.rng, 1, size, 1.0)[0]
            if (yield from fools(at(ray, 1.0))):
                return ray
        return None

    def _shortened(
        self, point: Callable[[float], NDArray[np.float32]], high: float
    ) -> Generator[Points, Answers, float]:
        """The radius of a ray that fools at `high` and is not much shorter."""
        step = self.tolerance
        while high > step:
            if not (yield from fools(point(high - step))):
                break
            high -= step
            step *= 2
        return (yield from self._bisected(point, max(0.0, high - step), high))

    def _bisected(
        self, point: Callable[[float], NDArray[np.float32]], low: float, high: float
    ) -> Generator[Points, Answers, float]:
        """The radius of a ray that fools at `high` and not at `low`."""
        while high - low > _ROUNDING * self.tolerance:
            middle = (low + high) / 2
            if (yield from fools(point(middle))):
                high = middle
            else:
                low = middle
        return high


def _blocks(size: int) -> Iterator[slice]:
    """All entries, then halves, quarters, ... down to single ones; no block is empty."""
    count = 1
    while True:
        width = -(-size // count)
        for start in range(0, size, width):
            yield slice(start, min(size, start + width))
        if width == 1:
            return
        count *= 2
