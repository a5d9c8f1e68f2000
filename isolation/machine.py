"""The protections of the group `host`: whether this machine stops root from reaching other processes.

The kernel provides them. They are read at each start of an enclave, from inside it and before it gives up its rights. A
protection that cannot be read does not count as on. Nothing is changed here; a machine must be locked before anything
else runs on it. The folder's README says what each protection stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from variegate.attest.groups import HOST, HOST_PROTECTIONS, of_host
from variegate.isolation import census, syscalls
from variegate.isolation.census import Mount
from variegate.isolation.kernel_files import Tree, Unknown, tree
from variegate.runtime.enclave import Protection, ProtectionState

_PROC, _SYS = Path("/proc"), Path("/sys")
_OURS_TO_SEE = {"pid": "pid:[4026531836]", "user": "user:[4026531837]"}
"""Where the kernel's first namespaces are: their numbers are fixed."""
_SECURITY = "/sys/kernel/security"
_PLACES = {
    "/proc": ("proc", "/"),
    "/proc/sys": ("proc", "/sys"),
    "/sys": ("sysfs", "/"),
    _SECURITY: ("securityfs", "/"),
}
"""Mounts that are allowed: a file system and the part of it. A device's image makes its settings read-only with one."""
_OF_OTHERS = "/proc/sys/fs/binfmt_misc"
"""How programs for other machines are run: nothing is read there."""
_READ = (f"{_SECURITY}/lockdown", "/sys/power/resume", "/sys/kernel/kexec_loaded", "/sys/kernel/kexec/loaded")
"""The parts of `/sys` that are read."""
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
    return tuple(_measured(name, proc, sys) for name in HOST_PROTECTIONS)


def ptrace(*, proc: Path = _PROC) -> Protection:
    """`host-ptrace` alone: whether nobody on this machine can trace a process, its supervisor neither."""
    return _measured("host-ptrace", proc, _SYS)


def summary(protections: Iterable[Protection]) -> Protection:
    """The group as one: on when all of it is.

    Args:
        protections: Protections of a device, of any kind.
    """
    states = {p.name: p.state for p in protections if of_host(p.name)}
    if not states:
        return Protection(HOST, ProtectionState.UNAVAILABLE, "not measured")
    names = dict.fromkeys((*HOST_PROTECTIONS, *states))
    missing = [name for name in names if states.get(name) != ProtectionState.ON]
    return Protection.when(HOST, not missing, f"missing: {', '.join(missing)}" if missing else "nothing is missing")


def _measured(name: str, proc: Path, sys: Path) -> Protection:
    """One protection; unavailable where the kernel does not say."""
    try:
        with tree(proc) as processes, tree(proc / "sys") as settings, tree(sys) as objects:
            return Protection.when(name, *_Machine(processes, settings, objects).look(name))
    except OSError as error:
        why = f"{error.filename}: this kernel answers {syscalls.name_of(error)}"
    except Unknown as error:
        why = str(error)
    return Protection(name, ProtectionState.UNAVAILABLE, why)


