"""Fair timing of alternatives: alternated in one process, compared by paired ratios."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from variegate.keys.errors import MisuseError

_RESAMPLES: Final = 2000


class Interval(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Time every candidate once per repeat.

    Alternating spreads drift of the machine (heat, neighbours) over all candidates alike, and the order
    rotates from repeat to repeat, so that none is always first. Each candidate runs once to warm up and is
    then given an inner count of its own, so that one measurement lasts about `seconds`.

    Args:
        candidates: Functions to time, by name; each is called without arguments.
        repeats: Measurements of each candidate.
        seconds: Aimed duration of one measurement, in seconds.

    Returns:
        Seconds per call, `repeats` values for each name; those of one index belong together.

    Raises:
        MisuseError: There is no candidate, or `repeats` or `seconds` is not positive.
    """
    if not candidates or repeats < 1 or not seconds > 0:
        raise MisuseError("timing needs a candidate, at least one repeat and a positive duration")
    counts = {name: _inner_count(call, seconds) for name, call in candidates.items()}
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(_time(candidates[name], counts[name]) / counts[name])
    return samples


def ratio(samples: Mapping[str, Sequence[float]], a: str, b: str) -> Interval:
    """How many times as long `a` takes as `b`: the median of the paired ratios.

    The interval is the percentile bootstrap over repeats (Efron and Tibshirani 1993, section 13.3), from a
    fixed seed: the same samples always give the same interval.

    Args:
        samples: Seconds per call by name, from `alternate`.
        a: Name of the numerator.
        b: Name of the denominator.

    Raises:
        MisuseError: A name is unknown, or the two have no samples or not equally many.
    """
    if a not in samples or b not in samples:
        raise MisuseError(f"no samples of {a!r} and {b!r}", hint=f"there are {', '.join(samples)}")
    if not len(samples[a]) == len(samples[b]) > 0:
        raise MisuseError(f"the samples of {a!r} and {b!r} are not pairs")
    ratios = np.asarray(samples[a], np.float64) / np.asarray(samples[b], np.float64)
    draws = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), (2.5, 97.5))
    return Interval(float(np.median(ratios)), float(low), float(high))


def _time(call: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - started


def _inner_count(call: Callable[[], object], seconds: float) -> int:
    """Warm up, then double the count until one measurement is long enough to scale from."""
    call()
    count = 1
    while (elapsed := _time(call, count)) < seconds / 8:
        count *= 2
    return max(1, math.ceil(count * seconds / elapsed))
