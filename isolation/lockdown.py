"""Locks a process down before it handles a secret; each step reports whether it worked, or why not.

All steps are final and apply to forks too. Landlock, seccomp and capabilities apply to one thread only, so `lock_down`
refuses to run in a process with more than one.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from pathlib import Path

from variegate.isolation import calls, landlock, syscalls
from variegate.isolation.calls import Stage
from variegate.isolation.seccomp import LIBRARY, Unavailable, open_library
from variegate.keys.errors import DeviceError, MisuseError
from variegate.runtime.enclave import Protection, ProtectionState

RAM_CAP, LIMITS, NO_NEW_PRIVS, CAPABILITIES, DUMPABLE, MDWE = (
    "ram-cap",
    "limits",
    "no-new-privs",
    "capabilities",
    "dumpable",
    "mdwe",
)
NAMES = (RAM_CAP, LIMITS, NO_NEW_PRIVS, landlock.NAME, CAPABILITIES, MDWE, DUMPABLE, calls.NAME)
"""The protections that `lock_down` reports, in its order."""
SUPERVISOR = "supervisor"
"""The protections that the process that launches an enclave reports of itself."""

_MIB = 1024 * 1024
_STACK_BYTES = 8 * _MIB
_DESCRIPTORS = 16
_GET_DUMPABLE, _SET_DUMPABLE = 3, 4
_BOUNDING_DROP = 24
_SET_NO_NEW_PRIVS, _GET_NO_NEW_PRIVS = 38, 39
_AMBIENT, _AMBIENT_CLEAR = 47, 4
_SET_MDWE, _GET_MDWE = 65, 66
_REFUSE_EXEC_GAIN = 1
_MOST_CAPABILITIES = 64


def lock_down(
    *, ram_mib: int | None, debug: bool = False, stage: Stage = Stage.LOAD, library: str = LIBRARY
) -> tuple[Protection, ...]:
    """Applies everything, in the order in which one step does not forbid the next.

    Import everything beforehand: no file can be opened afterwards. An unprivileged supervisor must attach by ptrace
    before, too: after `dumpable` it would be refused.

    Args:
        ram_mib: As `limit_memory`; None leaves memory without a cap.
        debug: Leaves the process dumpable, so that debuggers can look in.
        stage: Which system calls are still needed; `filter_calls` narrows them later.
        library: Name of libseccomp.

    Returns:
        One protection for each of `NAMES`, in that order.

    Raises:
        MisuseError: More than one thread runs.
        DeviceError: The process takes more memory than the cap already, or cannot look at itself.
    """
    threads = _own_threads()
    if threads != 1:
        raise MisuseError(f"a process locks itself down while it has one thread, not {threads}")
    with contextlib.suppress(Unavailable):  # reported below
        open_library(library)
    before = (
        limit_memory(ram_mib) if ram_mib is not None else Protection.when(RAM_CAP, False, "no cap is asked for"),
        limit_resources(),
        no_new_privs(),
    )
    writable_code = _writable_code()
    return (
        *before,
        landlock.deny_all(),
        drop_capabilities(),
        refuse_exec_gain(writable_code),
        # After the capabilities: a change of credentials may set it again.
        Protection.when(DUMPABLE, False, "debugging is asked for") if debug else undumpable(),
        calls.filter_calls(stage, library=library),
    )


def limit_memory(mib: int) -> Protection:
    """Caps ordinary memory: heap, library data and stack. Beyond it an allocation fails with `MemoryError`.

    By `RLIMIT_DATA`, which counts private writable memory when it is asked for, minus space for the stack.
    `RLIMIT_AS` would count address space that is only reserved, libraries' code, and shared pages, too. The secret
    pages and the frames' memory are shared, of a fixed size, and not counted; the filter of system calls allows no new
    shared mapping.

    Args:
        mib: MiB of ordinary memory.

    Raises:
        DeviceError: The process takes more already.
    """
    cap = mib * _MIB - _STACK_BYTES
    taken = _private_bytes()
    if taken > cap:
        needs = -(-(taken + _STACK_BYTES) // _MIB)
        raise DeviceError(f"the enclave takes {needs} MiB before it loads a copy, its cap is {mib} MiB")
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, _STACK_BYTES))
    except (OSError, ValueError):
        return Protection(RAM_CAP, ProtectionState.UNAVAILABLE, "the limit on memory cannot be set")
    return Protection.when(RAM_CAP, True, f"{mib} MiB of ordinary memory")


def limit_resources() -> Protection:
    """No core files, no growing files, few descriptors.

    The number of processes is not limited: the kernel counts it for each user, over all of a user's programs, and not
    at all for root. The filter of system calls forbids new ones instead.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    except (OSError, ValueError):
        return Protection(LIMITS, ProtectionState.UNAVAILABLE, "a limit cannot be set")
    return Protection.when(LIMITS, True, f"no core or other files, {_DESCRIPTORS} descriptors")


