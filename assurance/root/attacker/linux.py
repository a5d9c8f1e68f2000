"""The Linux interfaces that root uses: system calls, memory of other processes, namespaces. By `ctypes`, for x86-64."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PTRACE_PEEK, PTRACE_CONT, PTRACE_DETACH = 2, 7, 17
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN = 0x4206, 0x4207, 0x4208
TRACE_FORKS = 0x2 | 0x4 | 0x8
"""`PTRACE_O_TRACEFORK | TRACEVFORK | TRACECLONE`."""
WAIT_ALL = 0x4000_0000
SYS_PERF_EVENT_OPEN, SYS_BPF, SYS_USERFAULTFD = 298, 321, 323
SYS_INIT_MODULE, SYS_DELETE_MODULE, SYS_FINIT_MODULE = 175, 176, 313
SYS_KEXEC_LOAD, SYS_KEXEC_FILE_LOAD = 246, 320
SYS_PIDFD_GETFD, SYS_PROCESS_MADVISE = 438, 440
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND = 0x1, 0x2, 0x20, 0x1000
NEW_USER, NEW_MOUNTS = 0x1000_0000, 0x0002_0000
PIECE = 8 << 20
_OVERLAP = 256
"""Bytes that pieces of memory share, so that no window is cut in two: more than the longest window."""
_SPECIAL = ("[vvar]", "[vvar_vclock]", "[vsyscall]")

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.process_vm_readv.restype = libc.process_vm_writev.restype = ctypes.c_ssize_t


def checked(result: int) -> int:
    """The result of a call of the C library.

    Raises:
        OSError: It is -1.
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: Any) -> int:
    """Makes a system call; integers are passed as longs, anything else as `ctypes` passes it.

    Raises:
        OSError: As the kernel answers.
    """
    return checked(libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """`ptrace(2)`, always from the thread that attached.

    Raises:
        OSError: As the kernel answers.
    """
    return checked(libc.ptrace(request, pid, address, data))


def mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    """`mount(2)`.

    Raises:
        OSError: As the kernel answers.
    """
    checked(libc.mount(source.encode(), bytes(target), kind.encode() or None, ctypes.c_ulong(flags), None))


def unmount(target: Path) -> None:
    """`umount2(2)`, lazily.

    Raises:
        OSError: As the kernel answers.
    """
    checked(libc.umount2(bytes(target), 2))


def name_of(error: OSError) -> str:
    """`EPERM` and the like."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


@dataclass(frozen=True)
class Mapping:
    """One line of `/proc/PID/maps`."""

    start: int
    end: int
    rights: str
    offset: int
    path: str

    @property
    def readable(self) -> bool:
        """Whether its rights say so, and it is memory of the process's own."""
        return self.rights.startswith("r") and self.path not in _SPECIAL

    @property
    def writable(self) -> bool:
        """Whether the process may write to it, and nobody shares that."""
        return self.rights.startswith("rw") and self.rights.endswith("p")


def mappings(pid: int) -> list[Mapping]:
    """The mappings of a process.

    Raises:
        OSError: It is gone, or the kernel does not say.
    """
    out = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(value, 16) for value in span.split("-"))
        out.append(Mapping(start, end, rights, int(offset, 16), path[0] if path else ""))
    return out


class Memory(Protocol):
    """A way to another process's memory."""

    def read(self, at: int, size: int) -> bytes:
        """Reads.

        Raises:
            OSError: As the kernel answers.
        """
        ...

    def write(self, at: int, data: bytes) -> None:
        """Writes.

        Raises:
            OSError: As the kernel answers.
        """
        ...


class ProcMem:
    """`/proc/PID/mem`, which also writes to pages that the process itself may not write to."""

    def __init__(self, pid: int, *, write: bool = False) -> None:
        self._file = os.open(f"/proc/{pid}/mem", os.O_RDWR if write else os.O_RDONLY)

    def read(self, at: int, size: int) -> bytes:
        """As `Memory.read`."""
        return os.pread(self._file, size, at)

    def write(self, at: int, data: bytes) -> None:
        """As `Memory.write`."""
        if os.pwrite(self._file, data, at) != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class VmCalls:
    """`process_vm_readv(2)` and `process_vm_writev(2)`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, at: int, size: int) -> bytes:
        """As `Memory.read`."""
        buffer = ctypes.create_string_buffer(size)
        count = self._moved(libc.process_vm_readv, buffer, at, size)
        return buffer.raw[:count]

    def write(self, at: int, data: bytes) -> None:
        """As `Memory.write`."""
        buffer = ctypes.create_string_buffer(data, len(data))
        if self._moved(libc.process_vm_writev, buffer, at, len(data)) != len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _moved(self, call: Any, buffer: ctypes.Array[ctypes.c_char], at: int, size: int) -> int:
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
        theirs = (ctypes.c_size_t * 2)(at, size)
        return checked(call(self._pid, ours, 1, theirs, 1, 0))


def everything(memory: Memory, areas: list[Mapping]) -> Iterator[tuple[int, bytes]]:
    """All that can be read of some mappings, in pieces that overlap.

    Raises:
        PermissionError: The kernel refuses altogether.
    """
    for area in areas:
        for at in range(area.start, area.end, PIECE):
            yield from _by_page(memory, at, min(area.end, at + PIECE + _OVERLAP))


def _by_page(memory: Memory, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The whole piece, or page by page where some page cannot be read; after many in a row, no more."""
    at, vain = start, 0
    while at < end and vain < 64:
        try:
            data = memory.read(at, end - at if vain == 0 else min(mmap.PAGESIZE, end - at))
        except PermissionError:
            raise
        except OSError:
            data = b""
        if data:
            yield at, data
            at, vain = at + len(data), 0
        else:
            at, vain = at // mmap.PAGESIZE * mmap.PAGESIZE + mmap.PAGESIZE, vain + 1
