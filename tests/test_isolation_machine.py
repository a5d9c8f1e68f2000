"""The group `host`: what is read of a machine, made up and real; and a device that requires it stays shut elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for
from tests.support import machines
from tests.support.machines import ALL_RIGHTS, HARMLESS, MOUNTS, stat, thread
from variegate.attest.groups import HOST, HOST_PROTECTIONS, members
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import POLICY_FILE, host_of
from variegate.isolation import machine, tracing
from variegate.isolation.census import RIGHTS
from variegate.isolation.memory import sealed
from variegate.isolation.policy import DevicePolicy
from variegate.keys.errors import DeviceError, VariegateError
from variegate.runtime.enclave import Protection, ProtectionState

ON, OFF, UNAVAILABLE = ProtectionState.ON, ProtectionState.OFF, ProtectionState.UNAVAILABLE
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the control does what root can")
SIGNER = MemorySigner()
_NUMBERS = {"x86_64": {"finit_module": 313, "kexec_load": 246}, "aarch64": {"finit_module": 273, "kexec_load": 104}}


def states(found: tuple[Protection, ...]) -> dict[str, ProtectionState]:
    assert tuple(p.name for p in found) == HOST_PROTECTIONS
    # What a token takes as a reason.
    assert all(0 < len(p.reason) <= 300 and p.reason.isprintable() for p in found)
    return {p.name: p.state for p in found}


def test_a_machine_that_stops_root_has_all_of_the_group_on(tmp_path: Path) -> None:
    found = machine.protections(**machines.made(tmp_path))
    assert set(states(found).values()) == {ON}, found
    assert machine.summary(found).state == ON


_BY_RIGHTS = {"host-rights": OFF, "host-bpf": OFF, "host-perf": OFF}
_BY_RIGHTS_UNKNOWN = {"host-rights": UNAVAILABLE, "host-bpf": UNAVAILABLE, "host-perf": UNAVAILABLE}
_BY_CENSUS = {**_BY_RIGHTS_UNKNOWN, "host-sysctl": UNAVAILABLE}
_BY_SYSCTL = {"host-sysctl": OFF, "host-perf": OFF}
_RW = MOUNTS.replace("/proc/sys ro", "/proc/sys rw")
_OPEN = MOUNTS.replace("22 21 0:21 /sys /proc/sys ro,relatime - proc proc rw\n", "")
_KERNEL = "proc/sys/kernel"
_MOUNTS_OF_80 = "proc/80/task/80/mountinfo"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({f"{_KERNEL}/yama/ptrace_scope": "2\n"}, {"host-ptrace": OFF}),
        ({f"{_KERNEL}/yama/ptrace_scope": None}, {"host-ptrace": UNAVAILABLE}),
        ({f"{_KERNEL}/yama/ptrace_scope": "\n"}, {"host-ptrace": UNAVAILABLE}),
        ({f"{_KERNEL}/yama/ptrace_scope": "33\n"}, {"host-ptrace": OFF}),
        ({"sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, {"host-lockdown": OFF}),
        ({"sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}, {"host-lockdown": OFF}),
        ({"sys/kernel/security/lockdown": None}, {"host-lockdown": UNAVAILABLE}),
        (
            {"sys/kernel/security/lockdown": None, "proc/cmdline": "lockdown=confidentiality\n"},
            {"host-lockdown": UNAVAILABLE},
        ),
        ({f"{_KERNEL}/modules_disabled": "0\n"}, {"host-modules": OFF}),
        ({f"{_KERNEL}/modules_disabled": None}, {"host-modules": UNAVAILABLE}),
        ({f"{_KERNEL}/modules_disabled": None, "proc/modules": None}, {}),
        ({f"{_KERNEL}/kexec_load_disabled": "0\n"}, {"host-kexec": OFF}),
        ({f"{_KERNEL}/kexec_load_disabled": None}, {"host-kexec": UNAVAILABLE}),
        ({f"{_KERNEL}/kexec_load_disabled": None, "sys/kernel/kexec_loaded": None}, {}),
        # One thread is enough, in any of its sets, and so is process 1 itself.
        *(
            (thread(70, 71, sets={name: 1 << bit}), _BY_RIGHTS)
            for name, bit in zip(
                ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "CapBnd", "CapPrm"), RIGHTS, strict=True
            )
        ),
        (thread(1, 1, rights=ALL_RIGHTS), _BY_RIGHTS),
        (thread(70, 72, rights=HARMLESS), {}),
        # It has ended, and shows no mounts any more.
        ({**thread(80, 80, rights=ALL_RIGHTS), "proc/80/task/80/stat": stat(80, state="Z"), _MOUNTS_OF_80: None}, {}),
        ({"proc/70/task/71/status": "Name:\tx\n"}, _BY_RIGHTS_UNKNOWN),
        ({"proc/70/task/71/stat": "71 (x)\n"}, _BY_CENSUS),
        ({"proc/70/task/71/stat": None}, _BY_CENSUS),  # neither there nor gone
        ({f"proc/1/task/1/{name}": None for name in ("stat", "status", "mountinfo")}, _BY_CENSUS),
        ({f"{_KERNEL}/usermodehelper/bset": "4294967295\t511\n"}, {"host-rights": OFF}),
        ({f"{_KERNEL}/usermodehelper/bset": "0\t128\n"}, {"host-rights": OFF}),  # CAP_BPF, in the second word
        ({f"{_KERNEL}/usermodehelper/inheritable": "2097152\t0\n"}, {"host-rights": OFF}),
        ({f"{_KERNEL}/usermodehelper/bset": "0\n"}, {"host-rights": UNAVAILABLE}),
        ({f"{_KERNEL}/usermodehelper/bset": None}, {"host-rights": UNAVAILABLE}),
        ({"proc/sys/user/max_user_namespaces": "1\n"}, {"host-rights": OFF}),
        ({"proc/sys/user/max_user_namespaces": None}, {"host-rights": UNAVAILABLE}),
        # Any process that sees it writable is enough; a second mount of it counts, and one laid over by a writable one.
        ({"proc/70/task/71/mountinfo": _RW}, _BY_SYSCTL),
        ({"proc/70/task/71/mountinfo": _OPEN}, _BY_SYSCTL),
        ({"proc/1/task/1/mountinfo": MOUNTS + "40 27 0:21 / /mnt/p rw - proc proc rw\n"}, _BY_SYSCTL),
        ({"proc/1/task/1/mountinfo": MOUNTS + "40 27 0:21 /sys/kernel /mnt/p rw - proc proc rw\n"}, _BY_SYSCTL),
        ({"proc/1/task/1/mountinfo": MOUNTS + "40 22 0:21 /sys /proc/sys rw - proc proc rw\n"}, _BY_SYSCTL),
        # A second one over the first, whose read-only part is out of sight; and one that is out of sight itself.
        ({"proc/1/task/1/mountinfo": MOUNTS + "40 21 0:21 / /proc rw - proc proc rw\n"}, _BY_SYSCTL),
        ({"proc/1/task/1/mountinfo": "20 27 0:21 / /proc rw - proc proc rw\n" + MOUNTS.replace("21 27", "21 20")}, {}),
        ({"proc/1/task/1/mountinfo": MOUNTS + "40 27 0:21 / /mnt/p ro - proc proc rw\n"}, {}),
        ({"proc/1/task/1/mountinfo": _OPEN.replace("proc proc rw", "proc proc ro")}, {}),
        ({"proc/1/task/1/mountinfo": "what is this\n"}, {"host-sysctl": UNAVAILABLE, "host-perf": UNAVAILABLE}),
        ({f"{_KERNEL}/unprivileged_bpf_disabled": "0\n"}, {"host-bpf": OFF}),
        ({f"{_KERNEL}/unprivileged_bpf_disabled": "2\n"}, {}),
        ({f"{_KERNEL}/unprivileged_bpf_disabled": None}, {"host-bpf": UNAVAILABLE}),
        ({f"{_KERNEL}/perf_event_paranoid": "2\n"}, {"host-perf": OFF}),
        ({f"{_KERNEL}/perf_event_paranoid": "-1\n"}, {"host-perf": OFF}),
        ({f"{_KERNEL}/perf_event_paranoid": None}, {"host-perf": UNAVAILABLE}),
        ({"proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 -2\n"}, {"host-swap": OFF}),
        # Root reads what is swapped out through the device, which decrypts.
        (
            {
                "proc/swaps": "Filename Type Size Used Priority\n/dev/dm-1 partition 1 0 -2\n",
                "sys/block/dm-1/dm/uuid": "CRYPT-PLAIN-swap\n",
            },
            {"host-swap": OFF},
        ),
        ({"sys/power/resume": "254:2\n"}, {"host-swap": OFF}),
        ({"sys/power/resume": None, "proc/swaps": None}, {}),
        ({f"{_KERNEL}/core_pattern": "|/bin/x\u0007 %p\n"}, {"host-core": OFF}),
        ({f"{_KERNEL}/core_pattern": "@/run/cores\n"}, {"host-core": OFF}),
        ({"proc/sys/fs/suid_dumpable": "2\n"}, {"host-core": OFF}),
        ({f"{_KERNEL}/core_pattern": None}, {"host-core": UNAVAILABLE}),
    ],
)
def test_each_gap_is_found_and_named(
    tmp_path: Path, changes: dict[str, str | None], expected: dict[str, ProtectionState]
) -> None:
    found = machine.protections(**machines.made(tmp_path, changes))
    assert states(found) == {**dict.fromkeys(HOST_PROTECTIONS, ON), **expected}
    host = machine.summary(found)
    assert (host.state == ON) == (not expected)
    assert all(name in host.reason for name in expected)


def _hiding(option: str) -> str:
    return MOUNTS.replace("/proc rw,relatime - proc proc rw", f"/proc rw - proc proc rw,{option}")


# The kernel's own files over others of its own, as `mount --bind` makes them.
_BINDS = (
    "40 22 0:21 /sys/net/ipv4/tcp_syn_retries /proc/sys/kernel/yama/ptrace_scope ro - proc proc rw\n",
    "40 22 0:21 /sys/net/ipv4 /proc/sys/kernel ro - proc proc rw\n",
    "40 22 0:21 /sys/net/ipv4 /proc/sys ro - proc proc rw\n",
    "40 21 0:21 /70/task/70/status /proc/1/task/1/status rw - proc proc rw\n",
    "40 21 0:21 /70/task/70/mountinfo /proc/1/task/1/mountinfo rw - proc proc rw\n",
    "40 21 0:21 /70/mountinfo /proc/self/mountinfo rw - proc proc rw\n",
    "40 27 0:21 /70 /proc rw - proc proc rw\n",
    # It holds whatever root writes there.
    "40 24 0:22 /devices/virtual/net/lo/ifalias /sys/kernel/security/lockdown rw - sysfs sysfs rw\n",
    "40 23 0:22 /devices/virtual/net/lo /sys/kernel/security rw - sysfs sysfs rw\n",
    "40 24 0:7 /lsm /sys/kernel/security/lockdown rw - securityfs securityfs rw\n",
    "40 23 0:22 /devices/virtual/net/lo /sys/kernel rw - sysfs sysfs rw\n",
    "40 23 0:22 /kernel/uevent_seqnum /sys/power/resume rw - sysfs sysfs rw\n",
    "40 27 0:22 /devices/virtual/net/lo /sys rw - sysfs sysfs rw\n",
)


@pytest.mark.parametrize(
    "changes",
    [
        {"proc/self/ns/pid": "pid:[4026532177]"},  # a container: its own processes only
        {"proc/self/ns/user": "user:[4026532177]"},
        {"proc/self/ns/pid": None},
        {"proc/self/mountinfo": None},
        {"proc/self/mountinfo": _hiding("hidepid=2")},
        {"proc/self/mountinfo": _hiding("subset=pid")},
        {"proc/self/mountinfo": MOUNTS + "41 27 0:50 / /proc rw - tmpfs tmpfs rw\n"},
        {"proc/self/mountinfo": MOUNTS + "41 22 0:50 / /proc/sys/kernel ro - tmpfs tmpfs rw\n"},
        {"proc/self/mountinfo": MOUNTS + "41 21 0:50 / /proc/swaps ro - fuse.lxcfs lxcfs rw\n"},
        {"proc/self/mountinfo": MOUNTS + "41 24 0:50 /f /sys/kernel/security/lockdown ro - ext4 /dev/vda rw\n"},
        {"proc/self/mountinfo": MOUNTS + "41 27 0:50 / /sys ro - tmpfs tmpfs rw\n"},
        {"proc/self/mountinfo": ""},
        *({"proc/self/mountinfo": MOUNTS + line} for line in _BINDS),
    ],
)
def test_where_the_machine_is_not_to_be_seen_nothing_is_on(tmp_path: Path, changes: dict[str, str | None]) -> None:
    found = machine.protections(**machines.made(tmp_path, changes))
    assert set(states(found).values()) == {UNAVAILABLE}, found


def test_what_lies_over_proc_for_programs_of_other_machines_is_nothing_of_ours(tmp_path: Path) -> None:
    mounts = MOUNTS + "41 22 0:50 / /proc/sys/fs/binfmt_misc rw - binfmt_misc binfmt_misc rw\n"
    found = machine.protections(**machines.made(tmp_path, {"proc/self/mountinfo": mounts}))
    assert set(states(found).values()) == {ON}


def test_the_group_is_all_that_a_device_knows_and_whatever_more_it_reports() -> None:
    assert members(("memory", HOST), ()) == ("memory", *HOST_PROTECTIONS)
    assert members((HOST, "host-core"), ("memory", "host-core", "host-new")) == (*HOST_PROTECTIONS, "host-new")
    assert members(("memory",), ("host-new",)) == ("memory",)
    more = (*(Protection.when(name, True, "x") for name in HOST_PROTECTIONS), Protection.when("host-new", False, "x"))
    assert machine.summary(more) == Protection(HOST, OFF, "missing: host-new")
    assert machine.summary(()).state == UNAVAILABLE


def test_who_holds_a_process_where_nobody_may_trace() -> None:
    final, lower = Protection.when("host-ptrace", True, "Yama 3"), Protection.when("host-ptrace", False, "Yama 2")
    refused = PermissionError(errno.EPERM, "no")
    assert tracing._refused(refused, final) == Protection("ptrace", ON, "held by the host: Yama 3")
    assert tracing._refused(refused, lower).state == UNAVAILABLE
    assert tracing._refused(ProcessLookupError(errno.ESRCH, "gone"), final).state == UNAVAILABLE


# What the kernel does on this machine, whatever machine it is, beside what is reported of it.


def call(name: str, *arguments: int) -> str | None:
    """The name of the error of a system call."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = _NUMBERS[platform.machine()][name]
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) == -1:
        return errno.errorcode[ctypes.get_errno()]
    return None


