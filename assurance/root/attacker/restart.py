"""A restarted enclave: reads its descriptors before it locks itself down."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from assurance.root.attacker.attacks import Attack, Outcome
from assurance.root.attacker.linux import name_of
from assurance.root.attacker.reads import judged
from assurance.root.attacker.victim import Victim

_STEPS_S = (0.0005, 0.002, 0.01)
"""In turn: short ones alone would hold the start up until the attack's time is over."""
_MOST_FILE = 64 << 20


def reopen_at_start(victim: Victim) -> Outcome:
    """Kills the enclave, and stops the next one again and again to open its memory files by `/proc/PID/fd`."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    old = victim.enclave()
    os.kill(old, signal.SIGKILL)
    pid = victim.enclave(other_than=old)
    read: dict[str, bytes] = {}
    refused: set[str] = set()
    with contextlib.suppress(ProcessLookupError):
        for entry in _stepped(pid, victim.until(8), refused):
            with contextlib.suppress(OSError):
                name = str(entry.readlink())
                if name.startswith("/memfd:") and "runtime" not in name and name not in read:
                    with entry.open("rb", buffering=0) as file:
                        read[name] = file.read(_MOST_FILE)
    out = judged(victim, read.values(), "memory files at its start")
    detail = (
        f"{out.detail}; opened: {', '.join(sorted(read)) or 'none'}; refused: {', '.join(sorted(refused)) or 'nothing'}"
    )
    return Outcome(bool(read), detail, out.windows)


def _stepped(pid: int, until: float, refused: set[str]) -> Iterator[Path]:
    """Entries of its folder of descriptors, while it stands still; it ends when they are closed to us."""
    for step in itertools.cycle(_STEPS_S):
        if time.monotonic() > until:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            yield from sorted(Path(f"/proc/{pid}/fd").iterdir())
        except OSError as error:
            refused.add(name_of(error))
            return
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(step)


ATTACKS = (Attack("reopen_at_start", "start", reopen_at_start, seconds=30),)
