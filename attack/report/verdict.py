"""The verdict: one sentence for each fleet, first thing on the page."""

from __future__ import annotations

from collections.abc import Iterator

from variegate.attack.report.data import Campaign, table_of
from variegate.attack.report.formatting import percent, place_words, rate_words
from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Results

ENOUGH_IMAGES = 20
"""Fewer say little, and the verdict says so."""


def verdict(campaign: Campaign, results: Results) -> Iterator[str]:
    """Sentences, in the order of the fleets.

    Args:
        campaign: For the fleets' rewriters.
        results: Computed.
    """
    plain = set(_without_rewriter(campaign))
    for fleet in results.fleets:
        groups = [search.group for search in results.searches if search.group[0] == fleet]
        shown = _highest([cell for group in groups if (cell := results.as_found(group)) is not None])
        worst = _highest([cell for group in groups if (cell := results.worst(group)) is not None])
        name = f"{fleet} (no rewriter)" if fleet in plain else fleet
        if shown is None or worst is None:
            yield f"{name}: no sample has met another copy, so nothing is known."
            continue
        text = (
            f"{name}: a sample found on one copy fools another in {rate_words(shown.net, ' of pairs')}, "
            f"shown as found by {shown.keys[1]}"
        )
        if (worst.net.share or 0.0) > (shown.net.share or 0.0):
            text += f", and in {percent(worst.net.share)} at worst ({worst.keys[1]}, {_place(worst)})"
        few = f" Of {shown.net.images} images: too few for a verdict." if shown.net.images < ENOUGH_IMAGES else ""
        yield f"{text}.{few}"


def _without_rewriter(campaign: Campaign) -> Iterator[str]:
    fleets = campaign.config.get("fleet")
    for fleet in fleets if isinstance(fleets, list) else []:
        values = table_of(fleet)
        if "bases" in values and table_of(values.get("rewriter", {"kind": "none"})).get("kind") == "none":
            yield str(values.get("name"))


def _highest(cells: list[Cell]) -> Cell | None:
    there = [cell for cell in cells if cell.net.trials]
    return max(there, key=lambda cell: cell.net.share or 0.0, default=None)


def _place(cell: Cell) -> str:
    return place_words(cell.keys[4], cell.keys[5])
