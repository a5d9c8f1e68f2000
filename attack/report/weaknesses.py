"""What weakens the claim: the figures a sceptic would ask for, found in the data rather than chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from variegate.attack.report.formatting import group_words, percent, place_words, rate_words
from variegate.attack.report.interleaving import interleaved
from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Results
from variegate.attack.report.statistics import Rate

_ENOUGH = 100
_DONE = ("done",)
_RIGHT = "right-by-all"


NO_LEDGER = (
    "The campaign has no ledger: nothing tells whether shards are missing, were added or were changed. Its figures are "
    "whatever lay in the folder."
)
"""Said on top of every page of such a campaign."""
CHOSEN = (
    "Images were chosen that every copy reads rightly: there are no clean errors by construction, and nothing is known "
    "of other images."
)
HEADINGS = {
    "limits": "What was not looked at",
    "any-overshoot": "Victims fooled at one overshoot or more: who may show the sample several times",
    "own-copy": "Scaled samples that no longer fool their own copy leave B; fooled victims whatever the own copy says",
    "clean-errors": "Copies that misread clean images: raw rates count this as replication, net rates leave it out",
}
"""Kind of a finding -> what is said of it, in the order in which they are shown."""


@dataclass(frozen=True)
class Weakness:
    """One finding.

    Attributes:
        key: Its kind, of `HEADINGS`.
        text: For people.
        weight: 0 is a plain limit, 1 a figure that contradicts the claim where it is high.
        fleet: That it is about; empty for all.
    """

    key: str
    text: str
    weight: float = 0.0
    fleet: str = ""


def weaknesses(
    results: Results, units: Mapping[str, int], *, has_ledger: bool = True, choose: str = "", mixture: str = ""
) -> list[Weakness]:
    """All findings. Within a kind fleets take turns, each with its heaviest, so that none crowds out the others.

    Args:
        results: Computed.
        units: Units of work by state, from the ledger.
        has_ledger: Whether there is one.
        choose: How images were chosen, as in the campaign's file.
        mixture: What differs between the software that worked on it, if it was more than one.
    """
    out = [] if has_ledger else [Weakness("limits", NO_LEDGER, 1.0)]
    out += _incomplete(results, units)
    if mixture:
        out.append(Weakness("limits", f"Results are a mixture: more than one software made them ({mixture}).", 1.0))
    if choose == _RIGHT:
        out.append(Weakness("limits", CHOSEN))
    out += _looked(results)
    out += _tries(results)
    out += _own(results)
    out += _clean(results)
    out += _numbers(results)
    return out


def _incomplete(results: Results, units: Mapping[str, int]) -> list[Weakness]:
    out = []
    left = {state: count for state, count in units.items() if state not in _DONE}
    if left:
        listed = ", ".join(f"{count} {state}" for state, count in sorted(left.items()))
        out.append(Weakness("limits", f"The campaign is not finished: of {sum(units.values())} units, {listed}.", 1.0))
    if not results.searches:
        out.append(Weakness("limits", "No search has been recorded: nothing has been shown.", 1.0))
    elif not results.overshoot:
        out.append(Weakness("limits", "No sample has been replayed: nothing is known of replication.", 1.0))
    failed = sum(ended.searches for ended in results.ended if ended.status == "failed")
    total = sum(ended.searches for ended in results.ended)
    if failed:
        text = f"{failed} of {total} searches failed; an attacker would mend what made them fail."
        out.append(Weakness("limits", text, failed / total))
    return out


def _looked(results: Results) -> list[Weakness]:
    """Overshoots and budgets that were not looked at."""
    out = []
    for search in results.searches:
        first = results.as_found(search.group)
        if first is not None and len(results.at_end(search.group)) == 1:
            text = f"{group_words(search.group)}: replayed at s = {first.keys[5]:g} only."
            out.append(Weakness("limits", text, 0.5))
    whole = [search for search in results.searches if not any(cell.keys[4] for cell in results.cells(search.group))]
    if any(results.cells(search.group) for search in whole):
        text = f"{len(whole)} of {len(results.searches)} groups have no budget: nothing is known of shorter searches."
        out.append(Weakness("limits", text))
    return out


def _tries(results: Results) -> list[Weakness]:
    """For each group, at the budget where most victims are fooled."""
    out = []
    for search in results.searches:
        hit = [cell for cell in results.tries if cell.keys[:4] == search.group and cell.shown.hits]
        if not hit:
            continue
        cell = max(hit, key=lambda cell: cell.shown.share or 0.0)
        after = f"after {cell.keys[4]:,} queries, " if cell.keys[4] else ""
        text = f"{group_words(search.group)}: {after}{rate_words(cell.shown)}"
        out.append(Weakness("any-overshoot", text, cell.shown.share or 0.0, search.group[0]))
    return _in_turn(out)


def _own(results: Results) -> list[Weakness]:
    """Where scaled samples no longer fool their own copy, B shrinks and the rate is of the rest."""
    out = []
    for search in results.searches:
        shares = [
            (cell.net.trials / cell.shown.trials, cell) for cell in results.cells(search.group) if cell.shown.trials
        ]
        if not shares:
            continue
        share, cell = min(shares, key=lambda pair: pair[0])
        if share < 1:
            text = (
                f"{group_words(search.group)}: {_place(cell)}, {percent(share)} of pairs left; of all, "
                f"{rate_words(cell.shown)}"
            )
            out.append(Weakness("own-copy", text, 1 - share, search.group[0]))
    return _in_turn(out)


def _clean(results: Results) -> list[Weakness]:
    out = []
    for fleet in results.fleets:
        of = [errs for errs in results.errs if errs.fleet == fleet and errs.errors.hits]
        if not of:
            continue
        worst = max(of, key=lambda errs: errs.errors.share or 0.0)
        text = f"{fleet}: {len(of)} copies; most often copy {worst.copy}, {rate_words(worst.errors)}"
        out.append(Weakness("clean-errors", text, worst.errors.share or 0.0))
    return out


def _numbers(results: Results) -> list[Weakness]:
    """Small N, and what no hit at all still allows."""
    out = []
    few = [search for search in results.searches if search.images < _ENOUGH]
    if few:
        least = min(search.images for search in few)
        text = f"{len(few)} of {len(results.searches)} groups rest on fewer than {_ENOUGH} images, one on {least}."
        out.append(Weakness("limits", text))
    for search in results.searches:
        worst = results.worst(search.group)
        if worst is not None and worst.net.hits == 0:
            out.append(Weakness("limits", f"{group_words(search.group)}: no pair replicated; {_allows(worst.net)}."))
    return out


def _allows(rate: Rate) -> str:
    return (
        f"with {rate.trials} pairs of {rate.images} images the true rate may still be {percent(rate.wilson.high)} "
        f"(pairs taken as independent) or {percent(rate.clustered.high)} (by image)"
    )


def _in_turn(items: Iterable[Weakness]) -> list[Weakness]:
    return interleaved(items, lambda weakness: weakness.fleet, lambda weakness: weakness.weight)


def _place(cell: Cell) -> str:
    return place_words(cell.keys[4], cell.keys[5])
