"""Reading: every interface of Linux to memory, descriptors and the kernel's own view of memory.

A read succeeds if it gets the last frame shown, or a window of a secret. Secret pages keep secrets from all of these
reads on any machine; a frame that was read shows that the rest of the memory is open.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from assurance.root.attacker.attacks import Attack, ImpossibleError, Outcome
from assurance.root.attacker.linux import (
    PTRACE_DETACH,
    PTRACE_INTERRUPT,
    PTRACE_PEEK,
    PTRACE_SEIZE,
    SYS_PIDFD_GETFD,
    WAIT_ALL,
    Memory,
    ProcMem,
    VmCalls,
    everything,
    mappings,
    name_of,
    ptrace,
    syscall,
)
from assurance.root.attacker.victim import FRAMES, Victim

_DESCRIPTORS = 64
_PRESENT, _FRAME_NUMBER = 1 << 63, (1 << 55) - 1
"""Bits of an entry of `/proc/PID/pagemap`."""
_MOST_FILE = 64 << 20


def judged(victim: Victim, parts: Iterable[bytes], what: str, enough: int = 0) -> Outcome:
    """Compares data that was read with the secrets.

    Args:
        victim: The device.
        parts: The data that was read.
        what: Its name in words.
        enough: Windows of the known frame after which nothing more is read; 0 for all.
    """
    needles, size = victim.haystack(), 0
    found: set[int] = set()
    for data in parts:
        size += len(data)
        found |= needles.found(data)
        if enough and len(found) >= enough:
            break
    windows = sum(1 for number in found if number < len(victim.secrets))
    shown = len(found) - windows
    detail = f"{what}: {size} bytes, {windows} windows of secrets, {'the' if shown else 'no'} frame just shown"
    return Outcome(bool(found), detail, windows)


def memory_of(memory: Memory, pid: int) -> Iterator[bytes]:
    """All that can be read of a process."""
    areas = [area for area in mappings(pid) if area.readable]
    return (data for _, data in everything(memory, areas))


def read_mem(victim: Victim) -> Outcome:
    """`/proc/PID/mem` of the enclave."""
    victim.show_known()
    pid = victim.enclave()
    return judged(victim, memory_of(ProcMem(pid), pid), "enclave")


def read_supervisor(victim: Victim) -> Outcome:
    """`/proc/PID/mem` of the supervisor."""
    victim.show_known()
    return judged(victim, memory_of(ProcMem(victim.supervisor), victim.supervisor), "supervisor")


def read_vm(victim: Victim) -> Outcome:
    """`process_vm_readv` of the enclave."""
    victim.show_known()
    pid = victim.enclave()
    return judged(victim, memory_of(VmCalls(pid), pid), "enclave")


def read_ptrace(victim: Victim) -> Outcome:
    """Seizes enclave and supervisor, and peeks into the frames of whichever lets itself be held."""
    victim.show_known()
    refused = []
    for pid in (victim.enclave(), victim.supervisor):
        try:
            ptrace(PTRACE_SEIZE, pid)
        except OSError as error:
            refused.append(name_of(error))
            continue
        ptrace(PTRACE_INTERRUPT, pid)
        os.waitpid(pid, WAIT_ALL)
        try:
            start = victim.area(pid, FRAMES).start
            words = (ptrace(PTRACE_PEEK, pid, at) for at in range(start, start + victim.pixels // 8 * 8, 8))
            whole = b"".join(struct.pack("<q", word) for word in words)
            return judged(victim, [whole], "enclave" if pid != victim.supervisor else "supervisor")
        finally:
            ptrace(PTRACE_DETACH, pid)
    return Outcome(False, f"seizing enclave and supervisor: {', '.join(refused)}")


def read_map_files(victim: Victim) -> Outcome:
    """`/proc/PID/map_files` of enclave and supervisor: files in memory that they have mapped."""
    victim.show_known()
    return _of_files(victim, "map_files")


def read_fd(victim: Victim) -> Outcome:
    """`/proc/PID/fd` of enclave and supervisor: frames, component."""
    victim.show_known()
    return _of_files(victim, "fd")


def _of_files(victim: Victim, folder: str) -> Outcome:
    refused: list[OSError] = []

    def contents() -> Iterator[bytes]:
        for pid in (victim.enclave(), victim.supervisor):
            try:
                entries = sorted(Path(f"/proc/{pid}/{folder}").iterdir())
            except OSError as error:
                refused.append(error)
                continue
            for entry in entries:
                try:
                    if "memfd:" in str(entry.readlink()) or "secretmem" in str(entry.readlink()):
                        with entry.open("rb", buffering=0) as file:
                            yield file.read(_MOST_FILE)
                except OSError as error:
                    refused.append(error)

    out = judged(victim, contents(), folder)
    names = {name_of(error) for error in refused}
    return Outcome(out.succeeded, f"{out.detail}; refused: {', '.join(sorted(names)) or 'nothing'}", out.windows)


def read_pidfd(victim: Victim) -> Outcome:
    """`pidfd_getfd`: the descriptors of enclave and supervisor, the socket between them among these."""
    victim.show_known()
    refused: set[str] = set()
    sockets = 0

    def contents() -> Iterator[bytes]:
        nonlocal sockets
        for pid in (victim.enclave(), victim.supervisor):
            handle = os.pidfd_open(pid)
            for number in range(_DESCRIPTORS):
                try:
                    taken = syscall(SYS_PIDFD_GETFD, handle, number, 0)
                except OSError as error:
                    if error.errno != errno.EBADF:
                        refused.add(name_of(error))
                    continue
                kind = str(Path(f"/proc/self/fd/{taken}").readlink())
                sockets += kind.startswith("socket:")
                if kind.startswith(("/memfd:", "/secretmem")):
                    yield os.pread(taken, min(os.fstat(taken).st_size, _MOST_FILE), 0)
                os.close(taken)

    out = judged(victim, contents(), "descriptors")
    detail = f"{out.detail}; {sockets} sockets; refused: {', '.join(sorted(refused)) or 'nothing'}"
    return Outcome(out.succeeded or sockets > 0, detail, out.windows)


def read_kcore(victim: Victim) -> Outcome:
    """`/proc/kcore`: the kernel's map of all memory, at the pages of the enclave's secrets and frames."""
    path = Path("/proc/kcore")
    if not path.exists():
        raise ImpossibleError("this kernel has no /proc/kcore")
    victim.show_known()
    with path.open("rb", buffering=0) as file:
        head = file.read(64)
        if len(head) < 64:
            return Outcome(False, "reads as empty")
        (table,), (count,) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<H", head, 56)
        rows = [struct.unpack("<IIQQQQQQ", os.pread(file.fileno(), 56, table + 56 * i)) for i in range(count)]
        # Where a physical address is given, it is memory: first address, bytes, where these lie in the file.
        spans = [(row[4], row[5], row[2]) for row in rows if row[0] == 1 and row[4] not in (0, 2**64 - 1)]
        return _physical(victim, file.fileno(), spans, "kcore")


def read_devmem(victim: Victim) -> Outcome:
    """`/dev/mem`, or `/dev/kmem`: the same pages by their physical addresses."""
    paths = [path for path in (Path("/dev/mem"), Path("/dev/kmem")) if path.exists()]
    if not paths:
        raise ImpossibleError("this kernel has neither /dev/mem nor /dev/kmem")
    victim.show_known()
    with paths[0].open("rb", buffering=0) as file:
        return _physical(victim, file.fileno(), [(0, 2**52, 0)], paths[0].name)


def _physical(victim: Victim, file: int, spans: list[tuple[int, int, int]], what: str) -> Outcome:
    """Reads the enclave's secret pages and frames by their physical addresses.

    Only these: elsewhere in memory lie the windows that this process itself was given to look for.
    """
    refused: set[str] = set()

    def pages(names: tuple[str, ...]) -> Iterator[bytes]:
        for address in _addresses(victim.enclave(), names):
            for first, size, place in spans:
                if first <= address < first + size:
                    try:
                        yield os.pread(file, mmap.PAGESIZE, place + address - first)
                    except OSError as error:
                        refused.add(name_of(error))

    secret = judged(victim, pages(("/secretmem", "/dev/zero")), "secret pages")
    frames = judged(victim, pages((FRAMES,)), "frames", enough=1)
    detail = f"{what}: {secret.detail}; {frames.detail}; refused: {', '.join(sorted(refused)) or 'nothing'}"
    return Outcome(secret.succeeded or frames.succeeded, detail, secret.windows)


def _addresses(pid: int, names: tuple[str, ...]) -> Iterator[int]:
    """Physical addresses of an enclave's pages in mappings of these names.

    Raises:
        PermissionError: The kernel does not tell.
    """
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as file:
        for area in mappings(pid):
            if not area.path.startswith(names):
                continue
            count = min(_MOST_FILE, area.end - area.start) // mmap.PAGESIZE
            told = os.pread(file.fileno(), 8 * count, area.start // mmap.PAGESIZE * 8)
            entries = [entry for (entry,) in struct.iter_unpack("<Q", told) if entry & _PRESENT]
            if entries and not any(entry & _FRAME_NUMBER for entry in entries):
                raise PermissionError(errno.EPERM, "page frame numbers are hidden")
            yield from ((entry & _FRAME_NUMBER) * mmap.PAGESIZE for entry in entries)


def read_port(victim: Victim) -> Outcome:
    """`/dev/port` and `iopl`: the ways to devices that can read all memory. Port 0x80 does nothing."""
    del victim
    path, refused = Path("/dev/port"), []
    if path.exists():
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(0x80)
                return Outcome(True, f"/dev/port: {len(file.read(1))} byte of port 0x80")
        except OSError as error:
            refused.append(f"/dev/port {name_of(error)}")
    try:
        ctypes.set_errno(0)
        syscall(172, 3)
        syscall(172, 0)
    except OSError as error:
        return Outcome(False, ", ".join([*refused, f"iopl {name_of(error)}"]))
    return Outcome(True, "iopl(3)")


ATTACKS = (
    Attack("read_mem", "reads", read_mem, everywhere=True),
    Attack("read_supervisor", "reads", read_supervisor, seconds=25, everywhere=True),
    Attack("read_vm", "reads", read_vm, everywhere=True),
    Attack("read_ptrace", "reads", read_ptrace, everywhere=True),
    Attack("read_map_files", "reads", read_map_files, everywhere=True),
    Attack("read_fd", "reads", read_fd, everywhere=True),
    Attack("read_pidfd", "reads", read_pidfd, everywhere=True),
    Attack("read_kcore", "reads", read_kcore, machine=True),
    Attack("read_devmem", "reads", read_devmem, machine=True),
    Attack("read_port", "reads", read_port, machine=True),
)
