"""Tracing first (F5): another process attaches to the enclave before its supervisor can."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

from assurance.root.attacker.attacks import Attack, Outcome
from assurance.root.attacker.linux import (
    PTRACE_CONT,
    PTRACE_LISTEN,
    PTRACE_SEIZE,
    TRACE_FORKS,
    WAIT_ALL,
    name_of,
    ptrace,
)
from assurance.root.attacker.victim import Refused, Victim, parent_of

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
_EVENT_STOP = 128
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_TRIES, _RACE_S, _SERVE_S = 3, 8.0, 10.0


def tracer_of(pid: int) -> int:
    """Who traces a process; 0 for nobody, or when that is not said."""
    with contextlib.suppress(OSError):
        found = re.search(r"^TracerPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def let_go_on(block: bool = False) -> None:
    """Lets every stopped process that this thread traces continue as if it were not traced."""
    while True:
        try:
            pid, raw = os.waitpid(-1, WAIT_ALL | (0 if block else os.WNOHANG))
        except ChildProcessError:
            return
        if not pid:
            return
        if not os.WIFSTOPPED(raw):
            continue
        number, event = os.WSTOPSIG(raw), raw >> 16
        with contextlib.suppress(OSError):
            if event == _EVENT_STOP and number in _STOPPING:
                ptrace(PTRACE_LISTEN, pid)
            else:
                ptrace(PTRACE_CONT, pid, 0, 0 if event else number)


def _served_while_held(victim: Victim, pid: int) -> bool:
    """Whether a label comes from an enclave that this process traces."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Refused):
            victim.patiently(victim.known, seconds=_SERVE_S)
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    while thread.is_alive():
        let_go_on()
        time.sleep(0.001)
    return answered.is_set() and tracer_of(pid) == os.getpid()


def seize_first(victim: Victim) -> Outcome:
    """Kills the enclave and seizes the next one as soon as its number is given out, before the supervisor does."""
    how = "the next enclave came too late"
    for _ in range(_TRIES):
        old = victim.enclave()
        os.kill(old, signal.SIGKILL)
        try:
            pid = _raced(victim, old)
        except OSError as error:
            how = f"seizing: {name_of(error)}"
            victim.patiently(victim.known)
            continue
        if pid:
            try:
                if _served_while_held(victim, pid):
                    return Outcome(True, "a label was served under a foreign tracer")
                how = "seized first, but no label was served"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                let_go_on(block=True)
        victim.patiently(victim.known)
    return Outcome(False, how)


def _raced(victim: Victim, old: int) -> int:
    """Seizes the supervisor's next child; 0 when none came."""
    last = os.open(_LAST_PID, os.O_RDONLY) if _LAST_PID.exists() else -1
    until = victim.until(_RACE_S)
    try:
        while time.monotonic() < until:
            if last >= 0:
                newest = int(os.pread(last, 16, 0))
                candidates = [newest - 1, newest, newest + 1]
            else:
                candidates = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()][-3:]  # noqa: PTH208
            for pid in candidates:
                if pid > old and parent_of(pid) == victim.supervisor:
                    ptrace(PTRACE_SEIZE, pid)
                    return pid
    finally:
        if last >= 0:
            os.close(last)
    return 0


def seize_by_fork(victim: Victim) -> Outcome:
    """Traces the supervisor, so that the kernel makes this process the tracer of its children, too."""
    old = victim.enclave()
    for task in Path(f"/proc/{victim.supervisor}/task").iterdir():
        ptrace(PTRACE_SEIZE, int(task.name), 0, TRACE_FORKS)
    os.kill(old, signal.SIGKILL)
    until, pid = victim.until(_RACE_S), 0
    while time.monotonic() < until and not pid:
        let_go_on()
        with contextlib.suppress(OSError):
            children = "".join(p.read_text() for p in Path(f"/proc/{victim.supervisor}/task").glob("*/children"))
            pid = next((int(p) for p in children.split() if int(p) != old and tracer_of(int(p)) == os.getpid()), 0)
        time.sleep(0.0005)
    if not pid:
        return Outcome(False, "the supervisor started nothing while traced")
    try:
        held = _served_while_held(victim, pid)
        return Outcome(held, "a label was served under a foreign tracer" if held else "no label while held")
    finally:
        # This process's end lets go of the supervisor; the next enclave is its own again.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        let_go_on()


ATTACKS = (
    Attack("seize_first", "F5", seize_first, seconds=40),
    Attack("seize_by_fork", "F5", seize_by_fork, seconds=30),
)
