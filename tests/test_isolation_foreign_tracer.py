"""A process that traces the enclave before the supervisor does, or instead of it: nothing is opened for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for
from tests.support.children import Zygote
from tests.test_isolation import flashed
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import host_of
from variegate.isolation import process as process_module
from variegate.isolation.policy import DevicePolicy
from variegate.keys.errors import DeviceError

SIGNER = MemorySigner()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: attaches as root does")

RACER = """
import os, select
from variegate.isolation import syscalls
seized = []
while True:
    if select.select([0], [], [], 0.005)[0]:
        pid = int(os.read(0, 20) or os._exit(0))
        syscalls.ptrace(0x4206, pid)
        seized.append(pid)
    for pid in list(seized):  # lets it run, as a debugger does
        ended, raw = os.waitpid(pid, 0x40000001)
        if ended and os.WIFSTOPPED(raw):
            syscalls.ptrace(7, pid, 0 if raw >> 16 else os.WSTOPSIG(raw))
        elif ended:
            seized.remove(pid)
"""


def tracer_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def racer(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A process that seizes each enclave process as it appears, and always wins. Yields whom it seized."""
    seized: list[int] = []
    spawn = process_module._spawn
    with subprocess.Popen([sys.executable, "-c", RACER], stdin=subprocess.PIPE, text=True) as racing:

        def spawned(*arguments: Any, **options: Any) -> int:
            pid = spawn(*arguments, **options)
            assert racing.stdin is not None
            racing.stdin.write(str(pid))
            racing.stdin.flush()
            until(lambda: tracer_of(pid) == racing.pid)
            seized.append(pid)
            return pid

        with monkeypatch.context() as patched:
            patched.setattr(process_module, "_spawn", spawned)
            yield seized
        racing.kill()


@needs_root
@pytest.mark.parametrize("policy", [DevicePolicy(), DevicePolicy(strict=True, require=("isolation",))])
def test_nothing_is_opened_in_an_enclave_that_somebody_else_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: DevicePolicy
) -> None:
    place = tmp_path / "device"
    with Device.create(place, CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER))
    (place / "policy.toml").write_bytes(policy.to_toml())
    with Device.open(place, host=host_of(place)) as device:
        with racer(monkeypatch) as seized, pytest.raises(DeviceError, match="another process traces"):
            device.boot()
        assert seized
        assert not any("started as process" in line for line in device.log())
        with device.boot() as port:  # and it serves once nobody traces
            assert port.classify(frames(1)[0]) >= 0


@needs_root
def test_a_device_for_debugging_lets_a_tracer_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        racer(monkeypatch) as seized,
        flashed(tmp_path, DevicePolicy(debug=True)) as (_, port),
    ):
        assert port.pid in seized
        assert port.classify(frames(1)[0]) >= 0


@needs_root
def test_a_restart_is_looked_at_as_the_start_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = frames(1)[0]
    with flashed(tmp_path, DevicePolicy(restarts=50)) as (device, port):
        label = port.classify(shown)
        with racer(monkeypatch) as seized:
            with port._keeper.lock:  # or the supervisor's own thread may be the one that restarts it
                port._keeper.lost("is replaced by the test")
                with pytest.raises(DeviceError, match="another process traces"):
                    port.classify(shown)
            assert seized
        assert port.classify(shown) == label
        assert tracer_of(port.pid or 0) != 0
        assert device.boots == 1


REFUSED = """
    lockdown.no_new_privs()
    Filter(ALLOW).rule(fails_with(errno.EPERM), ["ptrace"]).load()
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    tracer = PtraceGuard(pid)
    say(pid, tracer.protection.state.value, tracer.foreign)
    wait()
    say(tracer.foreign)
    tracer.kill()
"""


@needs_root
def test_a_tracer_that_comes_later_is_seen_where_the_supervisor_could_not_hold() -> None:
    with Zygote() as zygote:
        child = zygote.start(REFUSED)
        said = child.hear()
        assert isinstance(said, list)
        assert said[1:] == ["unavailable", False]  # refused by the kernel, and no one else's
        thief = zygote.start(f"syscalls.ptrace(0x4206, {said[0]})\nsay(1)\nwait()")
        assert thief.hear() == 1
        child.tell()
        assert child.hear() is True
        thief.tell()
        assert (child.ended(), thief.ended()) == (0, 0)


HIDDEN = """
    new_pids, new_mounts, private, rec = 0x20000000, 0x00020000, 1 << 18, 1 << 14
    if libc.unshare(new_pids | new_mounts) or libc.mount(b"none", b"/", None, private | rec, None):
        say(0)
        os._exit(0)
    inner = os.fork()
    if inner == 0:
        libc.mount(b"proc", b"/proc", b"proc", 0, None)
        if os.fork() == 0:
            time.sleep(60)
        say(2)
        wait()
        tracer = PtraceGuard(2)
        lines = open("/proc/2/status").read().split()
        say(int(lines[lines.index("TracerPid:") + 1]), tracer.protection.state.value, tracer.foreign)
        tracer.kill()
        os._exit(0)
    os.waitpid(inner, 0)
"""


@needs_root
def test_a_tracer_in_a_namespace_above_is_noticed() -> None:
    """What `/proc` in a container does not show, as it shows no process outside."""
    with Zygote() as zygote:
        child = zygote.start(HIDDEN)
        if child.hear() != 2:
            child.ended()
            pytest.skip("no namespaces here")
        inner = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
        enclave = int(Path(f"/proc/{inner}/task/{inner}/children").read_text())
        thief = zygote.start(f"syscalls.ptrace(0x4206, {enclave})\nsay(1)\nwait()")
        assert thief.hear() == 1
        child.tell()
        assert child.hear() == [0, "unavailable", True]
        thief.tell()
        assert (child.ended(), thief.ended()) == (0, 0)
