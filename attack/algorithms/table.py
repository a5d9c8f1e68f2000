"""The searches by name and profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from variegate.attack.algorithms.boundary import Boundary
from variegate.attack.algorithms.cgba import Cgba
from variegate.attack.algorithms.geoda import GeoDA
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.algorithms.rays import Rays
from variegate.attack.algorithms.smoothed import Smoothed
from variegate.attack.algorithms.surfree import SurFree
from variegate.attack.search import Attack

ART, CORRECTED = "art-1.20", "corrected"
SearchKind = Literal["boundary", "cgba", "geoda", "hopskipjump", "rays", "smoothed", "surfree"]

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
