"""What an attack costs: in queries, and in hours beside a device that answers at its frame rate.

Rated is the cheapest way that the data shows. An attacker may stop every search at any budget, and show what was found
at any overshoot or at all of them; whether the sample still fools the attacker's own copy is not asked. How far a frame
may lie from its image is the assessor's to say; the median distance stands beside each figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from variegate.attack.report.budget_cuts import BudgetCut
from variegate.attack.report.data import table_of
from variegate.attack.report.replication import Cell
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
class Way:
    """One way to another copy: stop searches at a budget, show their samples.

    Attributes:
        budget: Queries after which each search is stopped; 0 is its end.
        overshoot: At which a sample is shown, once; None: once at every overshoot replayed.
        each: Mean queries for each sample, searches without one paid for.
        shown: Pairs of a sample and another copy that it fools, whatever its own copy says of it: net.
        distance: Median of the frames shown, the farthest of those shown at every overshoot; None where not known.
    """

    budget: int
    overshoot: float | None
    each: float
    shown: Rate
    distance: float | None

    @property
    def mean(self) -> float | None:
        """Mean queries until a new sample fools a given other copy; None without a hit."""
        return self.each / self.shown.share if self.shown.share else None

    @property
    def least(self) -> float:
        """The same at the upper end of the rate's wider interval: what the data does not rule out."""
        return self.each / max(self.shown.wilson.high, self.shown.clustered.high)


@dataclass(frozen=True)
class Ways:
    """The cheapest of several ways.

    Attributes:
        mean: With the smallest mean; None where no way has a hit.
        least: With the smallest number that the data does not rule out.
    """

    mean: Way | None
    least: Way


@dataclass(frozen=True)
class Effort:
    """What one group's attack costs.

    Attributes:
        group: fleet, attack, profile, norm.
        rate: Of the device.
        images: Different images attacked.
        searches: Of them by all attackers.
        found: Samples, at the end.
        own: Mean queries for each sample that fools the copy attacked, failures paid for, at the budget where they are
            fewest; None without a sample.
        own_budget: That budget; 0 is the end.
        own_distance: Median distance of the samples there, in the attack's norm; None without one that was replayed.
        once: Ways to another copy that show a sample once; None where nothing was replayed.
        every: Ways that show it once at every overshoot replayed; None, likewise.
    """

    group: Group
    rate: FrameRate
    images: int
    searches: int
    found: int
    own: float | None
    own_budget: int
    own_distance: float | None
    once: Ways | None
    every: Ways | None


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
        stops = [stop for stop in results.budget_cuts if stop.group == search.group]
        own = min((stop for stop in stops if stop.own), key=lambda stop: stop.queries / stop.own, default=None)
        every = [cell for cell in results.tries if cell.keys[:4] == search.group]
        out.append(
            Effort(
                group=search.group,
                rate=rates.get(search.group[0], FrameRate(FRAME_RATE, stated=False)),
                images=search.images,
                searches=search.searches,
                found=search.found,
                own=None if own is None else own.queries / own.own,
                own_budget=0 if own is None else own.budget,
                own_distance=None if own is None else own.distance,
                once=_cheapest(_ways(stops, ((cell, float(cell.keys[5])) for cell in results.cells(search.group)))),
                every=_cheapest(_ways(stops, ((cell, None) for cell in every))),
            )
        )
    return out


def _ways(stops: Sequence[BudgetCut], cells: Iterable[tuple[Cell, float | None]]) -> list[Way]:
    at = {stop.budget: stop for stop in stops if stop.samples}
    ways = []
    for cell, overshoot in cells:
        if not cell.shown.trials:
            continue
        stop = at[int(cell.keys[4])]
        away = max(stop.distances.values(), default=None) if overshoot is None else stop.distances.get(overshoot)
        ways.append(Way(stop.budget, overshoot, stop.queries / stop.samples, cell.shown, away))
    return ways


def _cheapest(ways: Sequence[Way]) -> Ways | None:
    if not ways:
        return None
    hit = [(mean, i) for i, way in enumerate(ways) if (mean := way.mean) is not None]
    return Ways(mean=ways[min(hit)[1]] if hit else None, least=min(ways, key=lambda way: way.least))
