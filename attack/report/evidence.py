"""The evidence pack: a campaign's effort in the terms of ISO/SAE 21434 and MITRE ATLAS, for programs and for people.

    evidence.json       everything, machine-readable
    evidence.html       the same in brief

Three attack paths are rated for each fleet and attack: fooling the copy that one owns, and fooling another buyer's copy
with what was found there, shown once, or once at every overshoot. Elapsed time is measured as queries at the device's
frame rate; the rest is marked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from variegate.attack.report.assessment import Assessment
from variegate.attack.report.atlas import Technique, techniques
from variegate.attack.report.attack_paths import Rated, limits, rated
from variegate.attack.report.attack_potential import SCALES
from variegate.attack.report.data import Campaign, table_of
from variegate.attack.report.effort import Effort, FrameRate, Way, efforts
from variegate.attack.report.evidence_page import page
from variegate.attack.report.html import Raw
from variegate.attack.report.results import Results
from variegate.attack.report.weaknesses import Weakness

FORMAT = "variegate/1/attack-evidence"


def evidence(
    campaign: Campaign,
    results: Results,
    weaknesses: Sequence[Weakness],
    assessment: Assessment,
    *,
    digest: str,
    signed: bool,
) -> dict[str, bytes]:
    """Files of the pack, by name.

    Args:
        campaign: Loaded.
        results: Computed.
        weaknesses: What weakens the claim.
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
        "paths": [_path(effort, path, assessment) for effort in costs for path in rated(effort, assessment)],
        "effort": [_effort(effort) for effort in costs],
        "attack_potential": {
            "standard": "ISO/SAE 21434:2021, annex G.2",
            "scales": SCALES,
            "assessor": assessment.assessor,
            "hours_per_day": assessment.hours_per_day,
            "preparation_days": assessment.preparation_days,
            "max_l2": assessment.max_l2 if math.isfinite(assessment.max_l2) else None,
            "max_linf": assessment.max_linf if math.isfinite(assessment.max_linf) else None,
            "judgements": {
                factor: {"level": j.level, "reason": j.reason, "basis": j.basis}
                for factor, j in assessment.judgements.items()
            },
        },
        "mitre_atlas": [{"id": tag.id, "name": tag.name, "why": tag.why} for tag in tags],
        "weaknesses": [{"key": weakness.key, "text": weakness.text} for weakness in weaknesses],
        "limits": limits(assessment),
    }
    return {
        "evidence.json": (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
        "evidence.html": page(campaign, costs, tags, assessment, weaknesses, lead=_lead(digest, signed)),
    }


def _path(effort: Effort, path: Rated, assessment: Assessment) -> dict[str, Any]:
    fleet, attack, profile, norm = effort.group
    rating = path.rating
    return {
        "path": path.path,
        "fleet": fleet,
        "attack": attack,
        "profile": profile,
        "norm": norm,
        "query_hours": path.hours,
        "days": path.days,
        "factors": {
            factor: {
                "level": rating.levels[factor],
                "value": rating.values[factor],
                "basis": "measured" if factor == "elapsed_time" else assessment.judgements[factor].basis,
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
        own = {
            "queries": effort.own,
            "hours": effort.rate.hours(effort.own),
            "budget": effort.own_budget,
            "distance": effort.own_distance,
        }
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
        "distance": way.distance,
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


def _tags(campaign: Campaign, results: Results) -> list[Technique]:
    """From the configured kinds and devices."""
    attacks, fleets = campaign.config.get("attack"), campaign.config.get("fleet")
    kinds = [str(table_of(attack).get("kind")) for attack in attacks] if isinstance(attacks, list) else []
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
