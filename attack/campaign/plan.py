"""What a campaign will cost, before anything runs: labels, core-hours, hours beside a device, disk."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from variegate.attack.campaign.copies import Copies, FleetCopies, Opener, open_device_oracle
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.units import Unit, owned, units, victims
from variegate.attack.oracle import to_frames, to_points
from variegate.keys.errors import MisuseError

MEASURE_S = 1.0
_BATCH = 32
"""Frames of a call while measuring: about what searches fill."""
_COMPRESSED = 0.9
_REPLAY_ROW, _SAMPLE_ROW, _SHARDS = 12, 500, 10_000
"""Bytes on disk of a row beside its frames, and of a unit's two shards beside their rows; measured, and rounded up."""


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """What one fleet will be asked.

    Attributes:
        fleet: Its name.
        copies: How many.
        units: Units of work.
        queries: Labels for attacks, at most.
        clean_queries: Labels of clean images.
        replay_queries: Labels of replayed samples, at most.
        choosing_queries: Labels to choose the images, at most: far fewer where the copies read most images rightly.
        labels_per_s: Measured on one core; of one device, its stated frame rate; None where nobody knows.
        core_hours: All labels but those to choose images, at that rate, of one core or one device; attacks' own work
            comes on top. None without a rate.
        device_hours: The attacks' labels at the stated frame rate, of the device that is asked most; None without.
        bytes: Of shards, at most.
    """

    fleet: str
    copies: int
    units: int
    queries: int
    clean_queries: int
    replay_queries: int
    choosing_queries: int
    labels_per_s: float | None
    core_hours: float | None
    device_hours: float | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a campaign will cost.

    Attributes:
        name: Of the campaign.
        images: That are attacked.
        choose: How they are chosen: with "right-by-all" there may be fewer, and the campaign is refused.
        fleets: By fleet.
        workers: That share the core-hours.
    """

    name: str
    images: int
    choose: str
    fleets: tuple[FleetPlan, ...]
    workers: int

    @property
    def hours(self) -> float | None:
        """With so many workers, each on a core or a device of its own; None where a rate is not known."""
        each = [fleet.core_hours for fleet in self.fleets if fleet.core_hours is not None]
        return sum(each) / max(1, self.workers) if len(each) == len(self.fleets) else None


def plan(prepared: Prepared, *, measure_s: float = MEASURE_S, opened: Opener = open_device_oracle) -> Plan:
    """Plans a campaign.

    Args:
        prepared: The campaign.
        measure_s: Seconds to measure each fleet of local copies for; devices, whose budgets count, are never asked.
        opened: Opens devices.

    Raises:
        MisuseError: `measure_s` is not above 0.
        RefusedError, DeviceError: A copy does not load or run.
    """
    if not 0 < measure_s < math.inf:
        raise MisuseError("the time to measure for must be above 0")
    campaign = prepared.campaign
    copies = Copies(prepared.fleets, opened=opened)
    try:
        rates = {
            fleet.name: campaign.fleet(fleet.name).frame_rate
            if fleet.devices
            else _rate(prepared, copies, fleet.name, measure_s)
            for fleet in prepared.fleets
        }
    finally:
        copies.close()
    every = units(campaign)
    return Plan(
        name=campaign.name,
        images=campaign.data.count,
        choose=campaign.data.choose,
        fleets=tuple(
            _fleet(prepared, fleet, [unit for unit in every if unit.fleet == fleet.name], rates[fleet.name])
            for fleet in prepared.fleets
        ),
        workers=campaign.run.workers,
    )


def _fleet(prepared: Prepared, copies: FleetCopies, own: list[Unit], rate: float | None) -> FleetPlan:
    campaign, frame = prepared.campaign, int(np.prod(copies.shape)) * (4 if copies.dtype == "float32" else 1)
    fleet, overshoots = campaign.fleet(copies.name), len(campaign.replay.overshoots)
    queries = clean = replays = size = 0
    by_device = dict.fromkeys(range(fleet.copies), 0)
    for unit in own:
        attack, count = campaign.attack(unit.attack), len(unit.images)
        stops, shown_to = 1 + len(attack.budgets), len(victims(campaign, unit))
        for device in owned(campaign, unit):
            by_device[device] += count * attack.queries
            queries += count * attack.queries
        clean += count * (1 + shown_to)
        rows = count * stops * overshoots * shown_to
        replays += rows
        size += _SHARDS + rows * _REPLAY_ROW + count * (_SAMPLE_ROW + int(stops * frame * _COMPRESSED))
    labels = queries + clean + replays
    return FleetPlan(
        fleet=copies.name,
        copies=fleet.copies,
        units=len(own),
        queries=queries,
        clean_queries=clean,
        replay_queries=replays,
        choosing_queries=fleet.copies * prepared.most_to_choose,
        labels_per_s=rate,
        core_hours=labels / rate / 3600 if rate else None,
        device_hours=max(by_device.values()) / fleet.frame_rate / 3600 if fleet.frame_rate else None,
        bytes=size,
    )


def _rate(prepared: Prepared, copies: Copies, fleet: str, seconds: float) -> float:
    """Labels a second of one copy on one core."""
    oracle = copies.oracle(fleet, 0)
    frames = to_frames(to_points(np.resize(prepared.images.x, (_BATCH, *oracle.shape))), oracle.dtype)
    oracle.labels(frames)  # the first call sets up
    start, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not done:
        oracle.labels(frames)
        done += len(frames)
    return done / passed if passed else 0.0
