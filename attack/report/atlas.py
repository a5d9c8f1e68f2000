"""MITRE ATLAS techniques that a campaign exercised.

Identifiers and names as in ATLAS's own data since April 2025 (github.com/mitre-atlas/atlas-data, data/techniques.yaml),
when "ML" in names became "AI".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Technique:
    """One technique.

    Attributes:
        id: Of ATLAS.
        name: Of ATLAS.
        why: How the campaign exercised it.
    """

    id: str
    name: str
    why: str


ACCESS = Technique("AML.T0040", "AI Model Inference API Access", "every attack asks a device for labels")
CRAFT = Technique("AML.T0043", "Craft Adversarial Data", "every attack looks for adversarial samples")
BLACK_BOX = Technique("AML.T0043.001", "Black-Box Optimization", "samples are optimised by hard labels alone")
VERIFY = Technique("AML.T0042", "Verify Attack", "each sample is asked again by itself on the attacker's own copy")
EVADE = Technique("AML.T0015", "Evade AI Model", "samples are shown to other copies, which shall misread them")
PHYSICAL = Technique("AML.T0041", "Physical Environment Access", "frames went through the vehicle's camera")
CLONE = Technique("AML.T0024.002", "Extract AI Model", "a device was cloned by its labels")
TRANSFER = Technique("AML.T0043.002", "Black-Box Transfer", "samples were made on the clone and shown to the fleet")


OF_KIND = {"clone": (CLONE, TRANSFER)}
"""Kind of an attack -> what it exercises beyond the others."""


def techniques(kinds: Iterable[str], devices: Iterable[str], *, replayed: bool) -> list[Technique]:
    """What was exercised.

    Args:
        kinds: Of the attacks.
        devices: URIs of devices attacked.
        replayed: Whether samples were shown to other copies.
    """
    out = [ACCESS, CRAFT, BLACK_BOX, VERIFY]
    if replayed:
        out.append(EVADE)
    if any(uri.startswith("vehicle") for uri in devices):
        out.append(PHYSICAL)
    out += [technique for kind in sorted(set(kinds)) for technique in OF_KIND.get(kind, ())]
    return sorted(out, key=lambda technique: technique.id)
