"""The page: one file, nothing loaded, no script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from variegate.attack.report import html, prose, svg
from variegate.attack.report.data import Campaign, table_of
from variegate.attack.report.formatting import interval_words, number, percent, place_words
from variegate.attack.report.html import Raw, listed, paragraph, section, table
from variegate.attack.report.matrix import matrices
from variegate.attack.report.panels import Panel
from variegate.attack.report.plots import Plots
from variegate.attack.report.replication import Cell
from variegate.attack.report.results import Results
from variegate.attack.report.tables import Table
from variegate.attack.report.verdict import verdict
from variegate.attack.report.weaknesses import HEADINGS, NO_LEDGER, Weakness

FIGURES = 12
"""Most figures of one kind."""
_ITEMS = 6
_REASONS = 60
_MAX_REASON = 300
_SHAPES = {
    "o": '<circle cx="17" cy="7" r="3.4"/>',
    "s": '<rect x="13.8" y="3.8" width="6.4" height="6.4"/>',
    "D": '<path d="M17 2.6 21.4 7 17 11.4 12.6 7z"/>',
    "^": '<path d="M17 3 20.8 10.4H13.2z"/>',
    "v": '<path d="M17 11 20.8 3.6H13.2z"/>',
    "P": '<path d="M17 3v8M13 7h8" style="stroke:inherit" stroke-width="2.8"/>',
    "X": '<path d="m14 4 6 6m0-6-6 6" style="stroke:inherit" stroke-width="2.4"/>',
    "*": '<path d="M17 2.5v9M13 4.500l8 5M21 4.500l-8 5" style="stroke:inherit" stroke-width="1.8"/>',
}


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        campaign: For its name, configuration and shards.
        results: Computed.
        found: What weakens the claim.
        shown: Samples.
        tables: Whose files lie beside the page.
        digest: SHA-256 of `digests.json`, hexadecimal.
    """

    campaign: Campaign
    results: Results
    found: Sequence[Weakness]
    shown: Sequence[Panel]
    tables: Sequence[Table]
    digest: str

    def render(self) -> bytes:
        """The whole page, UTF-8."""
        return _page(self)


def _page(of: Page) -> bytes:
    campaign, results, found, shown = of.campaign, of.results, of.found, of.shown
    plots = Plots(results)
    key = _key(results, plots)
    body = [
        _top(campaign, results),
        _summary(results),
        _weak(found, len(results.fleets)),
        section("reading", "How to read it", listed(prose.READING)),
        *_replication(plots, key),
        section(
            "matrix",
            "Attacker by victim",
            paragraph(prose.MATRIX),
            matrices(results),
        ),
        section(
            "queries",
            "Distance against queries",
            paragraph(prose.QUERIES),
            key,
            html.figures(plots.effort(), FIGURES, "tables/distance_queries.csv"),
        ),
        _panels(shown, partial(_class, campaign)),
        _ended(results),
        _source(campaign, of.tables, of.digest),
    ]
    return html.document(f"Replication report: {campaign.name}", body)


def _top(campaign: Campaign, results: Results) -> Raw:
    samples = sum(search.found for search in results.searches)
    queries = sum(search.queries_total for search in results.searches)
    pairs = sum(cell.net.trials for cell in results.tries if cell.keys[4] == 0)
    facts = (
        ("fleets", number(len(results.fleets))),
        ("searches", number(sum(search.searches for search in results.searches))),
        ("samples found", number(samples)),
        ("queries", number(queries)),
        ("net pairs", number(pairs)),
        ("units done", f"{campaign.units.get('done', 0):,} of {sum(campaign.units.values()):,}")
        if campaign.units
        else ("shards", number(len(campaign.shards))),
    )
    entries = "".join(f"<div><dt>{html.text(name)}</dt><dd>{html.text(value)}</dd></div>" for name, value in facts)
    links = (
        ("summary", "Summary"), ("weak", "What weakens the claim"), ("reading", "How to read it"),
        ("overshoot", "Overshoot"), ("distance", "Distance"), ("budget", "Queries"), ("matrix", "Attacker by victim"),
        ("queries", "Distance against queries"), ("samples", "Samples"), ("ended", "Failures"), ("source", "Sources"),
    )  # fmt: skip
    listing = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name in links)
    warning = "" if campaign.has_ledger else paragraph(NO_LEDGER, kind="warning")
    return Raw(
        f'<header class="top"><h1>Replication report: {html.text(campaign.name)}</h1>'
        f'{warning}{listed(verdict(campaign, results), kind="verdict")}<p class="lead">{prose.LEAD}</p>'
        f'<dl class="facts">{entries}</dl>'
        f'<nav aria-label="Sections"><ul>{listing}</ul></nav></header>'
    )


