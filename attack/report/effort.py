"""What an attack costs: in queries, and in hours beside a device that answers at its frame rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from variegate.attack.report.data import table_of
from variegate.attack.report.results import Group, Results
from variegate.attack.report.statistics import Rate

FRAME_RATE = 30.0
"""Frames/s where the campaign does not state a device's."""
_HOUR_S = 3600
_MOST_HERTZ = 100_000
"""As in a campaign's file; what is beyond is not taken for a rate."""


@dataclass(frozen=True)
class FrameRate:
    """How fast a device answers.

    Attributes:
        hertz: Frames/s, each one query.
        stated: Whether the campaign states it; else it is `FRAME_RATE`.
    """

    hertz: float
    stated: bool

    def hours(self, queries: float) -> float:
        """Hours that so many queries take without a pause."""
        return queries / self.hertz / _HOUR_S


@dataclass(frozen=True)
class Effort:
    """What one group's attack costs.

    Attributes:
        group: fleet, attack, profile, norm.
        rate: Of the device.
        images: Different images attacked.
        searches: Of them by all attackers.
        found: Samples.
        own: Mean queries for each sample that fools the copy it was found on, failures paid for; None without a sample.
        overshoot: At which most other copies are fooled, or None where nothing was replayed.
        replication: Net, there.
        other: Mean queries until a new sample fools a given other copy: `own` over the rate; None without a hit.
        other_least: The same at the rate's upper end (the wider interval): what the data does not rule out.
    """

    group: Group
    rate: FrameRate
    images: int
    searches: int
    found: int
    own: float | None
    overshoot: float | None
    replication: Rate | None
    other: float | None
    other_least: float | None


def frame_rates(config: Mapping[str, Any]) -> dict[str, FrameRate]:
    """Frame rates that a campaign states, by fleet."""
    listed = config.get("fleet")
    out = {}
    for fleet in listed if isinstance(listed, list) else []:
        name, hertz = table_of(fleet).get("name"), table_of(fleet).get("frame_rate")
        if not isinstance(name, str) or not isinstance(hertz, int | float) or isinstance(hertz, bool):
            continue
        if 0 < hertz <= _MOST_HERTZ:
            out[name] = FrameRate(float(hertz), stated=True)
    return out


def efforts(results: Results, config: Mapping[str, Any]) -> list[Effort]:
    """The effort of each group.

    Args:
        results: Computed.
        config: The campaign's.
    """
    rates = frame_rates(config)
    out = []
    for search in results.searches:
        own = search.queries_total / search.found if search.found else None
        worst = results.worst(search.group)
        other = least = None
        if own is not None and worst is not None:
            net = worst.net
            other = own / net.share if net.share else None
            least = own / max(net.wilson.high, net.clustered.high)
        out.append(
            Effort(
                group=search.group,
                rate=rates.get(search.group[0], FrameRate(FRAME_RATE, stated=False)),
                images=search.images,
                searches=search.searches,
                found=search.found,
                own=own,
                overshoot=None if worst is None else float(worst.keys[5]),
                replication=None if worst is None else worst.net,
                other=other,
                other_least=least,
            )
        )
    return out
