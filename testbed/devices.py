"""Real devices in throw-away folders."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from variegate.device_sim.device import Device
from variegate.device_sim.storage import Fault


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory where the machine has one: a sweep syncs thousands of times.

    `Storage` decides the effect of a power cut, not the disk below it.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="variegate-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def twin(device: Path, folder: Path, fault: Fault | None = None) -> Device:
    """Opens a copy of a device that is off, chip and all; a copy already there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(device, folder)
    return Device.open(folder, fault=fault)
