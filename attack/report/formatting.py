"""Figures in words, the same everywhere."""

from __future__ import annotations

import math

from variegate.attack.report.statistics import Interval, Rate

NOTHING = "\N{EN DASH}"
"""Where there is no figure."""
_HUNDRED = 100
_SHORT = 10
_THOUSAND = 1000


def percent(share: float | None) -> str:
    """A share: to a tenth of a point below 10 %, and where a whole number would hide that it is not 100 %."""
    if share is None:
        return NOTHING
    points = share * _HUNDRED
    fine = 0 < points < _SHORT or (points < _HUNDRED and round(points) == _HUNDRED)
    return f"{points:.1f} %" if fine else f"{points:.0f} %"


def interval_words(interval: Interval) -> str:
    """An interval of shares."""
    return f"{percent(interval.low)[:-2]} to {percent(interval.high)}"


def rate_words(rate: Rate, of: str = "") -> str:
    """A rate, of what, with counts and its wider interval."""
    if not rate.trials:
        return "no trial"
    interval = max(rate.wilson, rate.clustered, key=lambda one: one.high - one.low)
    return f"{percent(rate.share)}{of} ({rate.hits:,} of {rate.trials:,}; 95 %: {interval_words(interval)})"


def group_words(group: tuple[str, str, str, str]) -> str:
    """Fleet, attack, profile and norm."""
    fleet, attack, profile, norm = group
    return f"{fleet}, {attack} ({profile}, {norm})"


def place_words(budget: float | str, overshoot: float | str | None) -> str:
    """Where a rate was taken: at which overshoot (None: at every one), and after how many queries (0: at the end)."""
    at = "every s" if overshoot is None else f"s = {float(overshoot):g}"
    return f"{at}, after {int(budget):,} queries" if budget else at


def number(value: float | None) -> str:
    """A number of at least three digits; ∞ and a dash where there is none."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "∞"
    if value == int(value) and abs(value) < _THOUSAND**3:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= _THOUSAND else f"{value:.3g}"
