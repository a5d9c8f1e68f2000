"""Attacker-by-victim matrices, as tables whose cells are tinted: numbers, intervals and headers stay text."""

from __future__ import annotations

from variegate.attack.report import html
from variegate.attack.report.formatting import group_words, interval_words, percent, place_words
from variegate.attack.report.html import Raw, paragraph
from variegate.attack.report.interleaving import interleaved
from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Group, Results

GROUPS = 8
"""Groups shown; those with each fleet's highest rates."""
COPIES = 16
"""Largest matrix shown; larger ones are in the tables."""


def matrices(results: Results) -> Raw:
    """The matrices of each fleet's groups with the highest worst rate, two for each: as found, and at the worst place.

    Those places are the sample as found, at the end of the search, and the budget and overshoot of the highest rate.
    """
    rates = {
        search.group: worst.net.share or 0.0
        for search in results.searches
        if (worst := results.worst(search.group)) is not None
    }
    ranked = interleaved(rates, lambda group: group[0], lambda group: rates[group])
    if not ranked:
        return paragraph("No pair to show.")
    by_cell: dict[tuple[Group, float, float], list[Cell]] = {}
    for cell in results.pairs:
        group = (str(cell.keys[0]), str(cell.keys[1]), str(cell.keys[2]), str(cell.keys[3]))
        by_cell.setdefault((group, float(cell.keys[4]), float(cell.keys[5])), []).append(cell)
    parts = []
    for group in ranked[:GROUPS]:
        first, worst = results.as_found(group), results.worst(group)
        places = sorted({(float(of.keys[4]), float(of.keys[5])) for of in (first, worst) if of is not None})
        drawn = "".join(
            f"<figure>{_matrix(group, place_words(*at), by_cell[group, *at])}</figure>"
            for at in places
            if (group, *at) in by_cell
        )
        parts.append(f'<h3>{html.text(group_words(group))}</h3><div class="matrices">{drawn}</div>')
    left = len(ranked) - GROUPS
    if left > 0:
        parts.append(
            paragraph(
                f"{left} more groups, and all budgets and overshoots, are in tables/replication_pairs.csv.",
                kind="note",
            )
        )
    return Raw("\n".join(parts))


def _matrix(group: Group, caption: str, cells: list[Cell]) -> Raw:
    attackers = sorted({int(cell.keys[6]) for cell in cells})
    victims = sorted({int(cell.keys[7]) for cell in cells} | set(attackers))
    at = {(int(cell.keys[6]), int(cell.keys[7])): cell for cell in cells}
    more = len(attackers) > COPIES or len(victims) > COPIES
    attackers, victims = attackers[:COPIES], victims[:COPIES]
    head = "".join(f'<th scope="col">{victim}</th>' for victim in victims)
    rows = "".join(
        f'<tr><th scope="row">{attacker}</th>'
        + "".join(_cell(at.get((attacker, v)), attacker == v) for v in victims)
        + "</tr>"
        for attacker in attackers
    )
    note = f", the first {COPIES} copies" if more else ""
    return html.scroll(
        f'<table class="heat"><caption>{caption}{note}; rows attack, columns are shown the sample</caption>'
        f'<thead><tr><td class="own"></td>{head}</tr></thead><tbody>{rows}</tbody></table>',
        f"Attacker by victim, {group_words(group)}, {caption}",
    )


def _cell(cell: Cell | None, own: bool) -> str:
    if cell is None or not cell.net.trials:
        return f'<td class="own">{"own" if own else "no pair"}</td>'
    net = cell.net
    return (
        f'<td style="--v:{net.share or 0:.3f}">{percent(net.share)}<small>{interval_words(net.wilson)}</small>'
        f"<small>{net.hits} of {net.trials}</small></td>"
    )
