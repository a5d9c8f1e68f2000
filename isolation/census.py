"""Reads from `/proc` the rights of every thread of the machine, and whether it can write to `/proc/sys`.

Rights belong to threads, not to processes, so every thread is examined. Kernel threads run no foreign code and are left
out, as are zombies.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from variegate.isolation.kernel_files import Tree, Unknown

RIGHTS = {
    16: "CAP_SYS_MODULE",
    17: "CAP_SYS_RAWIO",
    19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN",
    38: "CAP_PERFMON",
    39: "CAP_BPF",
    40: "CAP_CHECKPOINT_RESTORE",
}
"""Rights with which root reaches other processes, by their bit."""
# Not the bounding set alone: a right dropped from it may stay permitted, and an inheritable one returns through a file.
_SETS = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
_OF_KERNEL = 0x0020_0000
_STATE, _FLAGS = 0, 6
"""Fields of `stat`, counted from the first after the name."""
_ENDED = {"Z", "X"}
_NOT_THERE = {errno.ENOENT, errno.ESRCH, errno.EINVAL}
"""The kernel's answers for a thread that has ended; the last is about its mounts."""
_INIT = ("1", "1")
_ROUNDS = 16


def rights(bits: int) -> list[str]:
    """Names of those of `RIGHTS` in a set."""
    return [name for bit, name in RIGHTS.items() if bits >> bit & 1]


def holder_of_rights(proc: Tree) -> str | None:
    """The first thread that has one of `RIGHTS` or could regain it, in words; None when there is none.

    Raises:
        OSError: As the kernel answers.
        Unknown: Not every process is visible.
    """
    return _first(proc, _rights_of)


def writer_of_sysctls(proc: Tree) -> str | None:
    """The first thread that sees a writable `/proc/sys`, in words; None when there is none.

    Raises:
        OSError: As the kernel answers.
        Unknown: Not every process is visible.
    """
    return _first(proc, _sysctls_of)


def _first(proc: Tree, fault: Callable[[Tree, str], str | None]) -> str | None:
    known: set[tuple[str, str]] = set()
    for _ in range(_ROUNDS):
        settled = True
        for pid, tid in _threads(proc):
            if (pid, tid) in known:
                continue
            settled = False  # it may have forked before it was looked at: the next round finds the child
            thread = f"{pid}/task/{tid}"
            try:
                reason = None if _runs_nothing(proc, thread) else fault(proc, thread)
            except OSError as error:
                if error.errno in _NOT_THERE:  # the next round says whether it has ended
                    continue
                raise
            if reason is not None:
                return f"process {pid} {reason}"
            known.add((pid, tid))
        if settled:
            if _INIT not in known:
                raise Unknown("process 1 is not visible")
            return None
    raise Unknown("processes come and go faster than they can be looked at")


def _threads(proc: Tree) -> Iterator[tuple[str, str]]:
    for pid in sorted(filter(str.isdigit, proc.names(".")), key=int):
        try:
            tids = proc.names(f"{pid}/task")
        except (FileNotFoundError, ProcessLookupError):
            tids = [pid]  # gone by now: looked at again with the rest
        for tid in tids:
            yield pid, tid


def _runs_nothing(proc: Tree, thread: str) -> bool:
    """Whether a thread is the kernel's own, or has ended."""
    # The name may hold anything, brackets and blanks among it.
    fields = proc.text(f"{thread}/stat").rpartition(")")[2].split()
    try:
        return fields[_STATE] in _ENDED or bool(int(fields[_FLAGS]) & _OF_KERNEL)
    except (IndexError, ValueError):
        raise Unknown(f"{proc.path}/{thread}/stat has another form") from None


def _rights_of(proc: Tree, thread: str) -> str | None:
    lines = (line.partition(":") for line in proc.text(f"{thread}/status").split("\n"))
    try:
        sets = {name: int(value, 16) for name, _, value in lines if name in _SETS}
    except ValueError:
        sets = {}
    if sets.keys() != _SETS:
        raise Unknown(f"{proc.path}/{thread}/status has another form")
    held = rights(sets["CapInh"] | sets["CapPrm"] | sets["CapEff"] | sets["CapBnd"] | sets["CapAmb"])
    return f"has or can regain {', '.join(held)}" if held else None


def _sysctls_of(proc: Tree, thread: str) -> str | None:
    """Whether one of the mounts of `/proc` that a thread sees leads to a writable `sys`."""
    everything = mounts_of(proc.text(f"{thread}/mountinfo"))
    covered = {(mount.parent, mount.point) for mount in everything}
    # No path leads to a mount that another one covers whole.
    mounts = [m for m in everything if m.kind == "proc" and (m.number, m.point) not in covered]
    # By parent: a folder closed below one `/proc` is open below another one mounted over it.
    closed = {(mount.parent, mount.point) for mount in mounts if mount.root == "/sys" and mount.read_only}
    for mount in mounts:
        below = f"{mount.point.rstrip('/')}/sys"
        whole, part = mount.root == "/", mount.root == "/sys" or mount.root.startswith("/sys/")
        if not mount.read_only and (part or (whole and (mount.number, below) not in closed)):
            return f"sees {mount.point if part else below} writable"
    return None


class Mount:
    """One line of `mountinfo`.

    Attributes:
        number: Of the mount.
        parent: Number of the mount below it.
        root: The part of the file system that is mounted.
        point: Where.
        kind: Of file system.
        read_only: Whether nothing can be written through it.
        options: Of the file system.
    """

    def __init__(self, line: str) -> None:
        """Reads a line.

        Raises:
            Unknown: It has another form.
        """
        here, dash, there = line.partition(" - ")
        # The kernel writes blanks and line ends in names otherwise, but no other separators that Python knows.
        fields, system = here.split(" "), there.split(" ")
        if not dash or len(fields) < 6 or len(system) < 3:  # noqa: PLR2004  as proc(5) has them
            raise Unknown("mountinfo has another form")
        self.number, self.parent, _, self.root, self.point, options = fields[:6]
        self.kind, self.options = system[0], system[2].split(",")
        self.read_only = "ro" in options.split(",") or "ro" in self.options


def mounts_of(text: str) -> list[Mount]:
    """The mounts in a `mountinfo`.

    Raises:
        Unknown: It has another form.
    """
    return [Mount(line) for line in text.split("\n") if line]
