"""All figures of a report, computed once from a campaign."""

# ruff: noqa: S608  queries are made of this module's own words

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from variegate.attack.report import replication
from variegate.attack.report.budget_cuts import BudgetCut, budget_cuts
from variegate.attack.report.data import Campaign, table_of
from variegate.attack.report.replication import FOOLS, GRID, GROUP, Cell, Reached
from variegate.attack.report.statistics import Rate, quantile, rate

Group = tuple[str, str, str, str]
"""fleet, attack, profile, norm."""
_KEYS = ", ".join(GROUP)
_QUARTILES = (0.25, 0.5, 0.75)
MOVED_BACK = "the copy misreads the clean image, and the sample is read as its true class"
"""Why a sample does not count."""


@dataclass(frozen=True)
class Search:
    """How the searches of one group went.

    Attributes:
        group: fleet, attack, profile, norm.
        searches: Pairs of attacker and image attacked.
        images: Different images among them.
        found: Searches that ended with a sample that fools the copy attacked.
        distance: Quartiles, searches without a sample counted as infinite.
        queries: Quartiles of labels asked for.
        queries_total: Labels asked for in all.
    """

    group: Group
    searches: int
    images: int
    found: int
    distance: tuple[float | None, float | None, float | None]
    queries: tuple[float | None, float | None, float | None]
    queries_total: int


@dataclass(frozen=True)
class Progress:
    """Distance reached with so many queries.

    Attributes:
        group: fleet, attack, profile, norm.
        queries: Asked for.
        searches: Counted, those without a sample as infinite.
        distance: Quartiles of the sample so far.
    """

    group: Group
    queries: int
    searches: int
    distance: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Ended:
    """Searches that ended alike.

    Attributes:
        group: fleet, attack, profile, norm.
        status: `attack.outcome.Status`.
        reason: Of a failure, or why a sample does not count; empty otherwise.
        searches: How many.
    """

    group: Group
    status: str
    reason: str
    searches: int


@dataclass(frozen=True)
class Errs:
    """A copy's errors on clean images that were replayed.

    Attributes:
        fleet: Name.
        copy: In the fleet.
        errors: Wrong labels, of all its images.
    """

    fleet: str
    copy: int
    errors: Rate


@dataclass(frozen=True)
class Results:
    """Everything a report says.

    Attributes:
        fleets: Names, in the order of the campaign's file.
        searches: Of each group.
        budget_cuts: Searches stopped at each budget.
        progress: Distance against queries.
        ended: Searches by status and reason.
        overshoot: `replication.by_overshoot`.
        pairs: `replication.by_pair`.
        tries: `replication.at_any_overshoot`.
        binned: `replication.by_distance`, by norm.
        within: `replication.within_distance`, by norm.
        errs: Errors on clean images.
    """

    fleets: tuple[str, ...]
    searches: tuple[Search, ...]
    budget_cuts: tuple[BudgetCut, ...]
    progress: tuple[Progress, ...]
    ended: tuple[Ended, ...]
    overshoot: tuple[Cell, ...]
    pairs: tuple[Cell, ...]
    tries: tuple[Cell, ...]
    binned: Mapping[str, tuple[Cell, ...]]
    within: Mapping[str, tuple[Reached, ...]]
    errs: tuple[Errs, ...]

    def cells(self, group: Group) -> list[Cell]:
        """Replication of a group: the end first, then budgets ascending; within each overshoots, ascending."""
        return [cell for cell in self.overshoot if cell.keys[:4] == group]

    def at_end(self, group: Group) -> list[Cell]:
        """Replication at the end of the budget, by overshoot, ascending."""
        return [cell for cell in self.cells(group) if cell.keys[4] == 0]

    def as_found(self, group: Group) -> Cell | None:
        """At the end of the budget, at the overshoot nearest 1: normally the sample as it was found."""
        return min(self.at_end(group), key=lambda cell: abs(float(cell.keys[5]) - 1), default=None)

    def worst(self, group: Group) -> Cell | None:
        """At the budget and overshoot with the highest net rate; of equals the end, then the least."""
        return _highest(self.cells(group))

    def worst_at_end(self, group: Group) -> Cell | None:
        """At the end of the budget, at the overshoot with the highest net rate; the smaller overshoot of equals."""
        return _highest(self.at_end(group))

    def worst_early(self, group: Group) -> Cell | None:
        """Of searches stopped at a budget, at the place with the highest net rate."""
        return _highest([cell for cell in self.cells(group) if cell.keys[4]])


