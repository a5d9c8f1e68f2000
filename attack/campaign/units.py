"""Units of work: a fleet's attacker, an attack, and a few images. They follow from the campaign alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from variegate.attack.campaign.config import AttackRun, Campaign


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit.

    Attributes:
        name: Of its shards, without a suffix.
        fleet: Name.
        attack: Name.
        attacker: Number of the copy that is attacked.
        images: Places in the campaign's images.
    """

    name: str
    fleet: str
    attack: str
    attacker: int
    images: tuple[int, ...]


def units(campaign: Campaign) -> list[Unit]:
    """All units, in the order in which they are started."""
    return [unit for attack in campaign.attacks for fleet in attack.fleets for unit in _units(campaign, attack, fleet)]


def _units(campaign: Campaign, attack: AttackRun, fleet: str) -> Iterator[Unit]:
    copies, count, size = campaign.fleet(fleet).copies, campaign.data.count, campaign.run.unit
    attackers = min(copies, attack.attackers or copies)
    for attacker in range(attackers):
        own = range(attacker, count, attackers) if attack.images == "split" else range(count)
        for number, start in enumerate(range(0, len(own), size)):
            yield Unit(
                name=f"{fleet}.{attack.name}.{attacker:04d}.{number:05d}",
                fleet=fleet,
                attack=attack.name,
                attacker=attacker,
                images=tuple(own[start : start + size]),
            )


def owned(campaign: Campaign, unit: Unit) -> list[int]:
    """Copies that a unit's attacker owns, the one that is attacked first."""
    copies = campaign.fleet(unit.fleet).copies
    return [(unit.attacker + i) % copies for i in range(campaign.attack(unit.attack).devices)]


def victims(campaign: Campaign, unit: Unit) -> list[int]:
    """Copies that a unit's samples are shown to, ascending: the one attacked, and copies of others."""
    copies, wanted = campaign.fleet(unit.fleet).copies, campaign.replay.victims
    first = campaign.attack(unit.attack).devices
    others = range(first, copies if wanted == "all" else min(first + wanted, copies))
    return sorted([unit.attacker, *((unit.attacker + i) % copies for i in others)])
