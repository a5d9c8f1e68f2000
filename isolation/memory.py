"""Memory that supervisor and enclave share: the frames of a query, and the component to open."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

from variegate.keys.errors import DeviceError

_FIXED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def frame_memory(size: int) -> tuple[int, mmap.mmap]:
    """A memory file of a fixed size, so that no access beyond its end can be provoked; pages come as written.

    Returns:
        Its descriptor, and the mapping.

    Raises:
        DeviceError: The machine has no memory for it.
    """
    try:
        descriptor = os.memfd_create("variegate-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FIXED)
        return descriptor, mmap.mmap(descriptor, size)
    except OSError as error:
        raise DeviceError("there is no memory for frames") from error


def sealed(name: str, data: bytes | memoryview) -> int:
    """A descriptor of a memory file that holds `data` and that nobody can change; close it.

    Raises:
        DeviceError: The machine has no memory for it.
    """
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FIXED | fcntl.F_SEAL_WRITE)
    except OSError as error:
        raise DeviceError("there is no memory for the enclave's files") from error
    return descriptor


def mappable(descriptor: int) -> int:
    """A descriptor that can be mapped, with the content of `descriptor`, which is closed.

    Data from a pipe is moved into a memory file inside the kernel: it is never in this process's memory.

    Raises:
        DeviceError: It gives nothing, or the machine has no memory.
    """
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
        into = os.memfd_create("variegate-identity", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        while os.splice(descriptor, into, mmap.PAGESIZE):
            pass
        fcntl.fcntl(into, fcntl.F_ADD_SEALS, _FIXED | fcntl.F_SEAL_WRITE)
        os.close(descriptor)
    except OSError as error:
        raise DeviceError("the device's chip does not give its keys") from error
    return into
