"""Part of `benchmarks.tamper`: flashes whose power is cut."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.artefacts import CLASS, MemorySigner, frames, seal_for
from tests.support.devices import twin
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.slots import TRIES
from variegate.device_sim.storage import Fault, PowerCut
from variegate.keys.artefact import Artefact


def power_cuts(
    folder: Path, signer: MemorySigner, *, seeds: int, double: int, seed: int
) -> tuple[dict[str, float | int], object]:
    """A flash cut at every storage operation; then flashes cut once and cut again while they recover.

    Args:
        folder: To work in; must not exist.
        signer: The seller.
        seeds: Cuts at each operation, each letting other sectors land.
        double: Flashes cut twice.
        seed: Of what is random.

    Returns:
        Figures, and the storage operations of an uncut flash.
    """
    chance = random.Random(seed)  # noqa: S311  to repeat
    folder.mkdir()
    empty, running, target = (folder / name for name in ("empty", "running", "target"))
    with Device.create(empty, CLASS, signer.root) as device:
        old = seal_for(device.identity, signer, security_counter=1)
        new = seal_for(device.identity, signer, sequence=2, security_counter=2)
    with twin(empty, running) as device:
        flash(device, old)
    counts, bricks, tried = {}, 0, 0
    for start in (empty, running):
        with twin(start, target) as device:
            flash(device, new)
            total = counts[start.name] = device.slots.storage.operations
        for operation in range(1, total + 1):
            for landing in range(seeds):
                _cut(start, target, new, Fault(operation, landing))
                bricks += _bricked(target, new, first=start is empty)
                tried += 1
    for _ in range(double):
        _cut(running, target, new, Fault(chance.randint(1, counts["running"]), chance.randrange(1 << 30)))
        with Device.open(target, fault=Fault(chance.randint(1, 14), chance.randrange(1 << 30))) as device:
            try:
                if chance.random() < 0.5:
                    device.boot()
                flash(device, new)
            except PowerCut:
                tried += 1
        bricks += _bricked(target, new, first=False)
    return {"power_cuts_tried": tried, "bricks": bricks}, {"storage_operations": counts}


def _cut(start: Path, target: Path, new: Artefact, fault: Fault) -> None:
    with twin(start, target, fault) as device:
        try:
            flash(device, new)
        except PowerCut:
            return
    raise RuntimeError("the flash was over before the power cut")


def _bricked(target: Path, new: Artefact, *, first: bool) -> bool:
    """Whether the device fails to boot the old or the new image for good, or to take the new one afterwards."""
    try:
        with Device.open(target) as device:
            record = device.slots.record()
            if not first or record.confirmed is not None or record.passed:
                for _ in range(TRIES + 1):
                    device.boot().classify_batch(frames(1))
            flash(device, new)
            return device.boot().manifest.sequence != 2
    except Exception:  # noqa: BLE001  whatever it is, the device is of no use
        return True
