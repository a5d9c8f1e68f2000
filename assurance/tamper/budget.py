"""Part of `assurance.tamper`: tries to get more labels than the budget by killing the device and restoring its disk."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.keys.errors import LimitError
from variegate.keys.manifest import Policy

_SPENT = b"spent"


def budgets(
    folder: Path, signer: MemorySigner, *, sizes: Sequence[int], kills: int, seed: int
) -> tuple[dict[str, float | int], object]:
    """A process that classifies is killed, its disk put back to an earlier state, over and over: labels seen.

    Args:
        folder: To work in; must not exist.
        signer: The seller.
        sizes: Query budget of each device.
        kills: Kills of each device.
        seed: Seed of the random numbers.

    Returns:
        Figures, and a row for each device.
    """
    chance = random.Random(seed)  # noqa: S311  to repeat
    folder.mkdir()
    multiprocessing.set_forkserver_preload([__name__])
    rows = []
    for budget in sizes:
        home = folder / str(budget)
        with Device.create(home, CLASS, signer.root) as device:
            flash(device, seal_for(device.identity, signer, policy=Policy(budget=budget)))
        answered = restored = spent = 0
        backups: list[Path] = []
        for number in range(kills):
            labels, end = _kill(home, chance.uniform(0, 0.15), early=chance.random() < 0.2)
            answered += labels
            spent += end
            if chance.random() < 0.3:
                backups.append(shutil.copytree(home / "disk", folder / f"backup-{budget}-{number}"))
            if backups and chance.random() < 0.5:
                shutil.rmtree(home / "disk")
                shutil.copytree(chance.choice(backups), home / "disk")
                restored += 1
        rows.append(
            {
                "budget": budget,
                "answered": answered,
                "kills": kills,
                "restored": restored,
                "rounds_that_found_it_spent": spent,
            }
        )
    return {
        "budget_rounds": sum(row["kills"] for row in rows),
        "budget_restores": sum(row["restored"] for row in rows),
        "budget_exceeded": sum(row["answered"] > row["budget"] for row in rows),
        "budget_used_up": sum(row["rounds_that_found_it_spent"] > 0 for row in rows),
    }, rows


def _kill(home: Path, seconds: float, *, early: bool) -> tuple[int, bool]:
    """Lets a process classify, then kills it.

    Args:
        home: The device.
        seconds: From its first answer on, or from its start on.
        early: From its start on.

    Returns:
        Labels that came out, and whether the process found the budget spent.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_classify, args=(home, theirs))
    child.start()
    theirs.close()
    labels, spent = 0, False
    until = time.monotonic() + seconds if early else None
    with ours, contextlib.suppress(EOFError):
        while until is None or time.monotonic() < until:
            if ours.poll(0.001):
                spent = ours.recv_bytes() == _SPENT
                labels += not spent
                until = until or time.monotonic() + seconds
        child.kill()
        while True:  # what is still in the pipe was answered before
            spent = ours.recv_bytes() == _SPENT
            labels += not spent
    child.join()
    if child.exitcode not in {0, -signal.SIGKILL} or (child.exitcode == 0 and not spent):
        raise RuntimeError("the process that classifies failed by itself")
    return labels, spent


def _classify(home: Path, out: Connection) -> None:
    image = frames(1)[0]
    with Device.open(home) as device:
        enclave = device.boot()
        try:
            while True:
                out.send_bytes(b"%d" % enclave.classify(image))
        except LimitError:
            out.send_bytes(_SPENT)
