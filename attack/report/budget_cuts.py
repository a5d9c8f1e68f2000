"""What searches had cost, and what they had, at each query budget: whoever attacks may stop early."""

# ruff: noqa: S608  queries are made of this module's own words

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from variegate.attack.report.data import Campaign
from variegate.attack.report.replication import FOOLS, GROUP


@dataclass(frozen=True)
class BudgetCut:
    """The searches of one group, had all been stopped after so many queries.

    Attributes:
        group: fleet, attack, profile, norm.
        budget: Queries after which they are stopped; 0 is the end.
        queries: Labels asked for by all of them until then.
        samples: Of them with a sample by then that was replayed.
        own: Of them with a sample by then that fools the copy attacked.
        distances: By overshoot, the median distance of their frames in the attack's norm, where any were replayed.
    """

    group: tuple[str, str, str, str]
    budget: int
    queries: int
    samples: int
    own: int
    distances: Mapping[float, float]

    @property
    def distance(self) -> float | None:
        """Of the frames nearest to the samples, normally the samples themselves; None without any."""
        return self.distances[min(self.distances, key=lambda s: abs(s - 1))] if self.distances else None


def budget_cuts(campaign: Campaign) -> list[BudgetCut]:
    """For each group the end, then the budgets at which samples were replayed, ascending.

    A search that ended before a budget cost what it asked for. Before the end, a sample is taken to fool its own copy
    where the frame shown nearest to it, normally at s = 1, does.

    Args:
        campaign: Loaded.
    """
    keys = ", ".join(GROUP)
    query = f"""
    WITH marks AS (SELECT DISTINCT {keys}, budget FROM replays UNION SELECT DISTINCT {keys}, 0 FROM samples),
    asked AS (
        SELECT {keys}, budget, sum(if(budget = 0, queries, least(queries, budget)))::BIGINT AS asked,
            count(*) FILTER (status = 'found' AND {FOOLS}) AS found
        FROM marks JOIN samples USING ({keys}) GROUP BY {keys}, budget
    ), nearest AS (
        SELECT {keys}, budget, arg_min({FOOLS}, abs(overshoot - 1)) AS own
        FROM replays WHERE victim = attacker GROUP BY {keys}, budget, attacker, image
    ), shown AS (
        SELECT {keys}, budget, count(*) AS samples, count(*) FILTER (own) AS own FROM nearest GROUP BY {keys}, budget
    )
    SELECT {keys}, budget, asked, coalesce(samples, 0), if(budget = 0, found, coalesce(own, 0))
    FROM asked LEFT JOIN shown USING ({keys}, budget) ORDER BY {keys}, budget"""
    frames: dict[tuple[object, ...], dict[float, float]] = {}
    for *place, overshoot, away in campaign.rows(f"""
        SELECT {keys}, budget, overshoot, quantile_disc(if(norm = 'linf', linf, l2), 0.5)
        FROM replays WHERE victim = attacker GROUP BY {keys}, budget, overshoot"""):
        frames.setdefault(tuple(place), {})[overshoot] = away
    out = []
    for *group, budget, labels, samples, own in campaign.rows(query):
        fleet, attack, profile, norm = group
        distances = frames.get((*group, budget), {})
        out.append(BudgetCut((fleet, attack, profile, norm), budget, labels, samples, own, distances))
    return out
