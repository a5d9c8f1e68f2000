"""A made-up machine that stops root altogether: what its `/proc` and `/sys` hold, to be spoilt one piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MOUNTS = """\
21 27 0:21 / /proc rw,relatime - proc proc rw
22 21 0:21 /sys /proc/sys ro,relatime - proc proc rw
23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw
24 23 0:7 / /sys/kernel/security rw,relatime - securityfs securityfs rw
27 1 254:0 / / ro,relatime - squashfs /dev/dm-0 ro
"""
ALL_RIGHTS = 0x1FF_FFFF_FFFF
_REACHING = (16, 17, 19, 21, 38, 39, 40)


def status(rights: int = 0, sets: Mapping[str, int] | None = None) -> str:
    """A thread's `status`, all of whose sets of rights are `rights` but for those in `sets`."""
    values = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), rights) | dict(sets or {})
    return (
        "Name:\tsome) name\nUmask:\t0022\n" + "".join(f"{n}:\t{v:016x}\n" for n, v in values.items()) + "Seccomp:\t0\n"
    )


def stat(pid: int, *, kernel: bool = False, state: str = "S") -> str:
    """A thread's `stat`, with a name made to confuse."""
    return f"{pid} (a) S 1 (b) {state} 1 1 0 0 -1 {0x200040 if kernel else 0x400100} 0 0\n"


def thread(
    pid: int, tid: int, *, rights: int = 0, kernel: bool = False, sets: Mapping[str, int] | None = None
) -> dict[str, str]:
    """The files of one thread."""
    at = f"proc/{pid}/task/{tid}"
    return {f"{at}/stat": stat(tid, kernel=kernel), f"{at}/status": status(rights, sets), f"{at}/mountinfo": MOUNTS}


HARMLESS = ALL_RIGHTS & ~sum(1 << bit for bit in _REACHING)
"""All rights but those with which root reaches other processes."""
LOCKED: Mapping[str, str] = {
    "proc/self/mountinfo": MOUNTS,
    **thread(1, 1, rights=HARMLESS),
    **thread(2, 2, rights=ALL_RIGHTS, kernel=True),
    **thread(70, 70),
    **thread(70, 71),
    "proc/modules": "",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    "proc/sys/fs/suid_dumpable": "0\n",
    "proc/sys/kernel/core_pattern": "core\n",
    "proc/sys/kernel/kexec_load_disabled": "1\n",
    "proc/sys/kernel/modules_disabled": "1\n",
    "proc/sys/kernel/ostype": "Linux\n",
    "proc/sys/kernel/perf_event_paranoid": "3\n",
    "proc/sys/kernel/unprivileged_bpf_disabled": "1\n",
    "proc/sys/kernel/usermodehelper/bset": f"{HARMLESS & 0xFFFF_FFFF}\t{HARMLESS >> 32}\n",
    "proc/sys/kernel/usermodehelper/inheritable": "0\t0\n",
    "proc/sys/kernel/yama/ptrace_scope": "3\n",
    "proc/sys/user/max_user_namespaces": "0\n",
    "sys/kernel/kexec_loaded": "0\n",
    "sys/kernel/security/lockdown": "none integrity [confidentiality]\n",
    "sys/power/resume": "0:0\n",
}
LINKS = {"proc/self/ns/pid": "pid:[4026531836]", "proc/self/ns/user": "user:[4026531837]"}


def made(folder: Path, changes: Mapping[str, str | None] | None = None) -> dict[str, Path]:
    """Writes the machine, with changes: other files, or None for what is not there.

    Returns:
        The arguments of `machine.protections`.
    """
    found = {**LOCKED, **LINKS, **(changes or {})}
    for name, text in found.items():
        if text is None:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in LINKS:
            path.symlink_to(text)
        else:
            path.write_text(text)
    return {"proc": folder / "proc", "sys": folder / "sys"}
