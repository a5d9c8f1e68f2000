"""GeoDA over labels (Rahmati, Moosavi-Dezfooli, Frossard, Dai, CVPR 2020), L2 and Linf, untargeted."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.draws import normals
from variegate.attack.algorithms.estimate import estimate, unit
from variegate.attack.algorithms.fields import above, at_least, between, known_norm
from variegate.attack.algorithms.geoda_art import ArtGeoDA, untargeted_only
from variegate.attack.algorithms.grid import grain, settled
from variegate.attack.algorithms.segment import to_edge
from variegate.attack.algorithms.steps import counted, first_start, fools
from variegate.attack.algorithms.subspace import to_pixels
from variegate.attack.search import Answers, Norm, Points, Problem, Result, Search, distance

_FARTHER, _TRIES = 1.25, 12
_OVERHEAD = 16


@dataclass(frozen=True, kw_only=True)
class GeoDA:
    """GeoDA, profile `corrected`: approximates the boundary by a plane and moves the image along its normal.

    An iteration estimates the normal at a boundary point from low-frequency probes, walks from the clean image along it
    (L2), or along its signs (Linf), until the label changes (equations 12 and 13), and finds the boundary there by
    bisection. Differences from the paper:

    - The search on a segment ends at `tolerance` of a probe's reach along the normal. The probes' radius is a share of
      the distance, from `wide` down to `finest`, at least half a grey level: probes must measure the surface, not its
      ripples or rounding.
    - The walk starts at the distance reached; the bisection finds a shorter one.
    - The mean of the answers is subtracted (HopSkipJump's equation 16), unlike in the paper's equation 10; of several
      starts the one with the nearest boundary is taken.
    - An iteration that comes no nearer keeps the point, and its probes are reused in the next iteration there.
    - Probes per iteration fill the budget: growth as the paper's optimum (equation 19), the first about `first`.

    Attributes:
        norm: Of the distance.
        frequencies: Of rows and of columns that probes are made of; all of a side's where it has fewer.
        first: About so many probes in the first iteration.
        growth: Each iteration has so many times the probes of the one before (the paper's lambda^(-2/3)).
        wide: First radius of probes as a share of the distance.
        finest: Least radius as a share of the distance.
        narrower: Factor of the radius after each iteration.
        tolerance: Of the search on the segment, as a share of a probe's standard deviation along the normal: a point
            farther off the boundary than that makes most answers alike.
        noises: Draws of noise before giving up, without a start that fools.
    """

    norm: Norm = "l2"
    frequencies: int = 10
    first: int = 60
    growth: float = 1.4
    wide: float = 0.5
    finest: float = 0.01
    narrower: float = 0.7
    tolerance: float = 0.5
    noises: int = 100
    name: ClassVar[str] = "geoda"
    profile: ClassVar[str] = "corrected"
    result: ClassVar[Result] = "best"

    def __post_init__(self) -> None:
        known_norm(self.norm)
        at_least("frequencies", self.frequencies, 1)
        at_least("first", self.first, 1)
        at_least("growth", self.growth, 1)
        above("finest", self.finest, 0)
        at_least("wide", self.wide, self.finest)
        between("narrower", self.narrower, 0, 1)
        above("tolerance", self.tolerance, 0)
        at_least("noises", self.noises, 1)

    @classmethod
    def art(cls, norm: Norm = "l2") -> ArtGeoDA:
        """As ART 1.20.1 runs it."""
        return ArtGeoDA(norm=norm)

    @classmethod
    def corrected(cls, norm: Norm = "l2") -> GeoDA:
        """As the paper has it, for copies and for bytes."""
        return cls(norm=norm)

    def schedule(self, queries: int) -> Sequence[int]:
        """Probes of each iteration, for so many queries in all of them."""
        rounds, total = 1, float(self.first)
        while True:
            # A step and its search take about `_OVERHEAD` queries.
            longer = total + self.first * self.growth**rounds
            if longer + (rounds + 2) * _OVERHEAD > queries:
                break
            rounds, total = rounds + 1, longer
        room = max(rounds, queries - (rounds + 1) * _OVERHEAD)
        return [max(1, int(room * self.first * self.growth**i / total)) for i in range(rounds)]

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`.

        Raises:
            MisuseError: A target: the paper has no targeted form.
        """
        untargeted_only(problem)
        grey = grain(problem)
        point, queries = yield from counted(first_start(problem, self.noises))
        if point is None:
            return
        share = self.wide
        unknown = self.tolerance / math.sqrt(math.prod(self._coefficients(problem)))
        point, halvings = yield from counted(to_edge(problem, point, unknown * share, grey))
        total = np.zeros_like(point)
        for count in self.schedule(problem.queries - queries - halvings):
            point = settled(point, grey)
            away = float(np.linalg.norm(point - problem.clean))
            if away == 0:
                return
            radius = max(share * away, grey / 2 * math.sqrt(point.size))
            total += unit((yield from self._normal(problem, point, count, radius))) * np.float32(math.sqrt(count))
            share = max(self.finest, share * self.narrower)
            reached = yield from self._along(problem, point, total)
            if reached is None:
                continue
            edge = yield from to_edge(problem, reached, unknown * share, grey)
            before, after = distance(np.stack([point, edge]), problem.clean, self.norm)
            if after < before:
                point, total = edge, np.zeros_like(point)

    def _coefficients(self, problem: Problem) -> tuple[int, int, int]:
        channels, height, width = problem.shape
        side = min(self.frequencies, height, width)
        return channels, side, side

    def _normal(
        self, problem: Problem, point: NDArray[np.float32], count: int, radius: float
    ) -> Generator[Points, Answers, NDArray[np.float32]]:
        shape = self._coefficients(problem)
        size = math.prod(shape)

        def draw(n: int) -> Points:
            coefficients = normals(problem.rng, n, size)
            coefficients *= np.float32(radius / math.sqrt(size))
            probes = to_pixels(coefficients.reshape(n, *shape), problem.shape)
            probes += point
            return np.clip(probes, 0, 1, out=probes)

        return (yield from estimate(point, count, draw)).with_baseline()

    def _along(
        self, problem: Problem, point: NDArray[np.float32], normal: NDArray[np.float32]
    ) -> Generator[Points, Answers, NDArray[np.float32] | None]:
        """The first fooling point on the ray from the clean image, from the distance of `point` outwards."""
        direction = np.sign(normal) if self.norm == "linf" else unit(normal)
        size = float(distance(point[np.newaxis], problem.clean, self.norm)[0])
        for _ in range(_TRIES):
            moved: NDArray[np.float32] = np.clip(problem.clean + np.float32(size) * direction, 0, 1)
            if (yield from fools(moved)):
                return moved
            size *= _FARTHER
        return None
