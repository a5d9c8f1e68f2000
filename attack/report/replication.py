"""Replication: how often a sample found on one copy fools another.

Zhang et al., ASIA CCS 2023: B is the samples that fool the attacker's copy, C those that fool the victim's, and the
replication rate |B and C| / |B|. A targeted sample fools a copy that answers its target, and no other. Here a trial
is a pair of a sample and a victim other than its attacker. `raw` counts all pairs; `net` those whose clean image both
copies read rightly, since a copy that errs anyway was not fooled.
"""

# ruff: noqa: S608  queries are made of this module's own words

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from variegate.attack.report.data import Campaign
from variegate.attack.report.statistics import Rate, rate

GROUP = ("fleet", "attack", "profile", "norm")
"""What figures are never pooled over."""
_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
_DECADES = range(-4, 4)
GRID = tuple(float(f"{step}e{decade}") for decade in _DECADES for step in _STEPS)
"""Distances at which bins begin, 1-1.5-2-3-5-7: the same in every report, so that two can be laid side by side."""

FOOLS = "CASE WHEN target IS NULL THEN label <> true_class ELSE label = target END"
"""Whether a row's label is wrong, or the one aimed at. A search on a misread image may end on its class."""

_PAIRS = f"""
CREATE OR REPLACE TABLE pairs AS
SELECT fleet, attack, profile, norm, attacker, image, budget, overshoot, victim,
       own.fools AS b, r.fools AS c, own.reads AND r.reads AS net, r.l2 AS l2, r.linf AS linf
FROM (SELECT *, {FOOLS} AS fools, clean_label = true_class AS reads FROM replays WHERE victim <> attacker) AS r
JOIN (
    SELECT fleet, attack, profile, norm, attacker, image, budget, overshoot, {FOOLS} AS fools,
        clean_label = true_class AS reads
    FROM replays WHERE victim = attacker
) AS own
USING (fleet, attack, profile, norm, attacker, image, budget, overshoot)
"""


@dataclass(frozen=True)
class Cell:
    """Replication in one cell of a table.

    Attributes:
        keys: Values of the columns that were asked for.
        raw: Over all pairs.
        net: Over pairs whose clean image both copies read rightly.
        shown: Pairs whose victim is fooled whatever the attacker's own copy says, net: an attacker need not ask it.
    """

    keys: tuple[str | int | float, ...]
    raw: Rate
    net: Rate
    shown: Rate


def prepare(campaign: Campaign) -> None:
    """Makes the table of pairs that all others come from."""
    campaign.db.execute(_PAIRS)


def by_overshoot(campaign: Campaign) -> list[Cell]:
    """Keys: `GROUP`, budget (0: the end), overshoot."""
    return _cells(campaign, (*GROUP, "budget", "overshoot"), "pairs")


def by_pair(campaign: Campaign) -> list[Cell]:
    """The matrices; keys: `GROUP`, budget (0: the end), overshoot, attacker, victim."""
    return _cells(campaign, (*GROUP, "budget", "overshoot", "attacker", "victim"), "pairs")


def by_distance(campaign: Campaign, norm: str) -> list[Cell]:
    """Frames of every overshoot, at the end of the budget, in bins of their distance; keys: `GROUP`, the bin's begin.

    Args:
        campaign: After `prepare`.
        norm: "l2" or "linf", of the frame shown.
    """
    begins = ", ".join(f"({begin!r}::DOUBLE)" for begin in (0.0, *GRID))
    source = f"(SELECT * FROM pairs WHERE budget = 0) ASOF JOIN (VALUES {begins}) AS bins(begins) ON {norm} >= begins"
    return _cells(campaign, (*GROUP, "begins"), source)


@dataclass(frozen=True)
class Reached:
    """Success within a distance.

    Attributes:
        keys: `GROUP`, and the distance.
        net: Pairs whose victim some frame shown at no more than this distance fools, of all net pairs.
    """

    keys: tuple[str | int | float, ...]
    net: Rate


def within_distance(campaign: Campaign, norm: str) -> list[Reached]:
    """Attack success against distance, as perturbation-budget curves have it (Dong et al., CVPR 2020, section 4.2).

    Whatever overshoot reaches it: the share grows with the distance. At the end of the budget, net.

    Args:
        campaign: After `prepare`.
        norm: "l2" or "linf", of the frame shown.
    """
    keys = ", ".join(GROUP)
    grid = ", ".join(f"({at!r}::DOUBLE)" for at in GRID)
    query = f"""
    WITH reach AS (
        SELECT {keys}, image, min({norm}) FILTER (c) AS least
        FROM pairs WHERE net AND budget = 0 GROUP BY {keys}, attacker, image, victim
    ), ends AS (
        SELECT min({norm}) FILTER ({norm} > 0) AS low, max({norm}) AS high FROM pairs WHERE budget = 0
    )
    SELECT {keys}, within, image, count(*), count(*) FILTER (least <= within)
    FROM reach, (VALUES {grid}) AS grid(within), ends WHERE within BETWEEN low / 2 AND high * 2
    GROUP BY ALL ORDER BY ALL
    """
    width = len(GROUP) + 1
    return [
        Reached(key, rate([row[width + 2] for row in rows], [row[width + 1] for row in rows]))
        for key, rows in _grouped(campaign, query, width)
    ]


def at_any_overshoot(campaign: Campaign) -> list[Cell]:
    """Pairs whose victim is fooled at one overshoot or more; keys: `GROUP`, budget (0: the end).

    This is an attacker who may show the sample once for each overshoot. B: it fools its own copy at some.
    """
    keys = ", ".join((*GROUP, "budget"))
    source = f"""(SELECT {keys}, attacker, image, victim, bool_or(b) AS b, bool_or(c) AS c, bool_or(b AND c) AS hit,
        bool_and(net) AS net FROM pairs GROUP BY {keys}, attacker, image, victim)"""
    return _cells(campaign, (*GROUP, "budget"), source, hit="hit")


def _cells(campaign: Campaign, keys: Sequence[str], source: str, *, hit: str = "b AND c") -> list[Cell]:
    listed = ", ".join(keys)
    query = f"""
    SELECT {listed}, image,
        count(*) FILTER (b), count(*) FILTER ({hit}),
        count(*) FILTER (b AND net), count(*) FILTER ({hit} AND net),
        count(*) FILTER (net), count(*) FILTER (c AND net)
    FROM {source} GROUP BY {listed}, image ORDER BY {listed}, image
    """
    width, out = len(keys), []
    for key, rows in _grouped(campaign, query, width):
        columns = list(zip(*rows, strict=True))[width + 1 :]
        # All rates share their draws: equal counts have one interval, whatever they count.
        raw, net, shown = (rate(columns[2 * i + 1], columns[2 * i]) for i in range(3))
        out.append(Cell(key, raw, net, shown))
    return out


def _grouped(
    campaign: Campaign, query: str, width: int
) -> list[tuple[tuple[str | int | float, ...], list[tuple[int, ...]]]]:
    return [(key, list(rows)) for key, rows in groupby(campaign.rows(query), lambda row: row[:width])]
