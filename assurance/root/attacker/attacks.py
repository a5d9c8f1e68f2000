"""Defines an attack, runs it in a process of its own with a time limit, and judges it by the data that it obtained."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from assurance.root.attacker.linux import name_of
from assurance.root.attacker.victim import Victim

_GRACE_S = 5.0
_MOST_DETAIL = 300

SUCCEEDED, FAILED, IMPOSSIBLE = "succeeded", "failed", "impossible"


class ImpossibleError(Exception):
    """This machine lacks the thing altogether."""


class _Late(BaseException):
    """The attack's time is over; its changes are undone on the way out."""


@dataclass(frozen=True)
class Outcome:
    """The data that an attack obtained.

    Attributes:
        succeeded: Whether the attack reached its goal.
        detail: In words.
        windows: Windows of secrets in it.
        found: For the runner to judge, in JSON's types.
    """

    succeeded: bool
    detail: str
    windows: int = 0
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: Stable.
        row: Its group: the reviewers' number, or a kind.
        run: Makes it.
        seconds: It gets no longer.
        everywhere: Whether it must succeed on any machine where root is not held down.
        machine: Whether it affects the whole machine, so that it runs only when asked for.
    """

    name: str
    row: str
    run: Callable[[Victim], Outcome]
    seconds: float = 15.0
    everywhere: bool = False
    machine: bool = False


@dataclass(frozen=True)
class Result:
    """The result of an attack."""

    name: str
    row: str
    result: str
    detail: str
    windows: int
    seconds: float
    found: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON's types."""
        return asdict(self)


def carried_out(attack: Attack, victim: Victim) -> Result:
    """Runs an attack in a forked process; one that hangs is ended."""
    started = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setpgid(0, 0)
        _child(attack, victim, write)
    os.close(write)
    said = _all_of(read, started + attack.seconds * victim.slow + _GRACE_S)
    os.close(read)
    # With what it started: a process that an attack leaves behind would be in the way of the next one.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seconds = round(time.monotonic() - started, 3)
    try:
        result, detail, windows, found = json.loads(said)
    except ValueError:
        result, detail, windows, found = FAILED, "ended without a message, or too late", 0, {}
    return Result(attack.name, attack.row, result, detail[:_MOST_DETAIL], windows, seconds, found)


def _child(attack: Attack, victim: Victim, write: int) -> None:
    """Ends the process."""
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, attack.seconds * victim.slow)
    try:
        try:
            out = attack.run(victim)
            said: list[Any] = [SUCCEEDED if out.succeeded else FAILED, out.detail, out.windows, out.found]
        except ImpossibleError as why:
            said = [IMPOSSIBLE, str(why), 0, {}]
        except _Late:
            said = [FAILED, f"not done in {attack.seconds * victim.slow:g} s", 0, {}]
        except OSError as error:
            said = [FAILED, f"{name_of(error)} {error.filename or ''}".strip(), 0, {}]
        except Exception as error:  # noqa: BLE001  no label, no enclave, a program that failed: all is told
            said = [FAILED, f"{type(error).__name__}: {error}", 0, {}]
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(write, json.dumps(said).encode())
    finally:
        os._exit(0)


def _late(*_: object) -> None:
    raise _Late


def _all_of(descriptor: int, until: float) -> bytes:
    out = b""
    while select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            break
        out += part
    return out
