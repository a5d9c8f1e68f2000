"""What only an assessor can say of an attack path, as a small TOML file.

    schema = 1
    assessor = "Jane Doe, Example Lab"
    hours_per_day = 24          # that the device answers the attacker
    preparation_days = 0        # of study and tooling before the first query
    max_l2 = 1.5                # pixels in 0..1: a frame farther from its image is another picture, and no success
    max_linf = 0.06             # likewise; without either, every frame counts

    [specialist_expertise]
    level = "proficient"
    reason = "..."

with tables likewise for knowledge_of_the_item, window_of_opportunity and equipment. What is left out has the default
below, the level that makes the attack easiest of those that fit an attacker who owns one device: a rating must not be
better than the evidence for want of an assessor.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from variegate.attack.report.attack_potential import SCALES, Factor
from variegate.keys.errors import Refusal, RefusedError

MAX_ASSESSMENT_BYTES = 64 * 1024
_MAX_TEXT = 2000
_HOURS = 24.0
_LEAST_HOURS = 0.001
"""A few seconds a day: with less, days would leave the numbers."""
_MOST_DAYS = 36500.0


@dataclass(frozen=True)
class Judgement:
    """One factor.

    Attributes:
        level: On the factor's scale.
        reason: Why.
        default: Whether it is a default that nobody judged.
    """

    level: str
    reason: str
    default: bool = False

    @property
    def basis(self) -> str:
        """Who says so: "assessor", or "default" for nobody."""
        return "default" if self.default else "assessor"


DEFAULTS: Mapping[Factor, Judgement] = {
    "specialist_expertise": Judgement(
        "proficient",
        "The attacks are published and come with toolkits; running them needs someone who knows machine learning, "
        "inventing them is not needed.",
        default=True,
    ),
    "knowledge_of_the_item": Judgement(
        "public",
        "The attacks use labels alone; nothing of the model, the copies or the keys was told to them.",
        default=True,
    ),
    "window_of_opportunity": Judgement(
        "unlimited",
        "The attacker owns the device that is queried. Where it answers only in a vehicle, or only so often, this is "
        "harder; so may be the last step of the path to another copy, showing the sample to a stranger's vehicle.",
        default=True,
    ),
    "equipment": Judgement(
        "standard",
        "A computer at the device's label port. A path through the camera needs a display or a printer as well.",
        default=True,
    ),
}


@dataclass(frozen=True)
class Assessment:
    """An assessor's file.

    Attributes:
        assessor: Who judged; empty where nobody did.
        hours_per_day: That the device answers the attacker, from 0.001 to 24.
        preparation_days: Before the first query.
        max_l2: Farthest that a frame may lie from its image to count, pixels in 0..1; infinite for any.
        max_linf: Likewise.
        judgements: Of the factors that are not measured.
    """

    assessor: str = ""
    hours_per_day: float = _HOURS
    preparation_days: float = 0.0
    max_l2: float = math.inf
    max_linf: float = math.inf
    judgements: Mapping[Factor, Judgement] = field(default_factory=lambda: dict(DEFAULTS))


def parse(data: bytes) -> Assessment:
    """Reads an assessor's file.

    Args:
        data: TOML, at most `MAX_ASSESSMENT_BYTES`.

    Raises:
        RefusedError: `TOO_LARGE`, or `MALFORMED`: no TOML, an unknown key, or a value out of range; the message has
            the key's path.
    """
    if len(data) > MAX_ASSESSMENT_BYTES:
        raise RefusedError(Refusal.TOO_LARGE, f"assessment is larger than {MAX_ASSESSMENT_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # endless numbers and nests, too
        raise _wrong("is not TOML") from error
    if document.pop("schema", None) != 1:
        raise _wrong("schema is not 1")
    assessor = document.pop("assessor", "")
    if not isinstance(assessor, str) or len(assessor) > _MAX_TEXT:
        raise _wrong("assessor is not a short text")
    hours = _number(document, "hours_per_day", _HOURS, least=_LEAST_HOURS, most=_HOURS)
    days = _number(document, "preparation_days", 0.0, most=_MOST_DAYS)
    l2, linf = (_number(document, key, math.inf, most=math.inf) for key in ("max_l2", "max_linf"))
    judgements = dict(DEFAULTS)
    for factor in DEFAULTS:
        if factor in document:
            judgements[factor] = _judgement(factor, document.pop(factor))
    if document:
        raise _wrong(f"{min(document)} is not known")
    return Assessment(assessor, hours, days, l2, linf, judgements)


def _judgement(factor: Factor, table: object) -> Judgement:
    if not isinstance(table, dict) or set(table) - {"level", "reason"}:
        raise _wrong(f"{factor} is not a table of level and reason")
    level, reason = table.get("level"), table.get("reason", "")
    if not isinstance(level, str) or level not in SCALES[factor]:
        raise _wrong(f"{factor}.level is not one of {', '.join(SCALES[factor])}")
    if not isinstance(reason, str) or len(reason) > _MAX_TEXT:
        raise _wrong(f"{factor}.reason is not a short text")
    return Judgement(level, reason)


def _number(document: dict[str, Any], key: str, default: float, *, least: float = 0.0, most: float) -> float:
    value = document.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(f"{key} is not a number from {least:g} to {most:g}")
    return float(value)


def _wrong(what: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED, f"assessment: {what}")
