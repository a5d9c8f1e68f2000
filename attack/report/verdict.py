"""The verdict: one sentence for each fleet, first thing on the page."""

from __future__ import annotations

from collections.abc import Iterator

from variegate.attack.report.data import Campaign, table_of
from variegate.attack.report.formatting import number, percent, place_words, rate_words
from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Group, Results

ENOUGH_IMAGES = 20
"""Rates over fewer images stand in the summary; a verdict rests on them only where there are no others."""


def verdict(campaign: Campaign, results: Results) -> Iterator[str]:
    """Sentences: fleets with a rewriter first, each held against the fleets without one.

    Args:
        campaign: For the fleets' rewriters.
        results: Computed.
    """
    control = set(_without_rewriter(campaign))
    plain = [cell for fleet in results.fleets if fleet in control if (cell := _strongest(results, fleet)) is not None]
    beside = f"; without a rewriter in {percent(max(cell.net.share or 0.0 for cell in plain))}" if plain else ""
    for fleet in sorted(results.fleets, key=lambda name: name in control):
        name = f"{fleet} (no rewriter)" if fleet in control else fleet
        shown = _strongest(results, fleet)
        if shown is None:
            yield f"{name}: no sample has met another copy, so nothing is known."
            continue
        search = next(one for one in results.searches if one.group == _group(shown))
        worst = _highest([cell for group in _groups(results, fleet) for cell in results.cells(group)])
        text = (
            f"{name}: a sample found on one copy fools another in {rate_words(shown.net, ' of pairs')}"
            f"{'' if fleet in control else beside} (s = {shown.keys[5]:g}, {shown.keys[1]}, "
            f"{number(search.queries[1])} queries, {search.found:,} samples of {shown.net.images:,} images)."
        )
        if worst is not None and (worst.net.share or 0.0) > (shown.net.share or 0.0):
            place = place_words(worst.keys[4], worst.keys[5])
            text += f" At worst it is {percent(worst.net.share)} ({worst.keys[1]}, {place})."
        yield text + (" So few images allow no verdict." if shown.net.images < ENOUGH_IMAGES else "")


def _without_rewriter(campaign: Campaign) -> Iterator[str]:
    fleets = campaign.config.get("fleet")
    for fleet in fleets if isinstance(fleets, list) else []:
        values = table_of(fleet)
        if "bases" in values and table_of(values.get("rewriter", {"kind": "none"})).get("kind") == "none":
            yield str(values.get("name"))


def _groups(results: Results, fleet: str) -> list[Group]:
    return [search.group for search in results.searches if search.group[0] == fleet]


def _strongest(results: Results, fleet: str) -> Cell | None:
    """The attack whose samples, as found, fool most other copies."""
    return _highest([cell for group in _groups(results, fleet) if (cell := results.as_found(group)) is not None])


def _highest(cells: list[Cell]) -> Cell | None:
    there = [cell for cell in cells if cell.net.trials]
    many = [cell for cell in there if cell.net.images >= ENOUGH_IMAGES]
    return max(many or there, key=lambda cell: cell.net.share or 0.0, default=None)


def _group(cell: Cell) -> Group:
    return (str(cell.keys[0]), str(cell.keys[1]), str(cell.keys[2]), str(cell.keys[3]))
