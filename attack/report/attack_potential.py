"""The attack potential-based approach of ISO/SAE 21434:2021, annex G.2 (after ISO/IEC 18045, annex B.4).

Five factors, a value for each level, and the sum says how feasible an attack path is: the lower the sum, the easier.
Only elapsed time is measured here, and only in part; the other factors are the assessor's judgement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Factor = Literal["elapsed_time", "specialist_expertise", "knowledge_of_the_item", "window_of_opportunity", "equipment"]
Feasibility = Literal["high", "medium", "low", "very low"]

SCALES: Mapping[Factor, Mapping[str, int]] = {
    "elapsed_time": {"1 day": 0, "1 week": 1, "1 month": 4, "6 months": 17, "more than 6 months": 19},
    "specialist_expertise": {"layman": 0, "proficient": 3, "expert": 6, "multiple experts": 8},
    "knowledge_of_the_item": {"public": 0, "restricted": 3, "confidential": 7, "strictly confidential": 11},
    "window_of_opportunity": {"unlimited": 0, "easy": 1, "moderate": 4, "difficult": 10},
    "equipment": {"standard": 0, "specialised": 4, "bespoke": 7, "multiple bespoke": 9},
}
"""Factor -> level -> value. Elapsed times are "no more than"."""

_DAYS = {"1 day": 1.0, "1 week": 7.0, "1 month": 30.0, "6 months": 182.0}
_RANGES: tuple[tuple[int, Feasibility], ...] = ((13, "high"), (19, "medium"), (24, "low"))


@dataclass(frozen=True)
class Rating:
    """One attack path, rated.

    Attributes:
        levels: Of each factor.
        values: Of each factor.
        total: Their sum.
        feasibility: What the sum says.
    """

    levels: Mapping[Factor, str]
    values: Mapping[Factor, int]
    total: int
    feasibility: Feasibility


def elapsed(days: float) -> str:
    """The level of an elapsed time.

    Args:
        days: Not negative; a month is 30 days, six months 182.
    """
    return next((level for level, most in _DAYS.items() if days <= most), "more than 6 months")


def rate(levels: Mapping[Factor, str]) -> Rating:
    """Sums up levels of all five factors, each in `SCALES`."""
    values = {factor: SCALES[factor][levels[factor]] for factor in SCALES}
    total = sum(values.values())
    feasibility: Feasibility = next((name for most, name in _RANGES if total <= most), "very low")
    return Rating(dict(levels), values, total, feasibility)
