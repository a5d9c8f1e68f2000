"""The evidence pack: a campaign's effort in the terms of ISO/SAE 21434 and MITRE ATLAS, for programs and for people.

    evidence.json       everything, machine-readable
    evidence.html       the same in brief

Three attack paths are rated for each fleet and attack: fooling the copy that one owns, and fooling another buyer's copy
with what was found there, shown once, or once at every overshoot. Elapsed time is measured as queries at the device's
frame rate; the rest is marked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from variegate.attack.report import html
from variegate.attack.report.assessment import Assessment, Judgement
from variegate.attack.report.atlas import Technique, techniques
from variegate.attack.report.attack_potential import SCALES, Factor, Rating, elapsed, rate
from variegate.attack.report.data import Campaign, table_of
from variegate.attack.report.effort import Effort, FrameRate, Way, efforts
from variegate.attack.report.html import Raw, listed, paragraph, section, table
from variegate.attack.report.results import Results
from variegate.attack.report.weaknesses import NO_LEDGER, Weakness
from variegate.attack.report.words import number, percent, place_words

FORMAT = "variegate/1/attack-evidence"
_DAY_H = 24.0
_PATHS = {"own": "own copy", "other": "another copy, shown once", "other_every": "another copy, shown at every s"}
LIMITS = (
    (
        "Elapsed time covers queries at the stated frame rate and the assessor's days of preparation; finding a "
        "vulnerability that is not in the published attacks is not in it."
    ),
    (
        "Paths to another copy are rated at the budget, and the path that shows a sample once at the overshoot, where "
        "fewest queries are needed with the rate at the upper end of its 95 % interval: the easiest that the data does "
        "not rule out. The rate is of net pairs whose victim is fooled, whatever the own copy says of the frame."
    ),
    "The path to the own copy is rated at the mean, at the budget where it is least.",
    "The mean to another copy takes tries with new images as independent.",
    "Attacks, budgets and overshoots that were not run are not covered.",
)


def evidence(
    campaign: Campaign,
    results: Results,
    found: Sequence[Weakness],
    assessment: Assessment,
    *,
    digest: str,
    signed: bool,
) -> dict[str, bytes]:
    """Files of the pack, by name.

    Args:
        campaign: Loaded.
        results: Computed.
        found: What weakens the claim.
        assessment: The assessor's judgement.
        digest: SHA-256 of the report's `digests.json`, hexadecimal.
        signed: Whether the manifest will be signed.
    """
    costs = efforts(results, campaign.config)
    tags = _tags(campaign, results)
    document = {
        "format": FORMAT,
        "campaign": campaign.name,
        "digests_sha256": digest,
        "has_ledger": campaign.has_ledger,
        "units": dict(campaign.units),
        "paths": [
            _path(effort, path, assessment) for effort in costs for path in _PATHS if _days(effort, path, assessment)
        ],
        "effort": [_effort(effort) for effort in costs],
        "attack_potential": {
            "standard": "ISO/SAE 21434:2021, annex G.2",
            "scales": SCALES,
            "assessor": assessment.assessor,
            "hours_per_day": assessment.hours_per_day,
            "preparation_days": assessment.preparation_days,
            "judgements": {
                factor: {"level": j.level, "reason": j.reason, "basis": _basis(j)}
                for factor, j in assessment.judgements.items()
            },
        },
        "mitre_atlas": [{"id": tag.id, "name": tag.name, "why": tag.why} for tag in tags],
        "weaknesses": [{"key": weakness.key, "text": weakness.text} for weakness in found],
        "limits": list(LIMITS),
    }
    return {
        "evidence.json": (json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "evidence.html": _page(campaign, costs, tags, assessment, _lead(digest, signed)),
    }


def _days(effort: Effort, path: str, assessment: Assessment) -> tuple[float, float] | None:
    """Hours of queries, and days with preparation, of a path; None where there is no figure."""
    queries: float | None = effort.own
    if path != "own":
        ways = effort.once if path == "other" else effort.every
        queries = None if ways is None else ways.least.least
    if queries is None:
        return None
    hours = effort.rate.hours(queries)
    return hours, hours / assessment.hours_per_day + assessment.preparation_days


def _rating(effort: Effort, path: str, assessment: Assessment) -> tuple[float, float, Rating] | None:
    time = _days(effort, path, assessment)
    if time is None:
        return None
    levels: dict[Factor, str] = {factor: j.level for factor, j in assessment.judgements.items()}
    return *time, rate({"elapsed_time": elapsed(time[1]), **levels})


def _path(effort: Effort, path: str, assessment: Assessment) -> dict[str, Any]:
    rated = _rating(effort, path, assessment)
    if rated is None:
        return {}
    hours, days, rating = rated
    fleet, attack, profile, norm = effort.group
    return {
        "path": path,
        "fleet": fleet,
        "attack": attack,
        "profile": profile,
        "norm": norm,
        "query_hours": hours,
        "days": days,
        "factors": {
            factor: {
                "level": rating.levels[factor],
                "value": rating.values[factor],
                "basis": "measured" if factor == "elapsed_time" else _basis(assessment.judgements[factor]),
            }
            for factor in SCALES
        },
        "total": rating.total,
        "feasibility": rating.feasibility,
    }


def _effort(effort: Effort) -> dict[str, Any]:
    fleet, attack, profile, norm = effort.group
    own = None
    if effort.own is not None:
        own = {"queries": effort.own, "hours": effort.rate.hours(effort.own), "budget": effort.own_budget}
    ways = {"other": effort.once, "other_every": effort.every}
    return {
        "fleet": fleet,
        "attack": attack,
        "profile": profile,
        "norm": norm,
        "frame_rate_hz": effort.rate.hertz,
        "frame_rate_basis": "campaign" if effort.rate.stated else "assumed",
        "images": effort.images,
        "searches": effort.searches,
        "samples": effort.found,
        "own": own,
        **{
            path: None
            if of is None
            else {
                "mean": None if of.mean is None else _way(of.mean, of.mean.mean, effort.rate),
                "least": _way(of.least, of.least.least, effort.rate),
            }
            for path, of in ways.items()
        },
    }


def _way(way: Way, queries: float | None, rate: FrameRate) -> dict[str, Any]:
    """Queries of a way; budget 0 is the end of the search, and no overshoot stands for every one."""
    shown = way.shown
    return {
        "queries": queries,
        "hours": None if queries is None else rate.hours(queries),
        "budget": way.budget,
        "overshoot": way.overshoot,
        "queries_for_each_sample": way.each,
        "fooled_net": {
            "hits": shown.hits,
            "trials": shown.trials,
            "images": shown.images,
            "rate": shown.share,
            "wilson": [shown.wilson.low, shown.wilson.high],
            "by_image": [shown.clustered.low, shown.clustered.high],
        },
    }


def _basis(judgement: Judgement) -> str:
    return "default" if judgement.default else "assessor"


def _tags(campaign: Campaign, results: Results) -> list[Technique]:
    """From the configured kinds and devices, and from the names of attacks that ran."""
    attacks, fleets = campaign.config.get("attack"), campaign.config.get("fleet")
    kinds = [str(table_of(attack).get("kind")) for attack in attacks] if isinstance(attacks, list) else []
    kinds += [search.group[1] for search in results.searches]
    devices: list[str] = []
    for fleet in fleets if isinstance(fleets, list) else []:
        named = table_of(fleet).get("devices")
        devices += [uri for uri in named if isinstance(uri, str)] if isinstance(named, list) else []
    return techniques(kinds, devices, replayed=bool(results.tries)) if results.searches else []


def _lead(digest: str, signed: bool) -> Raw:
    vouched = (
        "signed: <code>variegate attack evidence verify REPORT --root FILE</code> checks by whom"
        if signed
        else "not signed: nobody vouches for it"
    )
    return Raw(
        "Attack effort, its attack potential by ISO/SAE 21434, and MITRE ATLAS techniques. The figures behind it are "
        f"in the report whose digests.json has SHA-256 <code>{digest}</code>. The manifest of all files is {vouched}."
    )


def _page(
    campaign: Campaign, costs: Sequence[Effort], tags: Sequence[Technique], assessment: Assessment, lead: Raw
) -> bytes:
    title = f"Evidence for assessors: {campaign.name}"
    warning = "" if campaign.has_ledger else paragraph(NO_LEDGER, kind="warning")
    body = [
        Raw(f'<header class="top"><h1>{html.text(title)}</h1><p class="lead">{lead}</p>{warning}</header>'),
        _effort_section(costs),
        _rating_section(costs, assessment),
        section(
            "judgement",
            "Where the values come from",
            paragraph(f"Assessor: {assessment.assessor or 'nobody; all judgements are defaults'}."),
            table(
                "Elapsed time is measured; the others are judgement",
                ("factor", "level", "basis", "reason"),
                [("elapsed time", "by path", "measured", _time_words(assessment))]
                + [(_factor(f), j.level, _basis(j), j.reason) for f, j in assessment.judgements.items()],
            ),
        ),
        section(
            "atlas",
            "MITRE ATLAS techniques",
            table("Exercised by this campaign", ("id", "name", "how"), [(tag.id, tag.name, tag.why) for tag in tags]),
        ),
        section("limits", "Limits", listed(LIMITS), kind="weak"),
    ]
    return html.document(title, body)


def _time_words(assessment: Assessment) -> str:
    return (
        f"queries at the frame rate for {assessment.hours_per_day:g} hours a day, and "
        f"{assessment.preparation_days:g} days of preparation"
    )


def _effort_section(costs: Sequence[Effort]) -> Raw:
    rows = []
    for effort in costs:
        fleet, attack, profile, norm = effort.group
        rows.append(
            (
                fleet,
                f"{attack}, {profile}, {norm}",
                f"{effort.found:,} of {effort.searches:,}",
                number(effort.images),
                f"{effort.rate.hertz:g}{'' if effort.rate.stated else ' (assumed)'}",
                Raw(_with_hours(effort.own, effort.rate) + _small(_stopped(effort.own_budget))),
                *(
                    cell
                    for ways in (effort.once, effort.every)
                    for cell in (
                        ("", "")
                        if ways is None
                        else (_cell(ways.mean, effort.rate), _cell(ways.least, effort.rate, least=True))
                    )
                ),
            )
        )
    columns = (
        "fleet",
        "attack, profile, norm",
        "samples of searches#",
        "images#",
        "frames/s#",
        "own copy#",
        "another copy, shown once#",
        "the same, at least#",
        "shown at every s#",
        "the same, at least#",
    )
    return section(
        "effort",
        "Effort",
        table(
            "Mean queries for each success, searches without one paid for, and hours without a pause; cheapest over "
            "budgets, and over overshoots where shown once",
            columns,
            rows,
            stacked=True,
        ),
    )


def _cell(way: Way | None, rate: FrameRate, *, least: bool = False) -> Raw:
    if way is None:
        return Raw("no hit")
    at = place_words(way.budget, way.overshoot)
    fooled = "" if least else _small(f"{percent(way.shown.share)}, n = {way.shown.trials:,}")
    return Raw(_with_hours(way.least if least else way.mean, rate) + _small(at) + fooled)


def _stopped(budget: int) -> str:
    return f"after {budget:,} queries" if budget else ""


def _small(words: str) -> str:
    return f"<small>{html.text(words)}</small>" if words else ""


def _with_hours(queries: float | None, rate: FrameRate) -> str:
    return "" if queries is None else f"{number(queries)}; {rate.hours(queries):.2g} h"


def _rating_section(costs: Sequence[Effort], assessment: Assessment) -> Raw:
    rows = []
    for effort in costs:
        for path, words in _PATHS.items():
            rated = _rating(effort, path, assessment)
            if rated is None:
                continue
            _, days, rating = rated
            fleet, attack, profile, norm = effort.group
            rows.append(
                (
                    fleet,
                    f"{attack}, {profile}, {norm}",
                    words,
                    f"{days:.2g}",
                    *(_level(factor, rating) for factor in SCALES),
                    str(rating.total),
                    rating.feasibility,
                )
            )
    columns = ("fleet", "attack, profile, norm", "path", "days#", *map(_factor, SCALES), "sum#", "attack feasibility")
    return section(
        "potential",
        "Attack potential",
        table("Level and value of each factor, ISO/SAE 21434:2021, annex G.2", columns, rows, stacked=True),
    )


def _level(factor: Factor, rating: Rating) -> str:
    level = rating.levels[factor]
    most = "≤ " if factor == "elapsed_time" and not level.startswith("more") else ""
    return f"{most}{level} ({rating.values[factor]})"


def _factor(factor: str) -> str:
    return factor.replace("_", " ")