def _summary(results: Results) -> Raw:
    rows = []
    for search in results.searches:
        group = search.group
        fleet, attack, profile, norm = group
        low, middle, high = (html.text(number(value)) for value in search.distance)
        rows.append(
            (
                fleet,
                f"{attack}, {profile}, {norm}",
                *map(_rate, (results.as_found(group), results.worst_at_end(group), results.worst_early(group))),
                Raw(f"{search.found:,} of {search.searches:,}<small>{search.images:,} images</small>"),
                Raw(f"{middle}<small>{low} to {high}</small>"),
                number(search.queries[1]),
            )
        )
    columns = ("fleet", "attack, profile, norm", "as found#", "highest at the end#", "highest of shorter searches#",
               "samples of searches#", "distance, median#", "queries, median#")  # fmt: skip
    return section(
        "summary",
        "Summary",
        table("Net replication of each fleet and attack, and what the searches cost", columns, rows, stacked=True),
        paragraph(prose.SUMMARY, kind="note"),
    )


def _weak(weaknesses: Sequence[Weakness], fleets: int) -> Raw:
    parts = [paragraph(prose.WEAK)]
    for key, heading in HEADINGS.items():
        of = [weakness.text for weakness in weaknesses if weakness.key == key]
        if not of:
            continue
        most = max(_ITEMS, fleets)
        parts += [Raw(f"<h3>{html.text(heading)}</h3>"), listed(of[:most], kind="columns")]
        if len(of) > most:
            parts.append(paragraph(f"{len(of) - most} more are in evidence/evidence.json.", kind="note"))
    return section("weak", "What weakens the claim", *parts, kind="weak")


def _replication(plots: Plots, key: Raw) -> list[Raw]:
    out = [
        section(
            "overshoot",
            "Replication against overshoot",
            paragraph(prose.OVERSHOOT),
            key,
            html.figures(plots.overshoot(), FIGURES, "tables/replication_overshoot.csv"),
        )
    ]
    parts: list[Raw] = [key]
    for norm, name in (("l2", "L2"), ("linf", "Linf")):
        parts += [
            Raw(f"<h3>Replication in bins of the {name} distance</h3>"),
            html.figures(plots.distance(norm), FIGURES, f"tables/replication_{norm}.csv"),
            Raw(f"<h3>Success within a {name} distance</h3>"),
            html.figures(plots.within(norm), FIGURES, f"tables/success_within_{norm}.csv"),
        ]
    out.append(
        section(
            "distance",
            "Replication against distance",
            paragraph(prose.DISTANCE),
            *parts,
        )
    )
    out.append(
        section(
            "budget",
            "Replication against the query budget",
            paragraph(prose.BUDGET),
            key,
            html.figures(plots.budget(), FIGURES, "tables/replication_overshoot.csv"),
        )
    )
    return out


def _class(campaign: Campaign, number: int) -> str:
    """A class by its number, and its name where the campaign knows it."""
    names = table_of(campaign.config.get("data")).get("class_names")
    if not isinstance(names, list) or not 0 <= number < len(names):
        return str(number)
    return f"{number} ({names[number]})"