def opens(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except OSError:
        return False
    return True


@needs_root
@pytest.mark.skipif(platform.machine() not in _NUMBERS, reason="numbers of system calls are not known here")
def test_what_is_reported_of_this_machine_is_what_its_kernel_does() -> None:
    found = states(machine.protections())
    assert set(RIGHTS.values()) >= {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}
    for name, refused in (
        # Both look at rights before they look at arguments that cannot be right, so nothing happens.
        ("host-modules", call("finit_module", -1, 0, 0) in {"EPERM", "ENOSYS"}),
        ("host-kexec", call("kexec_load", 0, 0, 0, 0xDEAD) in {"EPERM", "ENOSYS"}),
        ("host-sysctl", not opens("/proc/sys/kernel/core_pattern", os.O_WRONLY)),
    ):
        if found[name] == ON:
            assert refused, name
    bounding = next(line for line in Path("/proc/1/status").read_text().splitlines() if line.startswith("CapBnd:"))
    if int(bounding.split()[1], 16) >> 21 & 1:
        assert found["host-rights"] == OFF or found["host-rights"] == UNAVAILABLE
        assert found["host-bpf"] != ON
        assert found["host-perf"] != ON
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as sibling:
        memory = opens(f"/proc/{sibling.pid}/mem", os.O_RDONLY)
        sibling.communicate(b"\n")
    if found["host-ptrace"] == ON:
        assert not memory
    elif int(bounding.split()[1], 16) >> 19 & 1:
        assert memory


@needs_root
def test_a_census_of_real_processes() -> None:
    """In a PID namespace, where all processes are this test's: without rights and writable settings, and with."""
    script = """
import os
from pathlib import Path
from variegate.isolation import census, machine
from variegate.isolation import kernel_files as seen
if os.fork() == 0:
    os._exit(0)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # ended, and there as long as nobody asks for it
with seen.tree(Path("/proc")) as proc:
    print(census.holder_of_rights(proc), census.writer_of_sysctls(proc), sep="|")
print({p.state for p in machine.protections()} == {"unavailable"})
"""
    inside = f"exec setpriv --bounding-set=-all --inh-caps=-all {sys.executable} -c '{script}'"
    closed = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
    said = {}
    for name, command in {
        "closed": f"{closed} && {inside}",
        "writable": inside,
        # A thread that keeps its rights in a process whose first thread has none.
        "thread": f"{closed} && exec {sys.executable} -c '{_KEEPS}{script}'",
    }.items():
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "--mount", "sh", "-c", command],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        holders, blind = done.stdout.splitlines()
        assert blind == "True"  # a container is not the machine
        said[name] = holders.split("|")
    assert said["closed"] == ["None", "None"]
    assert said["writable"] == ["None", "process 1 sees /proc/sys writable"]
    assert said["thread"][1] == "None"
    assert said["thread"][0].startswith("process 1 has or can regain CAP_SYS_MODULE")


