"""Whether this machine stops root from reaching other processes at all: the protections of the group `host`.

They are the kernel's and not ours: read anew whenever an enclave starts, from inside it and before it gives up its
rights, and never assumed. What cannot be read does not count as on. Nothing is changed here; who locks a machine does
that before anything else runs on it. The folder's README says what each one stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from variegate.attest.groups import HOST, HOST_PROTECTIONS, of_host
from variegate.isolation import census, syscalls
from variegate.isolation.census import Mount, Unknown, text_of
from variegate.runtime.enclave import Protection, ProtectionState

_PROC, _SYS = Path("/proc"), Path("/sys")
_OURS_TO_SEE = {"pid": "pid:[4026531836]", "user": "user:[4026531837]"}
"""Where the kernel's first namespaces are: their numbers are fixed."""
_NO_ATTACH = 3
_PERF_CLOSED = 3
_WORD_BITS = 32
_MOST_SHOWN = 60
_Finding = tuple[bool, str]


def protections(*, proc: Path = _PROC, sys: Path = _SYS) -> tuple[Protection, ...]:
    """Measures the machine.

    Args:
        proc: Where its processes and settings are.
        sys: Where its kernel's objects are.

    Returns:
        One protection for each of `HOST_PROTECTIONS`, in that order.
    """
    machine = _Machine(proc, sys)
    return tuple(machine.measured(name) for name in HOST_PROTECTIONS)


def ptrace(*, proc: Path = _PROC) -> Protection:
    """`host-ptrace` alone: whether nobody on this machine can trace a process, its supervisor neither."""
    return _Machine(proc, _SYS).measured("host-ptrace")


def summary(found: Iterable[Protection]) -> Protection:
    """The group as one: on when all of it is.

    Args:
        found: Protections of a device, of whatever kind.
    """
    states = {p.name: p.state for p in found if of_host(p.name)}
    if not states:
        return Protection(HOST, ProtectionState.UNAVAILABLE, "not measured")
    names = dict.fromkeys((*HOST_PROTECTIONS, *states))
    missing = [name for name in names if states.get(name) != ProtectionState.ON]
    return Protection.when(HOST, not missing, f"missing: {', '.join(missing)}" if missing else "nothing is missing")


