"""What weakens the claim: the figures a sceptic would ask for, found in the data rather than chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Results
from variegate.attack.report.statistics import Rate
from variegate.attack.report.words import group_words, percent, rate_words

CELLS = 8
"""Cells of the matrix that are named."""
_ENOUGH = 100
_DONE = ("done",)


HEADINGS = {
    "limits": "What was not looked at",
    "worst-overshoot": "Highest net replication of each group, and at which overshoot",
    "any-overshoot": "Victims fooled at one overshoot or more: who may show the sample several times",
    "highest-cell": "Highest cells, from copy to copy",
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
    """

    key: str
    text: str
    weight: float = 0.0


def weaknesses(results: Results, units: Mapping[str, int]) -> list[Weakness]:
    """All findings, the heaviest first within each kind.

    Args:
        results: Computed.
        units: Units of work by state, from the ledger.
    """
    out = _incomplete(results, units)
    out += _curves(results)
    out += _cells(results.pairs)
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


def _curves(results: Results) -> list[Weakness]:
    """For each group, where replication is highest and whether it was looked for beyond s = 1."""
    out = []
    for search in results.searches:
        least, worst = results.least(search.group), results.worst(search.group)
        if least is None or worst is None:
            continue
        name = group_words(search.group)
        if len(results.at_end(search.group)) == 1:
            text = f"{name}: replayed at s = {least.keys[5]:g} only, the least there is."
            out.append(Weakness("limits", text, 0.5))
            continue
        share = worst.net.share or 0.0
        if share > 0:
            beside = f"{percent(least.net.share)} at s = {least.keys[5]:g}"
            text = f"{name}: s = {worst.keys[5]:g}, {rate_words(worst.net)}; {beside}"
            out.append(Weakness("worst-overshoot", text, share))
    return sorted(out, key=lambda weakness: -weakness.weight)


def _cells(pairs: tuple[Cell, ...]) -> list[Weakness]:
    hit = [cell for cell in pairs if cell.net.hits]
    # By the interval's lower end, so that one hit of one trial does not stand above 60 of 100.
    hit.sort(key=lambda cell: (-cell.net.wilson.low, -(cell.net.share or 0), cell.keys))
    seen: set[tuple[object, ...]] = set()
    out = []
    for cell in hit:
        pair = (*cell.keys[:4], *cell.keys[5:])
        if pair in seen:
            continue
        seen.add(pair)
        fleet, attack, profile, norm, overshoot, attacker, victim = cell.keys
        text = (
            f"{group_words((str(fleet), str(attack), str(profile), str(norm)))}: from copy {attacker} to copy {victim} "
            f"at s = {overshoot:g}, {rate_words(cell.net)}"
        )
        out.append(Weakness("highest-cell", text, cell.net.share or 0.0))
        if len(out) == CELLS:
            break
    return out


def _tries(results: Results) -> list[Weakness]:
    out = []
    for cell in results.tries:
        if not cell.shown.hits:
            continue
        name = group_words((str(cell.keys[0]), str(cell.keys[1]), str(cell.keys[2]), str(cell.keys[3])))
        text = f"{name}: {rate_words(cell.shown)}"
        out.append(Weakness("any-overshoot", text, cell.shown.share or 0.0))
    return sorted(out, key=lambda weakness: -weakness.weight)


def _own(results: Results) -> list[Weakness]:
    """Where scaled samples no longer fool their own copy, B shrinks and the rate is of the rest."""
    out = []
    for search in results.searches:
        ends = [cell for cell in results.at_end(search.group) if cell.shown.trials]
        kept = [(cell.net.trials / cell.shown.trials, cell) for cell in ends]
        if not kept:
            continue
        share, cell = min(kept, key=lambda pair: pair[0])
        if share < 1:
            text = (
                f"{group_words(search.group)}: s = {cell.keys[5]:g}, {percent(share)} of pairs left; of all, "
                f"{rate_words(cell.shown)}"
            )
            out.append(Weakness("own-copy", text, 1 - share))
    return sorted(out, key=lambda weakness: -weakness.weight)


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
