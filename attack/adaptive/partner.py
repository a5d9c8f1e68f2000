"""Partner classes of a permutation copy, from labels, and attacks that cancel them.

A permutation copy answers arg max of M = p + alpha p[pi]. Where class c is sure, its partner j, with pi(j) = c, stands
second at alpha, so j takes over from c as soon as p_j > (1 - alpha) p_c: at alpha = 0.8, log 5 = 1.6 nats before
p_j = p_c. All other boundaries of c are the base's own. So

- samples that end in the partner's class lie short of the base's boundary and stay with their copy, whereas
- samples that end in any other class lie on the base's boundary, and fool every copy of that base.

**Recovery.** Assumes the attacker's own device, images of each class, and that the rewriter is a permutation. On
segments between images of two classes a and b, bisection finds where a gives way to b. Partners show as boundaries that
lie nearer to c than they should. What they should be is told by a reference:

- none: the middle of the segment, up to a width of each class fitted over all pairs. It is enough where classes
  differ in width alone (an affine base); in deep networks pairs differ by more than 1.6 nats of their own;
- a network of the same task, for instance a clone (`clone.extract`) trained on clean images alone, where partners
  hardly show: takes away what pairs have in common in all networks of the task;
- the vote of colluders' copies of the same base (`collusion.Vote`, three or more): the base's own boundary, and then
  every deviation is the rewriter's.

The evidence of all pairs goes into one assignment, since each class is the partner of just one other. Partners of
each other (pi(pi(c)) = c) move their common boundary nowhere and remain unknown, which costs nothing: it is the base's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack import driver
from variegate.attack.adaptive.assignment import assigned
from variegate.attack.adaptive.collusion import MOST_DEVICES, Vote
from variegate.attack.algorithms.table import CORRECTED, DEFAULTS, SearchKind
from variegate.attack.lane import Task
from variegate.attack.oracle import Oracle, Wrapper, ask_all, to_frames, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.search import Attack, Norm
from variegate.attack.strategy import charged, delayed
from variegate.keys.errors import MisuseError

Labels = Callable[[NDArray[Any]], NDArray[np.int64]]
"""Frames (N, C, H, W) to labels, int64 (N,)."""
STEPS = 8
"""Bisections of a segment: down to a grey level of the widest difference."""
UNKNOWN = -1
_VOTERS = 3
"""Copies whose vote shows the base: of two, the first would always win."""
_RIDGE = 1e-3
_FAR = 2.0


@dataclass(frozen=True)
class Partners:
    """What was recovered.

    Attributes:
        order: The derangement pi, int64 (classes,), M_j = p_j + alpha p_{pi(j)}; `UNKNOWN` without evidence.
        best: The same, where nothing is left out: the best guess.
        evidence: For each class j, by how many standard errors its boundary with pi(j) lies nearer to pi(j).
        queries: Labels asked of the own device.
    """

    order: NDArray[np.int64]
    best: NDArray[np.int64] = field(repr=False)
    evidence: NDArray[np.float64] = field(repr=False)
    queries: int

    def partner(self, label: int) -> int | None:
        """The class j with pi(j) = label, which takes over too early; None when unknown."""
        classes = np.flatnonzero(self.order == label)
        return int(classes[0]) if len(classes) else None


def recover(
    own: Oracle,
    frames: NDArray[Any],
    *,
    rounds: int,
    rng: np.random.Generator,
    reference: Labels | None = None,
    sure: float = 3.0,
) -> Partners:
    """Recovers the derangement of the attacker's own copy.

    Args:
        own: The copy.
        frames: Images, (N, *shape) of its dtype, some of each class; a class without images remains unknown.
        rounds: Segments for each pair of classes; costs `STEPS` + 1 queries each, and one for each image.
        rng: Which images.
        reference: Labels of something without partners; None for none.
        sure: Least evidence, in standard errors, for a partner to be called known. Segments through a third class give
            shifts a heavy tail, so that with few rounds some of the known are wrong.

    Raises:
        MisuseError: `rounds` below 1, or images of fewer than two classes.
        LimitError, RefusedError, DeviceError: The device's.
    """
    labels = ask_all(own, frames)
    groups = [np.flatnonzero(labels == c) for c in range(own.classes)]
    present = [c for c in range(own.classes) if len(groups[c])]
    pairs = np.array(list(itertools.combinations(present, 2)))
    if rounds < 1 or not len(pairs):
        raise MisuseError("recovery needs a round, and images of two classes")
    queries = len(frames)
    crossed, shifts = [], []
    for _ in range(rounds):
        ends = np.array([(rng.choice(groups[a]), rng.choice(groups[b])) for a, b in pairs])
        here = _boundaries(lambda x: ask_all(own, x), frames, ends, pairs, own.dtype)
        queries += len(pairs) * (STEPS + 1)
        there = np.full(len(pairs), 0.5)
        if reference is not None:
            there = _boundaries(reference, frames, ends, pairs, own.dtype)
        finite = np.isfinite(here - there)
        crossed.append(pairs[finite])
        shifts.append((here - there)[finite])
    return _decided(own.classes, np.concatenate(crossed), np.concatenate(shifts), sure, queries)


def _boundaries(
    labels: Labels, frames: NDArray[Any], ends: NDArray[np.int64], pairs: NDArray[np.int64], dtype: str
) -> NDArray[np.float64]:
    """Where a gives way to b on each segment, as a share; nan where it gives way to something else."""
    starts, away = to_points(frames[ends[:, 0]]), to_points(frames[ends[:, 1]]) - to_points(frames[ends[:, 0]])
    low, high = np.zeros(len(ends)), np.ones(len(ends))

    def at(share: NDArray[np.float64]) -> NDArray[np.int64]:
        return labels(to_frames(starts + share[:, np.newaxis, np.newaxis, np.newaxis] * away, dtype))

    for _ in range(STEPS):
        middle = (low + high) / 2
        stays = at(middle) == pairs[:, 0]
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
    direct = at(high) == pairs[:, 1]
    return np.where(direct, (low + high) / 2, np.nan)


def _decided(
    classes: int, pairs: NDArray[np.int64], shifts: NDArray[np.float64], sure: float, queries: int
) -> Partners:
    """Fits a width to each class, and assigns partners to what is left over."""
    # A segment through a third class's land may be off by any length: beyond the usual, only its sign counts.
    usual = np.abs(shifts).mean() if len(shifts) else 0.0
    shifts = np.clip(shifts, -_FAR * usual, _FAR * usual)
    sums, counts = np.zeros((2, classes, classes))
    for sign, (a, b) in ((1, pairs.T), (-1, pairs.T[::-1])):
        np.add.at(sums, (a, b), sign * shifts)
        np.add.at(counts, (a, b), 1)
    # Least squares of shift(a, b) = width(a) - width(b): the pairs' graph Laplacian.
    laplacian = np.diag(counts.sum(axis=1)) - counts + _RIDGE * np.eye(classes)
    width = np.linalg.solve(laplacian, sums.sum(axis=1))
    rest = sums - counts * (width[:, np.newaxis] - width)
    spread = max(float(np.sqrt((shifts**2).sum() / max(1, len(shifts)))), _RIDGE)
    # evidence[c, j]: j takes over from c too early. A pair without segments has none.
    evidence = -rest / (spread * np.sqrt(np.maximum(counts, 1)))
    costs = -evidence
    np.fill_diagonal(costs, 1e6)
    partner = assigned(costs)
    best = np.empty(classes, np.int64)
    best[partner] = np.arange(classes)
    strength = evidence[best, np.arange(classes)]
    return Partners(np.where(strength >= sure, best, UNKNOWN), best, strength, queries)


class Cancelled(Wrapper):
    """The attacker's copy with one class's partner taken for that class (`Oracle`).

    An untargeted search over it goes past the partner's early boundary, to where another class wins: the base's.

    Args:
        own: The copy.
        label: Of the clean image.
        partner: The class that takes over from it too early; None changes nothing.
    """

    def __init__(self, own: Oracle, label: int, partner: int | None) -> None:
        super().__init__(own)
        self._label, self._partner = label, partner

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """See `Oracle`."""
        out = self._oracle.labels(frames)
        return out if self._partner is None else np.where(out == self._partner, self._label, out)


@dataclass(frozen=True, kw_only=True)
class PartnerSearch:
    """Recovers the partner classes of a permutation copy, and searches past them (`strategy.Strategy`).

    Profile `corrected`.

    Attributes:
        devices: Copies owned. From three on, their vote is the reference that recovery is held against.
        share: Of all labels, what recovery may take.
        search: The search.
    """

    devices: int = 1
    share: float = 0.5
    search: SearchKind = "hopskipjump"
    name: ClassVar[str] = "partner"
    profile: ClassVar[str] = CORRECTED
    targets: ClassVar[bool] = False
    pooled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= MOST_DEVICES or not 0 < self.share < 1:
            raise MisuseError(f"devices must be 1 to {MOST_DEVICES}, and share between 0 and 1")

    @property
    def norm(self) -> Norm:
        """The search's."""
        return self._attack.norm

    def outcomes(self, tasks: Sequence[Task], own: Sequence[Oracle], pictures: NDArray[Any]) -> Iterator[Outcome]:
        """See `strategy.Strategy`."""
        if not tasks:
            return
        most = int(self.share * sum(task.problem.queries for task in tasks))
        one = math.comb(own[0].classes, 2) * (STEPS + 1)
        rounds = (most - len(pictures)) // one
        if rounds < 1:
            raise MisuseError(
                f"recovery of partners takes {one + len(pictures)} labels, and has {most}",
                hint="give more queries for each image, or more images at once",
            )
        reference = Vote(own).labels if len(own) >= _VOTERS else None
        known = recover(own[0], pictures, rounds=rounds, rng=tasks[0].problem.rng, reference=reference)
        rest, shares = charged(tasks, known.queries)
        costs = {task.key: (share, task.checkpoints) for task, share in zip(tasks, shares, strict=True)}
        for outcome in self.past(known, rest, own[0]):
            yield delayed(outcome, *costs[outcome.key])

    def past(self, known: Partners, tasks: Sequence[Task], own: Oracle) -> Iterator[Outcome]:
        """Searches through `Cancelled`, each image with its class's partner.

        Raises:
            MisuseError, RefusedError, DeviceError, LimitError: As `driver.run`.
        """
        groups: dict[int, list[Task]] = {}
        for task in tasks:
            groups.setdefault(task.problem.label, []).append(task)
        for label, group in groups.items():
            yield from driver.run(self._attack, group, Cancelled(own, label, known.partner(label)))

    @property
    def _attack(self) -> Attack:
        return DEFAULTS[self.search, CORRECTED]()