class _Machine:
    """One look at a machine."""

    def __init__(self, proc: Path, sys: Path) -> None:
        self._proc, self._sys = proc, sys
        self._looks: dict[str, Callable[[], _Finding]] = {
            "host-ptrace": self._ptrace,
            "host-lockdown": self._lockdown,
            "host-modules": self._modules,
            "host-kexec": self._kexec,
            "host-rights": self._rights,
            "host-sysctl": self._sysctl,
            "host-bpf": self._bpf,
            "host-perf": self._perf,
            "host-swap": self._swap,
            "host-core": self._core,
        }

    def measured(self, name: str) -> Protection:
        """One protection; unavailable where the kernel does not say."""
        try:
            self._see()
            return Protection.when(name, *self._looks[name]())
        except OSError as error:
            why = f"{error.filename}: this kernel answers {syscalls.name_of(error)}"
        except Unknown as error:
            why = str(error)
        return Protection(name, ProtectionState.UNAVAILABLE, why)

    def _see(self) -> None:
        """Makes sure that what is read is the machine's, not that of a container, and not a file laid over it.

        Raises:
            OSError: As the kernel answers.
            Unknown: It is not.
        """
        for kind, first in _OURS_TO_SEE.items():
            if str((self._proc / "self/ns" / kind).readlink()) != first:
                raise Unknown(f"this process runs in a {kind} namespace of its own and does not see the machine")
        mounts = census.mounts_of(text_of(self._proc / "self/mountinfo"))
        for mount in mounts:
            below = mount.point.startswith("/proc/")
            if below and mount.kind != "proc" and not mount.point.startswith("/proc/sys/fs/binfmt_misc"):
                raise Unknown(f"{_shown(mount.point)} is covered by something else")
        _covering(mounts, "/proc", {"proc"})
        for path in ("/sys/kernel/security/lockdown", "/sys/power/resume"):
            _covering(mounts, path, {"sysfs", "securityfs"})

    def _text(self, path: str) -> str:
        return text_of(self._proc / path).strip()

    def _number(self, path: str) -> int:
        text = self._text(path)
        try:
            return int(text)
        except ValueError:
            raise Unknown(f"{self._proc / path} holds no number") from None

    def _absent(self, *paths: Path) -> bool:
        """Whether the kernel lacks something altogether, all other settings being there."""
        self._text("sys/kernel/ostype")
        for path in paths:
            try:
                path.stat()
            except FileNotFoundError:
                continue
            return False
        return True

    def _ptrace(self) -> _Finding:
        scope = self._number("sys/kernel/yama/ptrace_scope")
        return scope == _NO_ATTACH, f"Yama {scope}" + ("" if scope == _NO_ATTACH else ": 3 is final and closed to all")

    def _lockdown(self) -> _Finding:
        # The command line is no evidence: a kernel that does not know the option ignores it.
        text = text_of(self._sys / "kernel/security/lockdown").strip()
        return "[confidentiality]" in text.split(), _shown(text)

    def _modules(self) -> _Finding:
        setting = self._proc / "sys/kernel/modules_disabled"
        if self._absent(setting, self._proc / "modules"):
            return True, "this kernel has no modules"
        off = self._number("sys/kernel/modules_disabled") == 1
        return off, "no more can be loaded, for good" if off else "modules can be loaded"

    def _kexec(self) -> _Finding:
        setting = self._proc / "sys/kernel/kexec_load_disabled"
        if self._absent(setting, self._sys / "kernel/kexec_loaded", self._sys / "kernel/kexec/loaded"):
            return True, "this kernel has no kexec"
        off = self._number("sys/kernel/kexec_load_disabled") == 1
        return off, "no kernel can be loaded, for good" if off else "another kernel can be loaded"

    def _rights(self) -> _Finding:
        if holder := census.holder_of_rights(self._proc):
            return False, holder
        for which in ("bset", "inheritable"):
            # Programs that the kernel starts by itself, for a core file or a module, do not descend from process 1.
            words = self._text(f"sys/kernel/usermodehelper/{which}").split()
            try:
                low, high = (int(word) for word in words)
            except ValueError:
                raise Unknown(f"{self._proc}/sys/kernel/usermodehelper/{which} is no pair of numbers") from None
            if held := census.rights(high << _WORD_BITS | low):
                return False, f"programs that the kernel starts have {', '.join(held)} ({which})"
        most = self._number("sys/user/max_user_namespaces")
        return most == 0, "no process has any or can regain it" if most == 0 else "user namespaces give rights"

    def _sysctl(self) -> _Finding:
        writer = census.writer_of_sysctls(self._proc)
        return writer is None, writer or "/proc/sys is read-only for all"

    def _bpf(self) -> _Finding:
        value = self._number("sys/kernel/unprivileged_bpf_disabled")
        if value not in (1, 2):
            return False, "open to all users"
        return self._without_rights("closed to all")

    def _perf(self) -> _Finding:
        value = self._number("sys/kernel/perf_event_paranoid")
        if value < _PERF_CLOSED:
            return False, f"perf_event_paranoid {value}: less than {_PERF_CLOSED}"
        if writer := census.writer_of_sysctls(self._proc):
            return False, f"perf_event_paranoid {value} can be lowered: {writer}"
        return self._without_rights("closed to all")

    def _without_rights(self, reason: str) -> _Finding:
        closed = census.holder_of_rights(self._proc) is None
        return closed, reason if closed else "open to processes that have rights: see host-rights"

    def _swap(self) -> _Finding:
        table = "" if self._absent(self._proc / "swaps") else self._text("swaps")
        used = [line.split()[0] for line in table.splitlines()[1:]]
        if used:  # encrypted or not: root reads the device in the clear while it is in use
            return False, f"swap on {_shown(', '.join(used))}"
        resume = self._sys / "power/resume"
        if not self._absent(resume) and (target := text_of(resume).strip()) != "0:0":
            return False, f"a hibernation image may go to {_shown(target)}"
        return True, "no swap, no hibernation image"

    def _core(self) -> _Finding:
        pattern, others = self._text("sys/kernel/core_pattern"), self._number("sys/fs/suid_dumpable")
        if pattern[:1] in ("|", "@"):  # neither heeds the limit on core files; a socket since Linux 6.16
            return False, f"core files go to another process: {_shown(pattern)}"
        return others == 0, "core files go to no process" if others == 0 else f"suid_dumpable {others}"


def _covering(mounts: list[Mount], path: str, kinds: set[str]) -> None:
    """Makes sure that the mount at a path is of one of these kinds, and hides nothing."""
    at = [m for m in mounts if path == m.point or path.startswith(f"{m.point.rstrip('/')}/")]
    top = max(enumerate(at), key=lambda one: (len(one[1].point), one[0]))[1] if at else None
    if top is None or top.kind not in kinds:
        raise Unknown(f"{path} is not the kernel's")
    hiding = [o for o in top.options if o.startswith(("hidepid=", "subset="))]
    if hiding and top.kind == "proc":
        raise Unknown(f"/proc does not show every process: {_shown(hiding[0])}")


def _shown(text: str) -> str:
    """Text from outside, for a reason: plain and short."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)[:_MOST_SHOWN]
