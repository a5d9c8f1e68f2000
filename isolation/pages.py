"""Memory for keys and weights that the kernel removes from its own map of all memory.

No `/proc/PID/mem`, `process_vm_readv`, core file or other access for another process reaches pages of
`memfd_secret(2)`, not even root's. But whoever may write to the rest of the process can make it copy them out. The
descriptor is closed right after the mapping, because `pidfd_getfd(2)` would give it to root. Python's `mmap` keeps a
duplicate, so the mapping is made without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource

from variegate.isolation import syscalls
from variegate.keys.errors import DeviceError, MisuseError
from variegate.runtime.enclave import Protection, ProtectionState

NAME = "memory"
_ON = "memfd_secret pages: no plain read reaches them; whoever may write to the process can get them"


class SecretRegion:
    """Shared, zeroed, writable pages that stay mapped as long as the process lives; a fork shares them.

    There is no unmapping: a view that outlived it would read the memory's next use.

    Attributes:
        size: Bytes of `view`.
        view: The bytes, uint8, page-aligned.
        protection: The state of the pages.
    """

    def __init__(self, size: int, *, secret: bool = True, required: bool = False) -> None:
        """Maps pages.

        Args:
            size: Bytes, at least one.
            secret: Whether to ask for secret pages; without, ordinary ones are taken and said to be `off`.
            required: Whether to fail rather than fall back to ordinary pages.

        Raises:
            DeviceError: No pages, or no secret ones where they are required.
            MisuseError: A size below one, or or secret pages required but not asked for.
        """
        if size < 1 or (required and not secret):
            raise MisuseError("a region has at least one byte, and required secret pages must be asked for")
        self.size = size
        mapped = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if secret:
            try:
                self._address = _secret_pages(mapped)
                self.protection = Protection(NAME, ProtectionState.ON, _ON)
            except OSError as error:
                reason = f"memfd_secret pages refused: {syscalls.name_of(error)}"
                if required:
                    raise DeviceError(f"secret pages are required: {reason}") from None
                self._fall_back(mapped, ProtectionState.UNAVAILABLE, reason)
        else:
            self._fall_back(mapped, ProtectionState.OFF, "secret pages are not asked for")
        array = (ctypes.c_ubyte * size).from_address(self._address)
        self.view = memoryview(array).cast("B")

    def __repr__(self) -> str:
        return f"SecretRegion({self.size} bytes, {self.protection.state})"

    def _fall_back(self, mapped: int, state: ProtectionState, reason: str) -> None:
        try:
            self._address = syscalls.mmap_shared(mapped, flags=mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise DeviceError(f"no memory for keys and weights: {syscalls.name_of(error)}") from None
        failures = []
        with contextlib.suppress(OSError):
            syscalls.mlock(self._address, mapped)
            failures.append("out of swap")
        with contextlib.suppress(OSError):
            syscalls.madvise(self._address, mapped, mmap.MADV_DONTDUMP)
            failures.append("out of core files")
        self.protection = Protection(
            NAME, state, f"{reason}; ordinary pages, kept {' and '.join(failures) or 'nowhere'}"
        )


def _secret_pages(mapped: int) -> int:
    """Maps secret pages and closes their descriptor.

    Raises:
        OSError: The kernel has none, or `RLIMIT_MEMLOCK` is too small.
    """
    _raise_memlock()
    descriptor = syscalls.syscall(syscalls.MEMFD_SECRET, os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, mapped)
        return syscalls.mmap_shared(mapped, descriptor=descriptor)
    finally:
        os.close(descriptor)


def _raise_memlock() -> None:
    """Raises the limit to the hard limit: the pages count as locked."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
