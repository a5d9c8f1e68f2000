"""Searches on one copy and replays its samples on others, all in this process, for the calibration study.

    searched = search(template, images, truth, HopSkipJump.corrected(), Effort(queries=8_000, budgets=(2_000, 8_000)))

The campaign engine does the same at scale, with a ledger; a study of many settings needs only numbers in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from variegate.attack.driver import outcomes
from variegate.attack.lane import task
from variegate.attack.oracle import Oracle, ask_all
from variegate.attack.oracles.local import LocalCopy
from variegate.attack.overshoot import stretched
from variegate.attack.report.statistics import wilson
from variegate.attack.search import Attack, seeded
from variegate.export.fuse import Template
from variegate.keys.primitives import sha256

OVERSHOOTS = (1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0)
NEAR_L2 = 1.0
"""Samples no farther than this from the clean image, pixels in 0..1, are also counted apart: a search that got stuck
far away has found little more than another picture, which every copy reads as such."""
_STARTS = 8
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is searched.

    Attributes:
        images: Attacked, of those that the attacker's copy and all victims read rightly: rates are net of clean errors.
        victims: Other copies of the same base.
        queries: Labels for each image.
        budgets: Numbers of queries after which the sample so far is replayed, ascending.
    """

    images: int
    victims: int
    queries: int
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Shown:
    """The result of the samples of one budget at one overshoot.

    Attributes:
        samples: Samples found.
        own: Of them, those that fool the attacker's own copy at this overshoot.
        hits: Pairs of sample and victim that was fooled.
        own_hits: The same, for samples that fool the attacker's own copy at this overshoot.
        near: Samples found within `NEAR_L2`, before any overshoot.
        near_hits: Pairs of these and a victim that was fooled.
    """

    samples: int
    own: int
    hits: int
    own_hits: int
    near: int
    near_hits: int


@dataclass(frozen=True)
class Replication:
    """The replication of one search's samples.

    Attributes:
        victims: Copies each sample was shown to.
        distances: L2 of the samples by budget, pixels in 0..1.
        shown: By budget and overshoot.
    """

    victims: int
    distances: Mapping[int, NDArray[np.float64]] = field(repr=False)
    shown: Mapping[tuple[int, float], Shown]

    def rate(self, budget: int, overshoot: float) -> float:
        """Share of samples and victims that were fooled; 0 without samples."""
        one = self.shown[budget, overshoot]
        return one.hits / max(1, one.samples * self.victims)

    def near_rate(self, budget: int, overshoot: float) -> float:
        """The same of samples found within `NEAR_L2`."""
        one = self.shown[budget, overshoot]
        return one.near_hits / max(1, one.near * self.victims)

    def worst(self) -> tuple[float, int, float]:
        """The highest rate with its budget and overshoot."""
        return max((self.rate(*key), *key) for key in self.shown)

    def plain(self) -> list[dict[str, Any]]:
        """Rows for a result file."""
        rows = []
        for (budget, overshoot), one in self.shown.items():
            count = one.samples * self.victims
            rows.append(
                {
                    "budget": budget,
                    "overshoot": overshoot,
                    "samples": one.samples,
                    "shown": count,
                    "hits": one.hits,
                    "rate": self.rate(budget, overshoot),
                    "interval": astuple(wilson(one.hits, count)),
                    "own": one.own,
                    "own_hits": one.own_hits,
                    "near": one.near,
                    "near_hits": one.near_hits,
                    "near_rate": self.near_rate(budget, overshoot),
                    "near_interval": astuple(wilson(one.near_hits, one.near * self.victims)),
                    "median_l2": float(np.median(self.distances[budget])) if one.samples else None,
                }
            )
        return rows


def copies(templates: Sequence[Template], count: int, words: str = "calibration study") -> list[LocalCopy]:
    """Copies in this process; copy i has template i mod their number, and a seed of its own."""
    return [
        LocalCopy(templates[i % len(templates)], sha256(words.encode(), i.to_bytes(4, "big"))) for i in range(count)
    ]


def search(
    fleet: Sequence[Oracle],
    images: NDArray[np.uint8],
    truth: NDArray[np.int64],
    attack: Attack,
    effort: Effort,
    *,
    seed: int = 0,
    overshoots: Sequence[float] = OVERSHOOTS,
) -> Replication:
    """Attacks the first copy of a fleet and shows its samples to the others.

    Args:
        fleet: The attacker's copy, then the victims.
        images: uint8 (N, C, H, W), from which the attacked ones and pictures to start from are drawn.
        truth: Their classes, int64 (N,).
        attack: The search.
        effort: How much.
        seed: Of the draw and of the searches.
        overshoots: Factors s.
    """
    chosen = _readable(fleet, images, truth, effort.images, seed)
    others = seeded(seed, "starts").permutation(len(images))
    tasks = [
        task(
            int(i),
            images[i],
            int(truth[i]),
            starts=images[others[truth[others] != truth[i]][:_STARTS]],
            queries=effort.queries,
            rng=seeded(seed, attack.name, int(i)),
            checkpoints=effort.budgets,
        )
        for i in chosen
    ]
    with threadpool_limits(1):
        found = outcomes(attack, tasks, fleet[0])
    shown, distances = {}, {}
    for budget in effort.budgets:
        pairs = [(o.key, o.checkpoints[budget]) for o in found]
        there = [(key, sample) for key, sample in pairs if sample is not None]
        index = np.array([key for key, _ in there], np.int64)
        samples = np.array([sample for _, sample in there], np.uint8).reshape(-1, *images.shape[1:])
        away = (samples.astype(np.float64) - images[index]).reshape(len(samples), -1) / 255
        distances[budget] = np.linalg.norm(away, axis=1)
        for s in overshoots:
            frames = stretched(images[index], samples, s, "uint8")
            fooled = np.stack([ask_all(copy, frames) != truth[index] for copy in fleet[: effort.victims + 1]])
            own, near = fooled[0], distances[budget] <= NEAR_L2
            shown[budget, s] = Shown(
                samples=len(samples),
                own=int(own.sum()),
                hits=int(fooled[1:].sum()),
                own_hits=int(fooled[1:, own].sum()),
                near=int(near.sum()),
                near_hits=int(fooled[1:, near].sum()),
            )
    return Replication(effort.victims, distances, shown)


def _readable(
    fleet: Sequence[Oracle], images: NDArray[np.uint8], truth: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """The first `count` images, in a drawn order, that every copy reads rightly."""
    order = seeded(seed, "images").permutation(len(images))[: 4 * count + 200]
    for copy in fleet:
        order = order[ask_all(copy, images[order]) == truth[order]]
    return order[:count]