def _panels(shown: Sequence[Panel], name_of: Callable[[int], str]) -> Raw:
    cards = []
    for panel in shown:
        fleet, attack, profile, norm = panel.group
        true = name_of(panel.true_class)
        what = f"image {panel.image}, class {true}, {fleet}, {attack} on copy {panel.attacker}"
        pictures = [(panel.clean, "clean", "clean"), (panel.sample, "sample", f"reads {name_of(panel.label)}")]
        pictures.append((panel.difference, "difference", f"change x {panel.factor}"))
        drawn = "".join(
            f'<figure><img src="{uri}" alt="{html.text(f"{name}: {what}")}">'
            f"<figcaption>{html.text(caption)}</figcaption></figure>"
            for uri, name, caption in pictures
            if uri is not None
        )
        cards.append(
            f'<div class="panel"><h3>{html.text(fleet)}: {html.text(attack)} ({html.text(profile)})</h3>'
            f'<div class="three">{drawn}</div><p class="note">Image {panel.image}, class {html.text(true)}, '
            f"found on copy {panel.attacker} at {html.text(norm)} {panel.distance:.3g}; shown as found, it fools "
            f"{panel.fooled} of {panel.victims} other copies.</p></div>"
        )
    parts = [
        paragraph(
            "For each group the sample that fools most other copies, and one of median distance. Grey is no change.",
            kind="note",
        )
    ]
    if not cards:
        parts = [paragraph("No sample to show.")]
    elif all(panel.clean is None for panel in shown):
        parts.append(
            paragraph("The campaign's inputs are not at hand: the clean images are missing here.", kind="note")
        )
    return section("samples", "Samples", *parts, Raw(f'<div class="panels">{"".join(cards)}</div>'))


def _ended(results: Results) -> Raw:
    rows = [
        (e.group[0], f"{e.group[1]}, {e.group[2]}, {e.group[3]}", e.status, e.reason[:_MAX_REASON], number(e.searches))
        for e in sorted(results.ended, key=lambda e: (e.status != "failed", e.status != "none", e.group))
        if e.status != "found" or e.reason
    ]
    left = len(rows) - _REASONS
    note = paragraph(f"{left} more are in tables/ended.csv.", kind="note") if left > 0 else Raw("")
    if not rows:
        return section("ended", "Searches without a sample", paragraph("None."))
    columns = ("fleet", "attack, profile, norm", "status", "reason", "searches#")
    return section(
        "ended",
        "Searches without a sample",
        table("By reason; none: ended by itself or at its budget", columns, rows[:_REASONS]),
        note,
    )


def _source(campaign: Campaign, tables: Sequence[Table], digest: str) -> Raw:
    rows = [(Raw(f"<code>tables/{t.name}.csv</code>"), t.caption, number(len(t.rows))) for t in tables]
    shards = [
        (Raw(f"<code>{html.text(s.path)}</code>"), number(s.rows), Raw(f"<code>{s.sha256}</code>"))
        for s in campaign.shards
    ]
    config = campaign.config_bytes.decode(errors="replace")
    return section(
        "source",
        "Sources",
        paragraph(
            prose.SOURCE,
            Raw(f"<code>{digest}</code>."),
        ),
        table("Tables beside this page, as CSV and as JSON", ("file", "what", "rows#"), rows),
        Raw(f"<details><summary>Resolved configuration</summary><pre>{html.text(config)}</pre></details>"),
        Raw(f"<details><summary>{len(shards):,} shards and their SHA-256</summary>"),
        table("Shards", ("file", "rows#", "SHA-256"), shards),
        Raw("</details>"),
    )


def _key(results: Results, plots: Plots) -> Raw:
    """The legend that all figures with a line for each fleet share."""
    items = []
    for fleet in results.fleets:
        colour, marker, dashes = plots.look(fleet)
        paint = f"var(--s{colour + 1})"
        pattern = f' stroke-dasharray="{" ".join(str(d * 1.2) for d in dashes)}"' if dashes else ""
        items.append(
            '<li><svg width="34" height="14" aria-hidden="true">'
            f'<path d="M0 7H34" fill="none" stroke-width="2"{pattern} style="stroke:{paint}"/>'
            f'<g style="fill:{paint};stroke:{paint}" stroke-width="0">{_SHAPES[marker]}</g></svg>'
            f"{html.text(svg.shown(fleet))}</li>"
        )
    return Raw(f'<ul class="key" aria-label="Fleets">{"".join(items)}</ul>')


def _rate(cell: Cell | None) -> Raw:
    if cell is None or not cell.net.trials:
        return Raw("no pair")
    rate = cell.net
    interval = max(rate.wilson, rate.clustered, key=lambda one: one.high - one.low)
    place = "".join(
        f"<small>{html.text(words)}</small>" for words in place_words(cell.keys[4], cell.keys[5]).split(", ")
    )
    return Raw(
        f"{percent(rate.share)}<small>{interval_words(interval)}; {rate.hits:,} of {rate.trials:,}</small>{place}"
    )
