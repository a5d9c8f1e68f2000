"""Attacks by name, for campaign files: converts `kind`, `profile` and `parameters` to a configured attack and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from variegate.attack.algorithms.boundary import Boundary
from variegate.attack.algorithms.cgba import Cgba
from variegate.attack.algorithms.geoda import GeoDA
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.algorithms.rays import Rays
from variegate.attack.algorithms.smoothed import Smoothed
from variegate.attack.algorithms.surfree import SurFree
from variegate.attack.search import Attack
from variegate.keys.errors import MisuseError

ART, CORRECTED = "art-1.20", "corrected"

ATTACKS: Final[Mapping[str, type[Attack]]] = MappingProxyType(
    {
        "boundary": Boundary,
        "cgba": Cgba,
        "geoda": GeoDA,
        "hopskipjump": HopSkipJump,
        "rays": Rays,
        "smoothed": Smoothed,
        "surfree": SurFree,
    }
)
"""Classes by the name of their algorithm, with `corrected` defaults."""

DEFAULTS: Final[Mapping[tuple[str, str], Callable[[], Attack]]] = MappingProxyType(
    {
        ("boundary", ART): Boundary.art,
        ("boundary", CORRECTED): Boundary.corrected,
        ("cgba", CORRECTED): Cgba.corrected,
        ("geoda", ART): GeoDA.art,
        ("geoda", CORRECTED): GeoDA.corrected,
        ("hopskipjump", ART): HopSkipJump.art,
        ("hopskipjump", CORRECTED): HopSkipJump.corrected,
        ("rays", CORRECTED): Rays.corrected,
        ("smoothed", CORRECTED): Smoothed,
        ("surfree", CORRECTED): SurFree.corrected,
    }
)
"""Every attack as its profile has it, by name and profile."""


def from_config(kind: str, profile: str, parameters: Mapping[str, object], where: str = "") -> Attack:
    """The attack that a campaign's file describes.

    Args:
        kind: A key of `ATTACKS`.
        profile: `art-1.20` or `corrected`, as far as the attack has it.
        parameters: Fields that differ from the profile's.
        where: Path of the attack in the file, for messages; for instance `attacks[2]`.

    Raises:
        MisuseError: A name or a value is wrong; the message gives its path.
    """
    prefix = f"{where}." if where else ""
    if kind not in ATTACKS:
        raise MisuseError(f"{prefix}kind: there is no attack {kind!r}", hint=f"there are {', '.join(sorted(ATTACKS))}")
    if (kind, profile) not in DEFAULTS:
        known = ", ".join(sorted(p for k, p in DEFAULTS if k == kind))
        raise MisuseError(f"{prefix}profile: {kind} has no profile {profile!r}", hint=f"it has {known}")
    default: Any = DEFAULTS[kind, profile]()
    hints = get_type_hints(type(default))
    names = [field.name for field in fields(default)]
    for key, value in parameters.items():
        path = f"{prefix}parameters.{key}"
        if key not in names:
            raise MisuseError(f"{path}: {kind} has no such parameter", hint=f"it has {', '.join(names)}")
        if not _fits(value, hints[key]):
            raise MisuseError(f"{path}: {value!r} is not {_words(hints[key])}")
    try:
        attack: Attack = replace(default, **parameters)
    except MisuseError as error:
        # Checks of fields name the field first.
        raise MisuseError(f"{prefix}parameters.{error.message}", hint=error.hint) from error
    return attack


def to_config(attack: Attack) -> dict[str, Any]:
    """`kind`, `profile` and all `parameters`, which `from_config` turns into an equal attack.

    Raises:
        MisuseError: The attack is not in the table.
    """
    profile = getattr(attack, "profile", None)
    given: Any = attack
    make = DEFAULTS.get((attack.name, str(profile)))
    if make is None or type(make()) is not type(attack):
        raise MisuseError(f"{type(attack).__name__} is not in the table of attacks")
    return {
        "kind": attack.name,
        "profile": profile,
        "parameters": {field.name: getattr(attack, field.name) for field in fields(given)},
    }


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return {float: "a number", int: "a whole number", bool: "true or false"}.get(hint, f"a {hint.__name__}")
