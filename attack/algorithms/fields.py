"""Checks of an attack's fields, for its `__post_init__`."""

from __future__ import annotations

import math
from typing import get_args

from variegate.attack.search import Norm
from variegate.keys.errors import MisuseError


def at_least(name: str, value: float, low: float) -> None:
    """Holds a number to `low` or more.

    Raises:
        MisuseError: It is less, or not finite.
    """
    if not (math.isfinite(value) and value >= low):
        raise MisuseError(f"{name} must be at least {low:g}, not {value:g}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Holds a number to `low` or more and `high` or less.

    Raises:
        MisuseError: It is not.
    """
    if not low <= value <= high:
        raise MisuseError(f"{name} must be from {low:g} to {high:g}, not {value:g}")


def above(name: str, value: float, low: float) -> None:
    """Holds a number to more than `low`.

    Raises:
        MisuseError: It is not, or not finite.
    """
    if not (math.isfinite(value) and value > low):
        raise MisuseError(f"{name} must be above {low:g}, not {value:g}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Holds a number strictly between two others.

    Raises:
        MisuseError: It is not.
    """
    if not low < value < high:
        raise MisuseError(f"{name} must lie between {low:g} and {high:g}, not {value:g}")


def known_norm(value: str) -> None:
    """Holds a norm to those that distances are measured in.

    Raises:
        MisuseError: It is another.
    """
    if value not in get_args(Norm):
        raise MisuseError(f"norm must be l2 or linf, not {value!r}")