class _Machine:
    """One look at a machine."""

    def __init__(self, proc: Tree, settings: Tree, sys: Tree) -> None:
        """Makes sure that the files are the machine's, not those of a container, and not mounted over.

        Raises:
            OSError: As the kernel answers.
            Unknown: It is not.
        """
        self._proc, self._settings, self._sys = proc, settings, sys
        self._real = proc.path == _PROC  # files that tests make are mounted nowhere
        if self._real and not proc.all_of("proc"):  # else it could say anything of itself
            raise Unknown("/proc is not the kernel's")
        for kind, first in _OURS_TO_SEE.items():
            if proc.link(f"self/ns/{kind}") != first:
                raise Unknown(f"this process runs in a {kind} namespace of its own and does not see the machine")
        self._mounts = census.mounts_of(proc.text("self/mountinfo"))
        for mount in self._mounts:
            _fitting(mount)
        self._lies_at(proc, "/proc")
        self._lies_at(settings, "/proc", "/proc/sys")
        self._lies_at(sys, "/sys")

    def _lies_at(self, seen: Tree, *points: str) -> None:
        """Makes sure that a folder was opened through a mount at one of these places, not through one laid over it.

        Raises:
            OSError: As the kernel answers.
            Unknown: It was not.
        """
        number = seen.mount() if self._real else None
        at = next((m for m in self._mounts if m.point in points and number in (m.number, None)), None)
        if at is None:
            raise Unknown(f"nothing of the kernel's is mounted on {points[-1]}")
        if self._real and points[-1] != "/proc/sys" and not seen.all_of(at.kind):
            raise Unknown(f"{points[-1]} is not the kernel's")

    def look(self, name: str) -> _Finding:
        """Examines the settings of one protection.

        Raises:
            OSError: As the kernel answers.
            Unknown: The kernel does not say.
        """
        looks: dict[str, Callable[[], _Finding]] = {
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
        return looks[name]()

    def _setting(self, name: str) -> str:
        return self._settings.text(name).strip()

    def _number(self, name: str) -> int:
        text = self._setting(name)
        try:
            return int(text)
        except ValueError:
            raise Unknown(f"{self._settings.path / name} holds no number") from None

    def _absent(self, *files: tuple[Tree, str]) -> bool:
        """Whether the kernel lacks something altogether, all other settings being there."""
        self._setting("kernel/ostype")
        return not any(seen.has(name) for seen, name in files)

    def _ptrace(self) -> _Finding:
        scope = self._number("kernel/yama/ptrace_scope")
        return scope == _NO_ATTACH, f"Yama {scope}" + ("" if scope == _NO_ATTACH else ": 3 is final and closed to all")

    def _lockdown(self) -> _Finding:
        # The command line is no evidence: a kernel that does not know the option ignores it.
        with tree(self._sys.path / "kernel/security") as security:
            self._lies_at(security, _SECURITY)
            text = security.text("lockdown").strip()
        return "[confidentiality]" in text.split(), _shown(text)

    def _modules(self) -> _Finding:
        if self._absent((self._settings, "kernel/modules_disabled"), (self._proc, "modules")):
            return True, "this kernel has no modules"
        off = self._number("kernel/modules_disabled") == 1
        return off, "no more can be loaded, for good" if off else "modules can be loaded"

    def _kexec(self) -> _Finding:
        places = ((self._sys, "kernel/kexec_loaded"), (self._sys, "kernel/kexec/loaded"))
        if self._absent((self._settings, "kernel/kexec_load_disabled"), *places):
            return True, "this kernel has no kexec"
        off = self._number("kernel/kexec_load_disabled") == 1
        return off, "no kernel can be loaded, for good" if off else "another kernel can be loaded"

    def _rights(self) -> _Finding:
        if holder := census.holder_of_rights(self._proc):
            return False, holder
        for which in ("bset", "inheritable"):
            # Programs that the kernel starts by itself, for a core file or a module, do not descend from process 1.
            words = self._setting(f"kernel/usermodehelper/{which}").split()
            try:
                low, high = (int(word) for word in words)
            except ValueError:
                raise Unknown(f"{self._settings.path}/kernel/usermodehelper/{which} is not a pair of numbers") from None
            if held := census.rights(high << _WORD_BITS | low):
                return False, f"programs that the kernel starts have {', '.join(held)} ({which})"
        most = self._number("user/max_user_namespaces")
        return most == 0, "no process has any or can regain it" if most == 0 else "user namespaces give rights"

    def _sysctl(self) -> _Finding:
        writer = census.writer_of_sysctls(self._proc)
        return writer is None, writer or "/proc/sys is read-only for all"

    def _bpf(self) -> _Finding:
        value = self._number("kernel/unprivileged_bpf_disabled")
        if value not in (1, 2):
            return False, "open to all users"
        return self._without_rights("closed to all")

    def _perf(self) -> _Finding:
        value = self._number("kernel/perf_event_paranoid")
        if value < _PERF_CLOSED:
            return False, f"perf_event_paranoid {value}: less than {_PERF_CLOSED}"
        if writer := census.writer_of_sysctls(self._proc):
            return False, f"perf_event_paranoid {value} can be lowered: {writer}"
        return self._without_rights("closed to all")

    def _without_rights(self, reason: str) -> _Finding:
        closed = census.holder_of_rights(self._proc) is None
        return closed, reason if closed else "open to processes that have rights: see host-rights"

    def _swap(self) -> _Finding:
        table = "" if self._absent((self._proc, "swaps")) else self._proc.text("swaps").strip()
        used = [line.split()[0] for line in table.splitlines()[1:]]
        if used:  # encrypted or not: root reads the device in the clear while it is in use
            return False, f"swap on {_shown(', '.join(used))}"
        resume = (self._sys, "power/resume")
        if not self._absent(resume) and (target := self._sys.text("power/resume").strip()) != "0:0":
            return False, f"a hibernation image may go to {_shown(target)}"
        return True, "no swap, no hibernation image"

    def _core(self) -> _Finding:
        pattern, others = self._setting("kernel/core_pattern"), self._number("fs/suid_dumpable")
        if pattern[:1] in ("|", "@"):  # neither heeds the limit on core files; a socket since Linux 6.16
            return False, f"core files go to another process: {_shown(pattern)}"
        return others == 0, "core files go to no process" if others == 0 else f"suid_dumpable {others}"


def _fitting(mount: Mount) -> None:
    """Makes sure that no mount hides a file that is read.

    Raises:
        Unknown: It may.
    """
    point = mount.point
    if point in _PLACES:
        if (mount.kind, mount.root) != _PLACES[point]:
            raise Unknown(f"{point} is not the kernel's")
        hiding = [o for o in mount.options if o.startswith(("hidepid=", "subset="))]
        if hiding and mount.kind == "proc":
            raise Unknown(f"/proc does not show every process: {_shown(hiding[0])}")
    elif _within(point, "/proc"):
        if not _within(point, _OF_OTHERS):
            raise Unknown(f"{_shown(point)} is covered by something else")
    elif point != "/" and any(_within(path, point) for path in _READ):
        raise Unknown(f"{_shown(point)} is covered by something else")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _shown(text: str) -> str:
    """Text from outside, for a reason: plain and short."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)[:_MOST_SHOWN]
