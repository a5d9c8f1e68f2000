"""Steps that several attacks share, as sub-generators: `answer = yield from step(...)`."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.search import Answers, Norm, Points, Problem, distance

Step = Generator[Points, Answers, NDArray[np.float32]]
Asked = Generator[Points, Answers, bool]
Result = TypeVar("Result")


def fools(point: NDArray[np.float32]) -> Asked:
    """Asks one point (l,)."""
    return bool((yield point[np.newaxis])[0])


def counted(step: Generator[Points, Answers, Result]) -> Generator[Points, Answers, tuple[Result, int]]:
    """A step's result, and how many points it asked."""
    queries = 0
    try:
        points = next(step)
        while True:
            answers = yield points
            queries += len(points)
            points = step.send(answers)
    except StopIteration as end:
        return end.value, queries


_ROUNDS = 6
"""Halvings that compare starts: by then a segment's boundary is known to a sixty-fourth."""
_OPENING = 4
"""One part in so many of the queries may go to comparing starts."""


def first_start(
    problem: Problem, noises: int = 100, norm: Norm = "l2"
) -> Generator[Points, Answers, NDArray[np.float32] | None]:
    """A point that is answered as wanted: near the boundary from a given start, else uniform noise, one by one.

    Of several starts the one with the nearest boundary is taken: the segments of all are bisected at once. This soon
    saves more queries than it costs, because distant pictures may have a boundary close by. Starts are left out if
    their comparison would take more than a quarter of the queries.

    Args:
        problem: The image.
        noises: Draws of noise before giving up; none for a targeted search.
        norm: In which the boundary is to be near, and segments are walked.

    Returns:
        The point (l,), or None.
    """
    starts = problem.starts[: max(1, problem.queries // (_OPENING * (1 + _ROUNDS)))]
    if len(starts):
        fooled = yield starts
        if fooled.any():
            there = starts[fooled]
            nearest: NDArray[np.float32] = (yield from _nearest(problem, there, norm)) if len(there) > 1 else there[0]
            return nearest
    if problem.target is None:
        for _ in range(noises):
            point = problem.rng.random(problem.clean.size, np.float32)
            if (yield from fools(point)):
                return point
    return None


def _nearest(problem: Problem, starts: Points, norm: Norm) -> Step:
    low, high = np.zeros(len(starts)), np.ones(len(starts))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        fooled = yield between(problem.clean, starts, middle, norm)
        low, high = np.where(fooled, low, middle), np.where(fooled, middle, high)
    ends = between(problem.clean, starts, high, norm)
    nearest: NDArray[np.float32] = ends[distance(ends, problem.clean, norm).argmin()]
    return nearest


def to_boundary(problem: Problem, far: NDArray[np.float32], tolerance: float) -> Step:
    """Bisects the segment from the clean image to a fooling point.

    Args:
        problem: The image.
        far: A point (l,) that fools.
        tolerance: Ends when the share of the segment that is unknown is at most this.

    Returns:
        The fooling end.
    """
    low, high = 0.0, 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        if (yield from fools(between(problem.clean, far, middle))):
            high = middle
        else:
            low = middle
    return between(problem.clean, far, high)


def between(
    clean: NDArray[np.float32], far: NDArray[np.float32], share: float | NDArray[np.float64], norm: Norm = "l2"
) -> NDArray[np.float32]:
    """Points at shares (float or (n,)) of the way from clean (l,) to far, (l,) or (n, l).

    In L2 they lie on the straight segment; in Linf each pixel is held to a box around the clean one.
    """
    way = far - clean
    shares = np.asarray(share, np.float64)[..., np.newaxis]
    if norm == "linf":
        box = (shares * np.abs(way).max(axis=-1, keepdims=True)).astype(np.float32)
        way = np.clip(way, -box, box)
    else:
        way = shares.astype(np.float32) * way
    out: NDArray[np.float32] = clean + way
    return out
