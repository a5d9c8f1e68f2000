"""GeoDA as the Adversarial Robustness Toolbox 1.20.1 runs it (profile `art-1.20`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.algorithms.draws import normals
from variegate.attack.algorithms.estimate import CHUNK
from variegate.attack.algorithms.fields import above, at_least, known_norm, within
from variegate.attack.algorithms.steps import Step, fools
from variegate.attack.algorithms.subspace import to_pixels
from variegate.attack.search import Norm, Problem, Result, Search
from variegate.keys.errors import MisuseError

_NOISE_STEP = 0.02
_GO_STEP, _GO_STEPS = 5, 100
_SEARCH_COST, _ITERATION_COST = 25, 500
_LEAST_FIRST, _MOST_FIRST = 50, 80
_MOST_ITER, _MOST_CHANGES = 100_000, 2_000
"""A schedule is looked for no longer."""


@dataclass(frozen=True, kw_only=True)
class ArtGeoDA:
    """ART's GeoDA: its defaults, its order of operations, and the iterate that it returns. Untargeted.

    Differences from the paper (Rahmati et al., CVPR 2020) that are kept here:

    - The search on a segment ends at an absolute length, `bin_search_tol` = 0.1 in L2, far above that of the probes. So
      the point is well inside the fooling side, most probes fool, and the estimate is mostly the mean of its noise.
    - The estimates of all iterations are summed, not each used by itself.
    - The step from the clean image grows by 5 times the estimate, not scaled to length 1, at most 100 times; if no step
      fools, the point is still taken.
    - Each step and the first noise ask the clean image first.
    - The number of iterations is changed until the first has 50 to 80 probes; the others grow with `lambda_param`.
    - Linf steps by signs over the L2 length of the estimate.

    Not kept: labels asked for the log alone (two), and noise that pushes a pixel out of range by less than 0.001: the
    driver clips it.

    Attributes:
        norm: Of the distance.
        sub_dim: Frequencies of rows and of columns that probes are made of.
        max_iter: Queries that the schedule is made for, though less than it are asked.
        bin_search_tol: L2 length at which a search on a segment ends.
        lambda_param: Each iteration has lambda^(-2/3) times the probes of the one before.
        sigma: Standard deviation of a probe's coefficients.
    """

    norm: Norm = "l2"
    sub_dim: int = 10
    max_iter: int = 4_000
    bin_search_tol: float = 0.1
    lambda_param: float = 0.6
    sigma: float = 0.0002
    name: ClassVar[str] = "geoda"
    profile: ClassVar[str] = "art-1.20"
    result: ClassVar[Result] = "iterate"

    def __post_init__(self) -> None:
        known_norm(self.norm)
        at_least("sub_dim", self.sub_dim, 1)
        within("max_iter", self.max_iter, 1, _MOST_ITER)
        above("bin_search_tol", self.bin_search_tol, 0)
        within("lambda_param", self.lambda_param, 0.01, 1)
        above("sigma", self.sigma, 0)
        self.schedule()

    def schedule(self) -> Sequence[int]:
        """Probes of each iteration.

        Raises:
            MisuseError: No number of iterations gives the first 50 to 80 probes.
        """
        count = round(self.max_iter / _ITERATION_COST)
        planned = self._split(self.max_iter - count * _SEARCH_COST, count)
        return self._split(self.max_iter - len(planned) * _SEARCH_COST, count)

    def _split(self, queries: int, iterations: int) -> list[int]:
        for _ in range(min(self.max_iter, _MOST_CHANGES)):
            if iterations < 1:
                break
            growth = [self.lambda_param ** (-2 * i / 3) for i in range(iterations)]
            shares = [round(queries * part / sum(growth)) for part in growth]
            if _LEAST_FIRST <= shares[0] <= _MOST_FIRST:
                return shares
            iterations += 1 if shares[0] > _MOST_FIRST else -1
        raise MisuseError(
            f"max_iter {self.max_iter} with lambda_param {self.lambda_param:g} gives no first iteration of "
            f"{_LEAST_FIRST} to {_MOST_FIRST} probes"
        )

    def search(self, problem: Problem) -> Search:
        """See `attack.search.Attack`.

        Raises:
            MisuseError: A target, or images that are not square.
        """
        untargeted_only(problem)
        if problem.shape[1] != problem.shape[2]:
            raise MisuseError("geoda in profile art-1.20 takes square images")
        point = yield from self._noise(problem)
        point = yield from self._to_boundary(problem, point)
        problem.keep(point)
        total = np.zeros((problem.shape[0], self.sub_dim, self.sub_dim), np.float32)
        for count in self.schedule():
            total += yield from self._estimate(problem, point, count)
            point = yield from self._go(problem, to_pixels(total[np.newaxis], problem.shape)[0])
            point = yield from self._to_boundary(problem, point)
            problem.keep(point)

    def _noise(self, problem: Problem) -> Step:
        """Normal noise that grows until it fools."""
        point, size = problem.clean, 0.0
        while not (yield from fools(point)):
            size += _NOISE_STEP
            drawn = normals(problem.rng, 1, problem.clean.size)[0]
            point = np.clip(problem.clean + np.float32(size) * drawn, 0, 1)
        return point

    def _to_boundary(self, problem: Problem, far: NDArray[np.float32]) -> Step:
        near = problem.clean
        while np.linalg.norm(far - near) >= self.bin_search_tol:
            middle = (near + far) * np.float32(0.5)
            if (yield from fools(middle)):
                far = middle
            else:
                near = middle
        return far

    def _estimate(self, problem: Problem, point: NDArray[np.float32], count: int) -> Step:
        """Mean of the noise, signed by its answers, in coefficients (C, sub_dim, sub_dim)."""
        one = (problem.shape[0], self.sub_dim, self.sub_dim)
        total = np.zeros(one, np.float32)
        for at in range(0, count, CHUNK):
            n = min(CHUNK, count - at)
            drawn = normals(problem.rng, n, total.size)
            probes = to_pixels(drawn.reshape(n, *one), problem.shape)
            probes *= np.float32(self.sigma)
            probes += point
            fooled = yield probes
            total += (np.where(fooled, np.float32(1), np.float32(-1)) @ drawn).reshape(one)
        return total / np.float32(count)

    def _go(self, problem: Problem, direction: NDArray[np.float32]) -> Step:
        """Grows a step from the clean image until it fools."""
        if self.norm == "linf":
            length = np.linalg.norm(direction)
            direction = np.sign(direction) / length if length > 0 else direction
        point = problem.clean
        for i in range(1, _GO_STEPS + 1):
            if (yield from fools(point)):
                return point
            point = np.clip(problem.clean + np.float32(i * _GO_STEP) * direction, 0, 1)
        yield point[np.newaxis]
        return point


def untargeted_only(problem: Problem) -> None:
    """Refuses a search that the paper does not have.

    Raises:
        MisuseError: It has a target.
    """
    if problem.target is not None:
        raise MisuseError("geoda has no targeted form", hint="use hopskipjump, boundary or cgba with a target")
