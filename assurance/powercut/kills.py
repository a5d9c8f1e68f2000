"""Part of `assurance.powercut`: `variegate device flash` in a process of its own, killed at random moments."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from assurance.powercut.scenarios import Scenario, Score, scenarios
from variegate.device_sim.device import Device

_PADDING = 8 << 20
_POLL_S = 0.002
_EARLY = 0.1
"""Share of kills that come at any time since the process's start; the rest come since its first write."""


def kills(folder: Path, *, count: int, seed: int) -> tuple[Score, dict[str, int]]:
    """Updates a device by the command, kills it, and judges the device each time.

    Args:
        folder: To work in; must exist.
        count: Kills.
        seed: Seed of the random numbers.

    Returns:
        The score, and how many kills came after the flash had begun and before the image was confirmed.
    """
    chance = random.Random(seed)  # noqa: S311  to repeat
    scenario = next(s for s in scenarios(folder, padding=_PADDING) if s.name == "update")
    target = folder / "killed"
    begins, lasts = _timed(scenario, target)
    score, midway = Score(), 0
    while score.cuts < count:
        early = chance.random() < _EARLY
        if not _killed(scenario, target, chance.uniform(0, begins if early else lasts), early=early):
            lasts *= 0.9  # it was done before: the machine is faster now
            continue
        midway += _is_midway(scenario, target)
        score.cuts += 1
        score.judge(scenario, target)
    return score, {
        "kills": count,
        "after_the_flash_began_and_before_it_was_confirmed": midway,
        "bricks": score.bricks,
        "rollbacks_tried": score.rollbacks_tried,
        "rollbacks_accepted": score.rollbacks_accepted,
    }


def _start(scenario: Scenario, target: Path) -> subprocess.Popen[bytes]:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(scenario.start, target)
    command = [sys.executable, "-m", "variegate.cli.main", "device", "flash", str(target), str(scenario.artefact)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603  our own command


def _timed(scenario: Scenario, target: Path) -> tuple[float, float]:
    """Seconds from a process's start to the first write of its flash, and from there to its end."""
    started = time.monotonic()
    process = _start(scenario, target)
    _first_write(process, target)
    begins = time.monotonic() - started
    if process.wait() != 0:
        raise RuntimeError("the flash failed by itself")
    return begins, time.monotonic() - started - begins


def _first_write(process: subprocess.Popen[bytes], target: Path) -> None:
    """Waits for it, or for the process's end."""
    before = _written(target)
    while process.poll() is None and _written(target) == before:
        time.sleep(_POLL_S)


def _killed(scenario: Scenario, target: Path, delay: float, *, early: bool) -> bool:
    """Whether a process was killed so long after its start or its first write; it may be done before."""
    process = _start(scenario, target)
    if not early:
        _first_write(process, target)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait() < 0
    if process.returncode != 0:
        raise RuntimeError("the flash failed by itself")
    return False


def _is_midway(scenario: Scenario, target: Path) -> bool:
    with Device.open(scenario.start) as device:
        entries = device.logged
    with Device.open(target) as device:
        return device.logged > entries and device.counter("security") < scenario.new


def _written(target: Path) -> float:
    """When the log was written last: the first thing that a flash writes."""
    return max(path.stat().st_mtime for path in (target / "disk").glob("audit.*"))
