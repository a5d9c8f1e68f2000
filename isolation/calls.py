"""The system calls that the enclave may make. The list was found by running it, one call at a time.

Serving needs receiving and sending on the inherited socket, private memory, locks, time and exit. Calls that libraries
try in passing fail with `EPERM`; all others end the process.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
from enum import Enum
from pathlib import Path

from variegate.isolation.seccomp import ALLOW, LIBRARY, Compare, Filter, Unavailable, Where, fails_with
from variegate.runtime.enclave import Protection, ProtectionState

NAME = "seccomp"


class Stage(Enum):
    """Which of the two filters; the second only takes away."""

    LOAD = "load"
    """One more process may be forked, waited for, and the second filter be set."""
    SERVE = "serve"


_ANYHOW = (
    # The inherited socket.
    "recvfrom",
    "recvmsg",
    "sendto",
    "sendmsg",
    "poll",
    "ppoll",
    # Private memory; its kinds are checked below.
    "brk",
    "munmap",
    "mremap",
    "madvise",
    # Locks, time, randomness.
    "futex",
    "sched_yield",
    "clock_gettime",
    "clock_nanosleep",
    "getrandom",
    "restart_syscall",
    # Signals to itself, and an end.
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "getpid",
    "gettid",
    "exit",
    "exit_group",
    "close",
)
_HARMLESS_ATTEMPTS = (
    # Files: Landlock denies them, too; here they do not even reach it.
    "open",
    "openat",
    "openat2",
    "creat",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
    "statfs",
    "fstatfs",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getcwd",
    "getdents64",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
    "read",
    "pread64",
    "lseek",
    "fcntl",
    "dup",
    "pipe2",
    "ioctl",
    # Calls that Python makes when it prints a socket or sets it up.
    "socket",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    "shutdown",
    # Questions about the machine and the user.
    "uname",
    "sysinfo",
    "getcpu",
    "sched_getaffinity",
    "sched_setaffinity",
    "getrusage",
    "times",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getppid",
    "mlock",
    "munlock",
)
_WRITES = ("write", "writev")
_LOUD = 2
"""Largest descriptor that may be written to: standard error, for the supervisor's log."""
_FORK = 0x0100_0000 | 0x0020_0000 | signal.SIGCHLD
"""`CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD`: a plain fork as the C library makes it, never a thread."""
_FORKED = ("set_robust_list", "rseq", "wait4")
_SET_FILTER = 1
_MAP_TYPE = 0x0F
_GROWS_DOWN = 0x0100


def allow_list(stage: Stage, *, library: str = LIBRARY) -> Filter:
    """The filter of a stage, not applied yet.

    Raises:
        Unavailable: libseccomp is not there or refuses a rule.
    """
    refused = fails_with(errno.EPERM)
    # Nothing that grows by itself either: the cap does not count that as data.
    plain = _MAP_TYPE | mmap.MAP_ANONYMOUS | _GROWS_DOWN
    rules = (
        Filter(library=library)
        .rule(ALLOW, _ANYHOW)
        .rule(refused, _HARMLESS_ATTEMPTS)
        .rule(ALLOW, _WRITES, Where(0, Compare.LESS_OR_EQUAL, _LOUD))
        .rule(refused, _WRITES, Where(0, Compare.GREATER, _LOUD))
        # Nothing executable, nothing shared, nothing from a file: memory that the RAM cap counts.
        .rule(
            ALLOW,
            ("mmap",),
            Where(2, Compare.MASKED_EQUAL, mmap.PROT_EXEC, 0),
            Where(3, Compare.MASKED_EQUAL, plain, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
        )
        .rule(ALLOW, ("mprotect",), Where(2, Compare.MASKED_EQUAL, mmap.PROT_EXEC, 0))
        # `abort`; a fork has another id, and then the call ends it just the same.
        .rule(ALLOW, ("tgkill",), Where(0, Compare.EQUAL, os.getpid()))
        .rule(ALLOW, ("prlimit64",), Where(2, Compare.EQUAL, 0))
        .rule(refused, ("prlimit64",), Where(2, Compare.NOT_EQUAL, 0))
    )
    if stage is Stage.LOAD:
        rules.rule(ALLOW, ("clone",), Where(0, Compare.EQUAL, _FORK))
        rules.rule(fails_with(errno.ENOSYS), ("clone3",))  # its flags lie in memory; callers fall back to clone
        rules.rule(ALLOW, _FORKED)
        # No flags: no listener, which could answer for the kernel.
        rules.rule(ALLOW, ("seccomp",), Where(0, Compare.EQUAL, _SET_FILTER), Where(1, Compare.EQUAL, 0))
    return rules


def filter_calls(stage: Stage, *, library: str = LIBRARY) -> Protection:
    """Applies a stage's filter to the calling thread, for good; needs no_new_privs."""
    try:
        allow_list(stage, library=library).load()
    except Unavailable as why:
        return Protection(NAME, ProtectionState.UNAVAILABLE, str(why))
    if not _in_force():
        return Protection(NAME, ProtectionState.UNAVAILABLE, "libseccomp said that it worked, and it did not")
    return Protection(NAME, ProtectionState.ON, f"allow-list of stage {stage.value!r}; other calls end the process")


def _in_force() -> bool:
    """Whether a call that the filter refuses is refused: a library's word is not enough."""
    try:
        Path("/").stat()
    except OSError as error:
        return error.errno == errno.EPERM
    return False
