"""The definitions of a target of the fuzzer and of a finding.

A target takes bytes and returns the verdict of the code under test: "accepted", or the class of refusal. A finding is
an exception that is not ours, an answer that contradicts the target's own check (`Broken`), more than a second of
processor time, or more than 256 MiB of memory.
"""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random

from variegate.keys.errors import RefusedError, VariegateError

MAX_CPU_S = 1.0
MAX_GROWTH_KIB = 256 * 1024
MAX_WALL_S = 10.0
"""For targets that talk to other threads or processes."""
ACCEPTED = "accepted"
_MAX_MESSAGE = 2000
_ROOT = Path(__file__).resolve().parents[2]

Run = Callable[[bytes], str]
"""Shows bytes to the code under test: the verdict."""
Plain = Callable[[bytes, int], bytes]
"""libFuzzer's own mutation: bytes, and the most bytes to make of them."""
Mutate = Callable[[bytes, int, Random, Plain], bytes]
"""A mutation that knows the format."""


class Broken(Exception):  # noqa: N818  the event, not a mistake of ours
    """Accepted data is wrong, or a process or server is not as before."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing to fuzz.

    Attributes:
        name: Of it, and of the folder of its vectors.
        opened: Prepares it in an empty folder.
        seeds: Inputs to start from, small and the same in every run.
        mutate: Knows the format, or None for libFuzzer's own mutations.
        words: Useful bytes to write into an input.
        cap: Most bytes of an input.
        live: Whether other threads or processes take part: wall time counts then.
    """

    name: str
    opened: Callable[[Path], AbstractContextManager[Run]]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate | None = None
    words: tuple[bytes, ...] = ()
    cap: int = 4096
    live: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that should not happen.

    Attributes:
        kind: The exception's type, or "slow", "memory", "hang", "crash".
        where: The innermost line of ours, or nothing.
        text: The message.
    """

    kind: str
    where: str
    text: str

    @property
    def key(self) -> str:
        """The same for findings that are likely the same."""
        return f"{self.kind} {self.where}".strip()


def verdict(call: Callable[[], object]) -> str:
    """Calls, and returns "accepted" or the class of the refusal. Other errors pass through.

    Raises:
        Broken: The error's message is not one that can be printed.
    """
    try:
        call()
    except VariegateError as error:
        if not error.message.isprintable() or len(error.message) > _MAX_MESSAGE:
            raise Broken("an error's message is long or not printable") from error
        return str(error.refusal) if isinstance(error, RefusedError) else type(error).__name__
    return ACCEPTED


def pure(run: Run) -> Callable[[Path], AbstractContextManager[Run]]:
    """`Target.opened` of what needs no preparation."""
    return lambda _: nullcontext(run)


def need(good: bool, text: str) -> None:
    """An oracle.

    Raises:
        Broken: It is not so.
    """
    if not good:
        raise Broken(text)


def judged(target: Target, run: Run, data: bytes) -> str | Finding:
    """Runs one input: its verdict, or the fault."""
    clock = time.monotonic if target.live else time.thread_time
    most = MAX_WALL_S if target.live else MAX_CPU_S
    before, began = _peak_kib(), clock()
    try:
        said = run(data)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Finding(type(error).__name__, _place(error), str(error)[:300])
    if (took := clock() - began) > most:
        return Finding("slow", "", f"{took:.1f} s")
    if (grown := _peak_kib() - before) > MAX_GROWTH_KIB:
        return Finding("memory", "", f"{grown // 1024} MiB")
    return said


def _peak_kib() -> int:
    """The most memory that this process ever had. `getrusage` would begin with its parent's."""
    return int(os.pread(_status(), 4096, 0).partition(b"VmHWM:")[2].split(maxsplit=1)[0])


@functools.cache
def _status() -> int:
    """Opened once: it is read twice for every input."""
    return os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)


def _place(error: BaseException) -> str:
    """File and function: line numbers change too easily."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT) and "fuzzing" not in path.parts and ".venv" not in path.parts:
            return f"{path.relative_to(_ROOT)} {frame.name}"
    return ""