_KEEPS = """
import threading, time
from variegate.isolation.lockdown import drop_capabilities
ready = threading.Event()
threading.Thread(target=lambda: (ready.set(), time.sleep(600)), daemon=True).start()
ready.wait()
drop_capabilities()
"""


def place_of(folder: Path) -> Path:
    with Device.create(folder / "device", CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER))
    return folder / "device"


def test_a_device_that_requires_the_group_stays_shut_on_an_ordinary_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what is missing, and does so before anybody has looked at the device's keys: here they are none."""
    missing = [p for p in machine.protections() if p.state != ON]
    if not missing:
        pytest.skip("this machine stops root")
    place = place_of(tmp_path)
    monkeypatch.setattr(Device, "identity_descriptor", lambda _: sealed("no-identity", b"nothing of the kind"))
    for require in ((HOST,), ("isolation", HOST)):
        (place / POLICY_FILE).write_bytes(DevicePolicy(strict=True, require=require).to_toml())
        with Device.open(place, host=host_of(place)) as device, pytest.raises(DeviceError) as refused:
            device.boot()
        for one in missing:
            assert f"{one.name} ({one.reason.split(':')[0]}" in refused.value.message
        assert "isolation" not in refused.value.message
    # The control: without the group the keys are looked at, and it is they that are refused.
    (place / POLICY_FILE).write_bytes(DevicePolicy(strict=True, require=("isolation",)).to_toml())
    with Device.open(place, host=host_of(place)) as device:
        with pytest.raises(VariegateError) as other:
            device.boot()
        assert "requires" not in other.value.message
        monkeypatch.undo()
        device.boot().classify(frames(1)[0])


def test_the_command_says_in_one_line_whether_root_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(tmp_path)
    capsys.readouterr()
    assert main(["device", "protections", str(place)]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line.split()[1] for line in lines[:-1]}
    expected = states(machine.protections())
    assert {name: state for name, state in listed.items() if name in HOST_PROTECTIONS} == expected
    missing = [name for name in HOST_PROTECTIONS if expected[name] != ON]
    answer = f"no (missing: {', '.join(missing)})" if missing else "yes"
    assert lines[-1] == f"host: this machine stops root from reaching other processes: {answer}"
