"""Intervals and quantiles of what was counted.

A sample is replayed on several victims, and an image is attacked by several attackers, so the pairs behind a rate are
not independent: Wilson's interval, which takes them for so, is too narrow. Beside it stands a bootstrap over images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from variegate.attack.search import seeded
from variegate.keys.errors import MisuseError

Z_95 = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""
RESAMPLES = 10_000
"""Of each bootstrap."""
_MANY = 200
"""Images; draws of no more than these are kept, of `_KEPT` numbers of images."""
_KEPT = 8


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a share.

    Attributes:
        low: From 0.
        high: To 1.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """A share, with what it rests on.

    Attributes:
        hits: |B and C|, for instance.
        trials: |B|, for instance.
        images: Different images among the trials.
        wilson: 95 %, as if trials were independent; (0, 1) without trials.
        clustered: 95 %, over images (`clustered`).
    """

    hits: int
    trials: int
    images: int
    wilson: Interval
    clustered: Interval

    @property
    def share(self) -> float | None:
        """Hits per trial; None without trials."""
        return self.hits / self.trials if self.trials else None


def wilson(hits: float, trials: int) -> Interval:
    """Wilson's score interval at 95 %.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike the normal
    approximation it stays within 0..1, and has a width at no hits.

    Args:
        hits: Of the trials; a share of them need not be whole.
        trials: How many.

    Raises:
        MisuseError: `hits` is not in 0..`trials`.
    """
    if not 0 <= hits <= trials:
        raise MisuseError(f"{hits} hits of {trials} trials cannot be")
    if trials == 0:
        return Interval(0.0, 1.0)
    share, square = hits / trials, Z_95**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = Z_95 / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == trials else min(1.0, centre + half)
    return Interval(low, high)


def clustered(hits: NDArray[np.int64], trials: NDArray[np.int64], *seed: str | int) -> Interval:
    """Percentile bootstrap at 95 % that draws whole images, with all their pairs.

    Davison and Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8. Where all images have the same
    share, all draws agree and the bootstrap has no width; then Wilson's interval over the number of images stands in,
    as if each image were one trial. It also does where each image is one trial.

    Args:
        hits: Of each image, (m,).
        trials: Of each image, (m,), each at least 1.
        seed: Words for other draws. Equal counts and words give the same interval.
    """
    total, images = int(trials.sum()), len(trials)
    if total == 0:
        return Interval(0.0, 1.0)
    share = int(hits.sum()) / total
    if total == images or (hits * total == trials * int(hits.sum())).all():
        return wilson(share * images, images)
    of = np.stack([hits, trials], axis=1)
    if images > _MANY:
        # How many of each kind are drawn is all that matters, and few kinds are quicker than many images.
        of, alike = np.unique(of, axis=0, return_counts=True)
        draws = seeded("report", *seed).multinomial(images, alike / images, size=RESAMPLES).astype(np.float64)
    else:
        draws = _draws(images, seed)
    sums = draws @ of.astype(np.float64)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return Interval(float(low), float(high))


@lru_cache(_KEPT)
def _draws(images: int, seed: tuple[str | int, ...]) -> NDArray[np.float64]:
    """How often each image is drawn, (RESAMPLES, images); integers, so that their sums are exact in any order."""
    drawn = seeded("report", *seed).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return drawn.astype(np.float64)


def rate(hits: Sequence[int], trials: Sequence[int], *seed: str | int) -> Rate:
    """A rate from its images.

    Args:
        hits: Of each image.
        trials: Of each image; images without trials are left out.
        seed: Words for other draws of the bootstrap; without any, rates over as many images share theirs.

    Raises:
        MisuseError: Some image has more hits than trials.
    """
    of, out_of = np.asarray(hits, np.int64), np.asarray(trials, np.int64)
    if (of > out_of).any() or (of < 0).any():
        raise MisuseError("an image has more hits than trials")
    there = out_of > 0
    of, out_of = of[there], out_of[there]
    k, n = int(of.sum()), int(out_of.sum())
    return Rate(k, n, len(of), wilson(k, n), clustered(of, out_of, *seed))


def quantile(values: NDArray[np.float64], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed (Hyndman and Fan's definition 1).

    Infinite values count as the largest; interpolating between them and others would give no number.

    Args:
        values: (n,), without NaN.
        share: In 0..1.

    Returns:
        The value, or None without any.
    """
    if not len(values):
        return None
    # Rounding must not push 0.25 * 8 over 2.
    rank = max(1, math.ceil(share * len(values) - 1e-9))
    return float(np.sort(values)[rank - 1])
