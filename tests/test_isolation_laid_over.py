"""The group `host` and what root mounts over the files it is read from: real mounts, in a namespace of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import machines
from variegate.attest.groups import HOST_PROTECTIONS

_FIRST = {"pid": "pid:[4026531836]", "user": "user:[4026531837]"}
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: who mounts"),
    pytest.mark.skipif(
        any(str(Path("/proc/self/ns", kind).readlink()) != first for kind, first in _FIRST.items()),
        reason="a container: nothing is measured here anyway",
    ),
]
_LOOK = """
import json
from variegate.isolation import machine
print(json.dumps({p.name: p.state.value for p in machine.protections()}))
"""
# A network of its own, so that writing to an interface of it leaves the machine's alone.
_SETUP = "mount -t sysfs sysfs /sys && mount -t securityfs securityfs /sys/kernel/security && "
_RETRIES = "/proc/sys/net/ipv4/tcp_syn_retries"
_PARANOID = "/proc/sys/kernel/perf_event_paranoid"
_HARMLESS = "setpriv --bounding-set=-all --inh-caps=-all sleep 60 & other=$!; sleep 0.2; trap 'kill $other' EXIT; "


def looked(commands: str) -> dict[str, str]:
    """The states of the group, as a process of a mount namespace sees them after some commands."""
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", f"{_SETUP}{commands} {sys.executable} -c '{_LOOK}'"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    assert tuple(found) == HOST_PROTECTIONS
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    """The same with nothing laid over anything."""
    found = looked("")
    assert set(found.values()) != {"unavailable"}
    return found


def test_the_mounts_of_a_locked_machine_are_no_reason_to_know_nothing(plain: dict[str, str]) -> None:
    closed = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys && "
    found = looked(f"{closed} mount -o remount,bind,ro,nosuid,nodev,noexec /sys &&")
    assert found == plain


@pytest.mark.parametrize(
    "commands",
    [
        f"mount --bind {_RETRIES} {_PARANOID} &&",
        f"mount --bind {_RETRIES} /proc/sys/user/max_user_namespaces &&",
        f"mount --bind {_RETRIES} /proc/sys/kernel/usermodehelper/bset &&",
        "mount --bind /proc/sys/net /proc/sys/kernel &&",
        "mount --bind /proc/sys/net /proc/sys &&",
        f"{_HARMLESS} mount --bind /proc/$other/task/$other/status /proc/1/task/1/status &&",
        f"{_HARMLESS} mount --bind /proc/$other/task /proc/1/task &&",
        f"{_HARMLESS} mount --bind /proc/$other/task/$other/mountinfo /proc/1/task/1/mountinfo &&",
        "mount --bind /sys/class/net/lo /sys/kernel/security &&",
        "mount --bind /sys/kernel/uevent_seqnum /sys/kernel/security/lockdown &&",
        "mount --bind /sys/class/net/lo /sys &&",
    ],
)
def test_files_of_the_kernel_laid_over_others_are_noticed(commands: str, plain: dict[str, str]) -> None:
    assert plain["host-core"] != "unavailable"
    assert set(looked(commands).values()) == {"unavailable"}


def test_a_name_that_root_gave_is_not_the_state_of_the_kernel() -> None:
    said = 'echo "none integrity [confidentiality]" > /sys/class/net/lo/ifalias && '
    found = looked(f"{said} mount --bind /sys/class/net/lo/ifalias /sys/kernel/security/lockdown &&")
    assert set(found.values()) == {"unavailable"}


def test_a_list_of_mounts_laid_over_ones_own_hides_nothing() -> None:
    """Process 1 is in another namespace and sees nothing of what is mounted in this one."""
    hidden = f"mount --bind {_RETRIES} {_PARANOID} && mount --bind /proc/1/mountinfo /proc/$$/mountinfo && exec"
    assert set(looked(hidden).values()) == {"unavailable"}


def test_a_made_up_machine_laid_over_proc_and_sys_is_not_this_one(tmp_path: Path) -> None:
    made = machines.made(tmp_path)
    found = looked(f"mount --bind {made['sys']} /sys && mount --bind {made['proc']} /proc &&")
    assert set(found.values()) == {"unavailable"}
