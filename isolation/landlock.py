"""Landlock: the process gives up the file system, TCP ports and abstract sockets, for itself and its children.

Rights and structures are those of `linux/landlock.h`. Everything that the running kernel's version knows is
denied; there is no rule that allows anything back.
"""

from __future__ import annotations

import ctypes
import os
import struct

from variegate.isolation import syscalls
from variegate.runtime.enclave import Protection, ProtectionState

NAME = "landlock"

_GET_VERSION = 1
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Version that brought new rights: how many there are since. Version 1 ends in `MAKE_SYM`; 2 added `REFER`, 3
`TRUNCATE`, 5 `IOCTL_DEV`."""
_NET_VERSION, _NET_RIGHTS = 4, 0b11
"""Bind and connect of TCP."""
_SCOPE_VERSION, _SCOPES = 6, 0b11
"""Abstract Unix sockets and signals."""


def version() -> int:
    """Landlock's version in this kernel, at least 1.

    Raises:
        OSError: There is none, or it is switched off.
    """
    return syscalls.syscall(syscalls.LANDLOCK_CREATE_RULESET, 0, 0, _GET_VERSION)


def ruleset(known: int) -> bytes:
    """`struct landlock_ruleset_attr` that handles, and so denies, all that a version knows."""
    fs = (1 << max(count for since, count in _FS_RIGHTS.items() if since <= known)) - 1
    net = _NET_RIGHTS if known >= _NET_VERSION else 0
    scopes = _SCOPES if known >= _SCOPE_VERSION else 0
    # An older kernel takes the longer structure, as long as the part that it does not know is zero.
    return struct.pack("=QQQ", fs, net, scopes)


def deny_all() -> Protection:
    """Restricts the calling thread for good; needs no_new_privs."""
    try:
        known = version()
        attributes = ctypes.create_string_buffer(ruleset(known), 24)
        descriptor = syscalls.syscall(syscalls.LANDLOCK_CREATE_RULESET, ctypes.addressof(attributes), 24, 0)
        try:
            syscalls.syscall(syscalls.LANDLOCK_RESTRICT_SELF, descriptor, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Protection(NAME, ProtectionState.UNAVAILABLE, f"this kernel answers {syscalls.name_of(error)}")
    denied = ["all of the file system"]
    if known >= _NET_VERSION:
        denied.append("TCP")
    if known >= _SCOPE_VERSION:
        denied.append("abstract sockets, signals to others")
    return Protection(NAME, ProtectionState.ON, f"version {known}: {', '.join(denied)} denied")
