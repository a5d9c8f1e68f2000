"""First process of a device image: locks the machine, starts the device, and ends the machine when the device ends.

Run by the initramfs as `python3.11 -I -B -m variegate.device_sim.image.guest`. It is measured with root file system and
command line, and reads no other configuration. Every step must succeed, or the machine ends.

Order: file systems -> sysctls -> no writable sysctls -> capabilities given up for good, by all later processes too ->
the device, after which the TPM gives its key to nobody else -> root's shell, if the image has one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from variegate.isolation import syscalls

_BUSYBOX = "/bin/busybox"
_LOCKED = "locked"
_TEMPORARY = "/tmp"  # noqa: S108  nobody else is on this machine
_PORT = 8000
_ADDRESS = "10.0.2.15"
"""Address of the only guest in QEMU's user network; only one forwarded port reaches it."""
_START_S = 600.0
_SHELL_LINE = "/dev/ttyS1"
_CHIP, _TPM = Path("/device/fuses/chip.json"), "device:/dev/tpmrm0"
"""Another TPM, or an imitation, would not close this one."""
_CLOSED = Path("/sys/class/tpm/tpm0/pcr-sha256/14")

SYSCTLS = {
    "kernel/yama/ptrace_scope": "3",
    "kernel/modules_disabled": "1",
    "kernel/kexec_load_disabled": "1",
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/perf_event_paranoid": "3",
    "kernel/core_pattern": "core",
    "kernel/kptr_restrict": "2",
    "kernel/sysrq": "0",
    "fs/suid_dumpable": "0",
    "user/max_user_namespaces": "0",
    # Programs that the kernel starts by itself descend from no locked process.
    "kernel/usermodehelper/inheritable": "0 0",
    "kernel/usermodehelper/bset": "0 0",
}
"""Under /proc/sys; the first three, and the last two, cannot be taken back."""
GIVEN_UP = {
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYS_TIME": 25,
    "MKNOD": 27,
    "MAC_OVERRIDE": 32,
    "MAC_ADMIN": 33,
    "SYSLOG": 34,
    "PERFMON": 38,
    "BPF": 39,
    "CHECKPOINT_RESTORE": 40,
}
"""Capabilities (capabilities(7)) that no process of the machine has again. The rest of root's rights stay."""
_BOUNDING_DROP = 24


def main() -> None:
    """Runs as process 1; does not return."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which the kernel keeps from process 1
    try:
        if _LOCKED in sys.argv[1:]:
            _serve()
        else:
            _prepare()
    except Exception as error:  # noqa: BLE001  process 1 must not end by an exception: the kernel would panic
        say(f"{type(error).__name__}: {error}")
    say("the machine ends")
    os.sync()
    _run("poweroff", "-f")


def say(text: str) -> None:
    """Says something on the console."""
    print(f"image: {text}", flush=True)


def _prepare() -> None:
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin:/usr/sbin:/sbin", HOME=_TEMPORARY, LC_ALL="C.UTF-8")
    for kind, place, options in (
        ("tmpfs", _TEMPORARY, "nosuid,nodev"),
        ("tmpfs", "/run", "nosuid,nodev"),
        ("securityfs", "/sys/kernel/security", "ro"),
    ):
        _run("mount", "-t", kind, "-o", options, kind, place)
    _run("mount", "-t", "ext4", "-o", "nosuid,nodev,noexec", "/dev/vdb", "/device")
    _run("ifconfig", "lo", "127.0.0.1", "up")
    _run("ifconfig", "eth0", _ADDRESS, "netmask", "255.255.255.0", "up")
    words = Path("/proc/cmdline").read_text().split()
    if "variegate.lock=0" in words:
        say("NOT LOCKED: root reaches everything here")
        _run("mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")
    else:
        _lock()
    # Executed again: the kernel then derives root's rights from the remaining ones.
    os.execv(sys.executable, [sys.executable, "-I", "-B", "-m", __spec__.name, _LOCKED])  # noqa: S606


def _lock() -> None:
    for name, value in SYSCTLS.items():
        path = Path("/proc/sys", name)
        path.write_text(value)
    _run("mount", "--bind", "/proc/sys", "/proc/sys")
    for place in ("/proc/sys", "/sys"):
        _run("mount", "-o", "remount,bind,ro,nosuid,nodev,noexec", place)
    # No other file in the TPM's place: the supervisor's counts must reach the true TPM.
    _run("mount", "-o", "remount,bind,ro,nosuid,noexec", "/dev")
    for number in GIVEN_UP.values():
        syscalls.prctl(_BOUNDING_DROP, number)


def _serve() -> None:
    began = time.monotonic()
    if json.loads(_CHIP.read_text()).get("tcti") != _TPM:
        raise ValueError("the device's chip does not use this machine's TPM")
    command = [sys.executable, "-I", "-B", "-m", "variegate.cli.main", "device", "serve", "/device"]
    device = subprocess.Popen(  # noqa: S603  this package
        [*command, "--host", "0.0.0.0", "--port", str(_PORT), "--evidence"],  # noqa: S104  the machine's only address
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    shell = "variegate.shell=1" in Path("/proc/cmdline").read_text().split()
    while not _closed() and time.monotonic() - began < _START_S and device.poll() is None:
        time.sleep(0.2)
    if device.poll() is None and _closed():
        say(f"serving {time.monotonic() - began:.0f} s after the lock")
        _wait(device.pid, shell=shell)
    else:
        say("the device does not start")


def _closed() -> bool:
    """Whether the TPM's key is closed: from here on root may look around."""
    try:
        return int(_CLOSED.read_text(), 16) != 0
    except (OSError, ValueError):
        return False


def _wait(device: int, *, shell: bool) -> None:
    """Waits for the device, reaps other processes, and keeps a shell running."""
    running = _shell() if shell else None
    while True:
        pid, _ = os.wait()
        if pid == device:
            return
        if pid == running:
            running = _shell()


def _shell() -> int:
    """Root's shell on the second serial line, a session of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        line = os.open(_SHELL_LINE, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(line, number)
        os.execv(_BUSYBOX, ["sh", "-i"])  # noqa: S606
    return pid


def _run(*words: str) -> None:
    subprocess.run([_BUSYBOX, *words], check=True, stdin=subprocess.DEVNULL)  # noqa: S603


if __name__ == "__main__":
    main()
