"""Attack paths of an assessors' evidence: which there are, and what each takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from variegate.attack.report.assessment import Assessment
from variegate.attack.report.attack_potential import Factor, Rating, elapsed, rate
from variegate.attack.report.effort import Effort

PATHS = {"own": "own copy", "other": "another copy, shown once", "other_every": "another copy, shown at every s"}
"""Path -> its name for people."""
_LIMITS = (
    (
        "Elapsed time covers queries at the stated frame rate and the assessor's days of preparation; finding a "
        "vulnerability that is not in the published attacks is not in it."
    ),
    (
        "Paths to another copy are rated at the budget, and the path that shows a sample once at the overshoot, where "
        "fewest queries are needed with the rate at the upper end of its 95 % interval: the easiest that the data does "
        "not rule out. The rate is of net pairs whose victim is fooled, whatever the own copy says of the frame."
    ),
    "The path to the own copy is rated at the mean, at the budget where it is least.",
    "The mean to another copy takes tries with new images as independent.",
    "Attacks, budgets and overshoots that were not run are not covered.",
)
_ANY_DISTANCE = (
    "A frame counts at whatever distance it lies: the cheapest ones may be other pictures, as those that a search "
    "starts from are. The median distance beside each effort says which; max_l2 and max_linf of an assessment leave "
    "them out."
)


def limits(assessment: Assessment) -> list[str]:
    """Of what the ratings say."""
    bounds = [
        f"{name} {most:g}"
        for name, most in (("L2", assessment.max_l2), ("Linf", assessment.max_linf))
        if math.isfinite(most)
    ]
    far = f"Frames beyond {' or '.join(bounds)} of their image count as none." if bounds else _ANY_DISTANCE
    return [*_LIMITS, far]


@dataclass(frozen=True)
class Rated:
    """One path, rated.

    Attributes:
        path: Of `PATHS`.
        hours: Of queries.
        days: With preparation.
        rating: Of the attack potential.
    """

    path: str
    hours: float
    days: float
    rating: Rating


def rated(effort: Effort, assessment: Assessment) -> list[Rated]:
    """The paths that there are figures for, rated.

    Args:
        effort: Of one group.
        assessment: Levels of the factors that are not measured.
    """
    queries = {
        "own": effort.own,
        "other": None if effort.once is None else effort.once.least.least,
        "other_every": None if effort.every is None else effort.every.least.least,
    }
    levels: dict[Factor, str] = {factor: j.level for factor, j in assessment.judgements.items()}
    out = []
    for path in PATHS:
        total = queries[path]
        if total is None:
            continue
        hours = effort.rate.hours(total)
        days = hours / assessment.hours_per_day + assessment.preparation_days
        out.append(Rated(path, hours, days, rate({"elapsed_time": elapsed(days), **levels})))
    return out
