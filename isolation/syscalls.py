"""Linux system calls that Python does not wrap, through the C library that is already loaded.

Numbers are those of the kernel's generic table, which x86-64 and aarch64 share from 424 on.
"""

from __future__ import annotations

import ctypes
import errno
import os

OPENAT2 = 437
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_RESTRICT_SELF = 446
MEMFD_SECRET = 447

_POLLIN = 1
_NO_MOUNTS, _NO_MAGIC_LINKS = 1, 2
_OF_THE_DESCRIPTOR = 0x1000
_MOUNT_NUMBER = 0x1000
_MOUNT_NUMBER_AT = 0x90
_STRUCT_BYTES = 256
"""As much as `struct statx` takes; `struct statfs` takes less."""
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int
_libc.ptrace.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_libc.capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)


class _PollFd(ctypes.Structure):
    """`struct pollfd`."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: int) -> int:
    """Makes a system call by its number.

    Raises:
        OSError: As the kernel answers.
    """
    return _checked(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


def prctl(option: int, *arguments: int) -> int:
    """`prctl(2)`; arguments left out are zero.

    Raises:
        OSError: As the kernel answers.
    """
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, padded)))


def ptrace(request: int, pid: int, data: int = 0) -> int:
    """`ptrace(2)` with a null address: must always come from the thread that seized.

    Raises:
        OSError: As the kernel answers.
    """
    return _checked(_libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data)))


def open_here(folder: int, name: str, flags: int) -> int:
    """`openat2(2)` that crosses no mount on the way, nor one at its end, and follows no link of the kernel's making.

    Args:
        folder: Descriptor that the name is looked up from.
        name: The name to open.
        flags: As for `os.open`; the descriptor does not survive an `exec`.

    Returns:
        The descriptor.

    Raises:
        OSError: As the kernel answers; `EXDEV` where there is a mount.
    """
    how = (ctypes.c_uint64 * 3)(flags | os.O_CLOEXEC, 0, _NO_MOUNTS | _NO_MAGIC_LINKS)
    path = ctypes.create_string_buffer(os.fsencode(name))
    return syscall(OPENAT2, folder, ctypes.addressof(path), ctypes.addressof(how), ctypes.sizeof(how))


def mount_of(descriptor: int) -> int:
    """The number of the mount that a descriptor was opened through (`statx(2)`).

    Raises:
        OSError: As the kernel answers; `ENOSYS` where it does not know.
    """
    buffer = ctypes.create_string_buffer(_STRUCT_BYTES)
    _checked(_libc.statx(descriptor, b"", _OF_THE_DESCRIPTOR, _MOUNT_NUMBER, buffer))
    if not ctypes.c_uint32.from_buffer(buffer).value & _MOUNT_NUMBER:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return ctypes.c_uint64.from_buffer(buffer, _MOUNT_NUMBER_AT).value


def file_system_of(descriptor: int) -> int:
    """The magic number of the file system of a descriptor (`fstatfs(2)`).

    Raises:
        OSError: As the kernel answers.
    """
    buffer = ctypes.create_string_buffer(_STRUCT_BYTES)
    _checked(_libc.fstatfs(descriptor, buffer))
    return ctypes.c_long.from_buffer(buffer).value


def mmap_shared(size: int, *, descriptor: int = -1, flags: int = 0) -> int:
    """Maps shared, readable and writable pages; anonymous ones where the flags say so.

    Args:
        size: Bytes.
        descriptor: Of the file.
        flags: Beside `MAP_SHARED`.

    Returns:
        The address.

    Raises:
        OSError: As the kernel answers.
    """
    read_write, shared = 3, 1
    address = _libc.mmap(None, size, read_write, shared | flags, descriptor, 0)
    if address in (None, _MAP_FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


def mlock(address: int, size: int) -> None:
    """Keeps pages from swap.

    Raises:
        OSError: As the kernel answers.
    """
    _checked(_libc.mlock(address, size))


def madvise(address: int, size: int, advice: int) -> None:
    """`madvise(2)`.

    Raises:
        OSError: As the kernel answers.
    """
    _checked(_libc.madvise(address, size, advice))


def readable_within(descriptor: int, seconds: float) -> bool:
    """`ppoll(2)` of one descriptor: unlike Python's `poll` it counts finer than milliseconds.

    Returns:
        Whether there is something to read, or nobody left to write it; also false after a signal.
    """
    poll = _PollFd(descriptor, _POLLIN, 0)
    whole = int(seconds)
    time = (ctypes.c_long * 2)(whole, int((seconds - whole) * 1e9))
    return bool(_libc.ppoll(ctypes.byref(poll), ctypes.c_ulong(1), time, None) > 0)


def drop_all_capabilities() -> None:
    """Empties the thread's effective, permitted and inheritable sets (`capset(2)`, version 3).

    Raises:
        OSError: As the kernel answers.
    """
    version = 0x20080522
    header = (ctypes.c_uint32 * 2)(version, 0)
    data = (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, data))


def name_of(error: OSError) -> str:
    """`EPERM` and the like, for a reason that people read."""
    return errno.errorcode.get(error.errno or 0, "an unknown error")
