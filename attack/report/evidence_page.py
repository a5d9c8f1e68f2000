"""The assessors' page: the evidence in brief."""

from __future__ import annotations

from collections.abc import Sequence

from variegate.attack.report import html
from variegate.attack.report.assessment import Assessment
from variegate.attack.report.atlas import Technique
from variegate.attack.report.attack_paths import PATHS, limits, rated
from variegate.attack.report.attack_potential import SCALES, Factor, Rating
from variegate.attack.report.data import Campaign
from variegate.attack.report.effort import Effort, FrameRate, Way
from variegate.attack.report.formatting import number, percent, place_words
from variegate.attack.report.html import Raw, listed, paragraph, section, table
from variegate.attack.report.weaknesses import HEADINGS, NO_LEDGER, Weakness


def page(
    campaign: Campaign,
    costs: Sequence[Effort],
    tags: Sequence[Technique],
    assessment: Assessment,
    weaknesses: Sequence[Weakness],
    *,
    lead: Raw,
) -> bytes:
    """The page.

    Args:
        campaign: For its name.
        costs: Of each group.
        tags: That apply.
        assessment: The assessor's judgement.
        weaknesses: What weakens the claim; of it, what was not looked at.
        lead: What is said first.
    """
    title = f"Evidence for assessors: {campaign.name}"
    warning = "" if campaign.has_ledger else paragraph(NO_LEDGER, kind="warning")
    body = [
        Raw(f'<header class="top"><h1>{html.text(title)}</h1><p class="lead">{lead}</p>{warning}</header>'),
        section(
            "looked",
            HEADINGS["limits"],
            paragraph(f"Units of work: {_units(campaign)}."),
            listed(weakness.text for weakness in weaknesses if weakness.key == "limits"),
            kind="weak",
        ),
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
                + [(_factor(f), j.level, j.basis, j.reason) for f, j in assessment.judgements.items()],
            ),
        ),
        section(
            "atlas",
            "MITRE ATLAS techniques",
            table("Exercised by this campaign", ("id", "name", "how"), [(tag.id, tag.name, tag.why) for tag in tags]),
        ),
        section("limits", "Limits", listed(limits(assessment)), kind="weak"),
    ]
    return html.document(title, body)


def _units(campaign: Campaign) -> str:
    listed_ = ", ".join(f"{count:,} {state}" for state, count in sorted(campaign.units.items()))
    return listed_ or "not known, without a ledger"


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
                Raw(
                    _with_hours(effort.own, effort.rate)
                    + _small(_stopped(effort.own_budget))
                    + _small(_away(effort.own_distance, norm))
                ),
                *(
                    cell
                    for ways in (effort.once, effort.every)
                    for cell in (
                        ("", "")
                        if ways is None
                        else (
                            _cell(ways.mean, effort.rate, norm),
                            _cell(ways.least, effort.rate, norm, least=True),
                        )
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
            "Mean queries for each success, searches without one paid for, hours without a pause, and the median "
            "distance of the frames; cheapest over budgets, and over overshoots where shown once",
            columns,
            rows,
            stacked=True,
        ),
    )


def _cell(way: Way | None, rate: FrameRate, norm: str, *, least: bool = False) -> Raw:
    if way is None:
        return Raw("no hit")
    at = [*place_words(way.budget, way.overshoot).split(", "), _away(way.distance, norm)]
    fooled = "" if least else _small(f"{percent(way.shown.share)}, n = {way.shown.trials:,}")
    return Raw(_with_hours(way.least if least else way.mean, rate) + "".join(map(_small, at)) + fooled)


def _stopped(budget: int) -> str:
    return f"after {budget:,} queries" if budget else ""


def _away(distance: float | None, norm: str) -> str:
    return "" if distance is None else f"{norm} {number(distance)}"


def _small(words: str) -> str:
    return f"<small>{html.text(words)}</small>" if words else ""


def _with_hours(queries: float | None, rate: FrameRate) -> str:
    return "" if queries is None else f"{number(queries)}; {rate.hours(queries):.2g} h"


def _rating_section(costs: Sequence[Effort], assessment: Assessment) -> Raw:
    rows = []
    for effort in costs:
        for path in rated(effort, assessment):
            fleet, attack, profile, norm = effort.group
            rows.append(
                (
                    fleet,
                    f"{attack}, {profile}, {norm}",
                    PATHS[path.path],
                    f"{path.days:.2g}",
                    *(_level(factor, path.rating) for factor in SCALES),
                    str(path.rating.total),
                    path.rating.feasibility,
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