def no_new_privs() -> Protection:
    """No program that is ever executed gains rights; seccomp and Landlock ask for it."""
    try:
        syscalls.prctl(_SET_NO_NEW_PRIVS, 1)
        on = syscalls.prctl(_GET_NO_NEW_PRIVS) == 1
    except OSError as error:
        return _unavailable(NO_NEW_PRIVS, error)
    return Protection.when(NO_NEW_PRIVS, on, "set, cannot be unset")


def drop_capabilities() -> Protection:
    """Gives up every right of root that Linux counts separately; the user id stays."""
    try:
        for capability in range(_MOST_CAPABILITIES):
            try:
                syscalls.prctl(_BOUNDING_DROP, capability)
            except OSError as error:
                if error.errno == errno.EINVAL:  # past the last one
                    break
                if error.errno != errno.EPERM:  # EPERM: it holds no right to drop any; nothing to gain either
                    raise
        syscalls.prctl(_AMBIENT, _AMBIENT_CLEAR)
        syscalls.drop_all_capabilities()
    except OSError as error:
        return _unavailable(CAPABILITIES, error)
    return Protection.when(CAPABILITIES, True, "none held")


def refuse_exec_gain(writable_code: bool = False) -> Protection:
    """Memory that was writable never becomes executable (`PR_SET_MDWE`, Linux 6.3).

    Args:
        writable_code: Whether some page is writable and executable already, which this does not undo.
    """
    try:
        syscalls.prctl(_SET_MDWE, _REFUSE_EXEC_GAIN)
        on = syscalls.prctl(_GET_MDWE) & _REFUSE_EXEC_GAIN != 0
    except OSError as error:
        return _unavailable(MDWE, error)
    if writable_code:
        return Protection.when(MDWE, False, "set, but a page was writable and executable before")
    return Protection.when(MDWE, on, "writable memory never becomes executable")


def close_supervisor() -> None:
    """Makes this process undumpable and leaves no core file of it, for good: it relays what its enclave answers.

    `/proc/PID` then belongs to root. Nobody without `CAP_SYS_PTRACE`, not even root, can open its descriptors or its
    memory. `supervisor` says whether it worked.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    undumpable()


def supervisor() -> Protection:
    """Whether `close_supervisor` holds in this process, as the kernel says now."""
    try:
        dumpable = syscalls.prctl(_GET_DUMPABLE)
    except OSError as error:
        return _unavailable(SUPERVISOR, error)
    if dumpable != 0:
        return Protection.when(SUPERVISOR, False, "the supervisor is open to its own user")
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        return Protection.when(SUPERVISOR, False, "the supervisor may leave a core file")
    return Protection.when(SUPERVISOR, True, "no core file, closed to processes without CAP_SYS_PTRACE")


def undumpable() -> Protection:
    """No core file, and `/proc/PID` belongs to root: other processes of the same user cannot look in."""
    try:
        syscalls.prctl(_SET_DUMPABLE, 0)
        on = syscalls.prctl(_GET_DUMPABLE) == 0
    except OSError as error:
        return _unavailable(DUMPABLE, error)
    return Protection.when(DUMPABLE, on, "no core file, closed to its own user")


def _unavailable(name: str, error: OSError) -> Protection:
    return Protection(name, ProtectionState.UNAVAILABLE, f"this kernel answers {syscalls.name_of(error)}")


def _own_threads() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        raise DeviceError("a process cannot count its own threads") from None


def _writable_code() -> bool:
    """Whether a page is writable and executable; also when that cannot be seen."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return True
    return any("wx" in line.split(maxsplit=2)[1] for line in lines)


def _private_bytes() -> int:
    """`VmData` of this process: the bytes that `RLIMIT_DATA` counts."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    except (OSError, StopIteration, ValueError):
        raise DeviceError("a process cannot see how much memory it takes") from None
