"""Attacks by name, for campaigns' files and the command line: `kind`, `profile` and `parameters`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from variegate.attack.adaptive.cloning import Cloning
from variegate.attack.adaptive.collusion import Colluders
from variegate.attack.adaptive.partner import PartnerSearch
from variegate.attack.algorithms.table import CORRECTED, DEFAULTS
from variegate.attack.search import Attack
from variegate.attack.strategy import Strategy
from variegate.keys.errors import MisuseError

KINDS: Final[Mapping[tuple[str, str], Callable[[], Attack | Strategy]]] = MappingProxyType(
    {
        **DEFAULTS,
        ("clone", CORRECTED): Cloning,
        ("colluders", CORRECTED): Colluders,
        ("partner", CORRECTED): PartnerSearch,
    }
)
"""Every search and every strategy as its profile has it, by name and profile."""
NAMES: Final = tuple(sorted({kind for kind, _ in KINDS}))


def from_config(kind: str, profile: str, parameters: Mapping[str, object], where: str = "") -> Attack | Strategy:
    """The attack that a campaign's file describes.

    Args:
        kind: One of `NAMES`.
        profile: `art-1.20` or `corrected`, as far as the attack has it.
        parameters: Fields that differ from the profile's.
        where: Path of the attack in the file, for messages; for instance `attacks[2]`.

    Raises:
        MisuseError: A name or a value is wrong; the message gives its path.
    """
    prefix = f"{where}." if where else ""
    if kind not in NAMES:
        raise MisuseError(f"{prefix}kind: there is no attack {kind!r}", hint=f"there are {', '.join(NAMES)}")
    if (kind, profile) not in KINDS:
        known = ", ".join(sorted(p for k, p in KINDS if k == kind))
        raise MisuseError(f"{prefix}profile: {kind} has no profile {profile!r}", hint=f"it has {known}")
    default: Any = KINDS[kind, profile]()
    hints = get_type_hints(type(default))
    names = [field.name for field in fields(default)]
    for key, value in parameters.items():
        path = f"{prefix}parameters.{key}"
        if key not in names:
            raise MisuseError(f"{path}: {kind} has no such parameter", hint=f"it has {', '.join(names)}")
        if not _fits(value, hints[key]):
            raise MisuseError(f"{path}: {value!r} is not {_words(hints[key])}")
    try:
        attack: Attack | Strategy = replace(default, **parameters)
    except MisuseError as error:
        # Checks of fields name the field first.
        raise MisuseError(f"{prefix}parameters.{error.message}", hint=error.hint) from error
    return attack


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