def _highest(cells: list[Cell]) -> Cell | None:
    there = [cell for cell in cells if cell.net.trials]
    return max(there, key=lambda cell: cell.net.share or 0.0) if there else None


def compute(campaign: Campaign) -> Results:
    """Computes everything.

    Args:
        campaign: Loaded.
    """
    replication.prepare(campaign)
    searches, progress = _searches(campaign)
    listed = campaign.config.get("fleet")
    order = [str(table_of(entry).get("name")) for entry in listed] if isinstance(listed, list) else []
    there = {search.group[0] for search in searches}
    return Results(
        fleets=(*(name for name in order if name in there), *sorted(there - set(order))),
        searches=searches,
        budget_cuts=tuple(budget_cuts(campaign)),
        progress=progress,
        ended=tuple(
            Ended((fleet, attack, profile, norm), status, reason, count)
            for fleet, attack, profile, norm, status, reason, count in campaign.rows(
                f"SELECT {_KEYS}, status, CASE WHEN status = 'found' AND NOT ({FOOLS}) THEN '{MOVED_BACK}' "
                "ELSE coalesce(reason, '') END, count(*) FROM samples GROUP BY ALL ORDER BY ALL"
            )
        ),
        overshoot=tuple(replication.by_overshoot(campaign)),
        pairs=tuple(replication.by_pair(campaign)),
        tries=tuple(replication.at_any_overshoot(campaign)),
        binned={norm: tuple(replication.by_distance(campaign, norm)) for norm in ("l2", "linf")},
        within={norm: tuple(replication.within_distance(campaign, norm)) for norm in ("l2", "linf")},
        errs=_errs(campaign),
    )


def _searches(campaign: Campaign) -> tuple[tuple[Search, ...], tuple[Progress, ...]]:
    """Searches, and their progress on a common grid of queries."""
    rows = campaign.rows(
        f"SELECT {_KEYS}, image, status = 'found' AND {FOOLS}, queries, distance, trace_queries, trace_distance "
        f"FROM samples ORDER BY {_KEYS}, attacker, image"
    )
    searches, progress = [], []
    for group, members in groupby(rows, lambda row: (row[0], row[1], row[2], row[3])):
        of = list(members)
        success = [bool(row[5]) for row in of]
        distances = np.array([row[7] if ok else np.inf for row, ok in zip(of, success, strict=True)], np.float64)
        labels = np.array([row[6] for row in of], np.float64)
        searches.append(
            Search(
                group, len(of), len({row[4] for row in of}), sum(success), _quartiles(distances), _quartiles(labels),
                int(labels.sum()),
            )
        )  # fmt: skip
        end = int(labels.max(initial=0))
        # A set: small marks fall on one number of queries.
        grid = [*sorted({int(10 * step) for step in GRID if 1 <= 10 * step < end}), end]
        traces = [
            _so_far(row[8], row[9], grid) if ok else np.full(len(grid), np.inf)
            for row, ok in zip(of, success, strict=True)
        ]
        for at, reached in zip(grid, np.array(traces).T, strict=True):
            progress.append(Progress(group, at, len(of), _quartiles(reached)))
    return tuple(searches), tuple(progress)


def _so_far(queries: list[int], distances: list[float], grid: list[int]) -> NDArray[np.float64]:
    """The distance noted last with no more than each number of queries of the grid: iterates may move away again."""
    noted = np.array([np.inf, *distances], np.float64)
    out: NDArray[np.float64] = noted[np.searchsorted(np.array(queries, np.int64), grid, side="right")]
    return out


def _quartiles(values: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    low, middle, high = (quantile(values, share) for share in _QUARTILES)
    return low, middle, high


def _errs(campaign: Campaign) -> tuple[Errs, ...]:
    query = """
    SELECT fleet, victim, image, bool_or(clean_label <> true_class)::INTEGER
    FROM replays GROUP BY fleet, victim, image ORDER BY ALL"""
    out = []
    for (fleet, copy), rows in groupby(campaign.rows(query), lambda row: (row[0], row[1])):
        wrong = [row[3] for row in rows]
        out.append(Errs(fleet, copy, rate(wrong, [1] * len(wrong))))
    return tuple(out)
