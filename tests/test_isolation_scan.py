"""What root, and the enclave's own user, can read of a serving enclave: nothing; and everything without protection."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from assurance.memory.scan import Reading, Secrets, read_core, read_everything
from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from tests.support.graphs_of_weights import COPYING
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.isolation.host import Isolated, IsolatedHost
from variegate.isolation.policy import DevicePolicy
from variegate.keys import recipe
from variegate.keys.envelope import SealedKeys
from variegate.keys.errors import DeviceError
from variegate.keys.identity import DeviceIdentity
from variegate.runtime.enclave import ProtectionState

SIGNER = MemorySigner()
PROTECTED = DevicePolicy()
CONTROL = DevicePolicy(secret_pages=False, debug=True)
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can try what root can read")


@contextmanager
def serving(folder: Path, how: DevicePolicy) -> Iterator[tuple[Isolated, Secrets]]:
    """An enclave that has answered queries and signed evidence, and all that it must not give away."""
    place = folder / "device"
    payload = tiny_payload()
    keys = SealedKeys(os.urandom(32), os.urandom(32))
    with Device.create(place, CLASS, SIGNER.root, policy=how) as device:
        flash(device, seal_for(device.identity, SIGNER, payload=payload, keys=keys))
        with os.fdopen(device.identity_descriptor(), "rb") as file:
            identity = DeviceIdentity.from_bytes(file.read())
    keyed = recipe.expand(payload.tensors, keys.seed)
    tensors = {name: value.tobytes() for name, value in {**payload.constants, **keyed}.items()}
    secrets = Secrets(
        tensors,
        {"cek": keys.cek, "seed": keys.seed, "signing": identity.signing_seed, "identity": identity.to_bytes()[-96:]},
    )
    assert secrets.windows() > 500
    with Device.open(place, host=IsolatedHost(how)) as device:
        port = device.boot()
        assert isinstance(port, Isolated)
        shown = frames(70)
        port.classify_batch(shown)
        port.classify(shown[0])
        port.evidence(bytes(32))
        port.classify_with_receipt(shown[:2])
        port.classify(shown[1])
        time.sleep(0.05)  # the last query's traces are cleared after its answer
        yield port, secrets


def memory_is_secret(port: Isolated) -> bool:
    return {p.name: p.state for p in port.status().protections}["memory"] == ProtectionState.ON


@needs_root
def test_root_reads_no_window_of_a_secret(tmp_path: Path) -> None:
    with serving(tmp_path, PROTECTED) as (port, secrets):
        if not memory_is_secret(port):
            pytest.skip("this kernel has no memfd_secret: the enclave says so")
        assert port.pid is not None
        found = {reading.way: reading for reading in read_everything(port.pid, secrets)}
        assert {way: reading.windows for way, reading in found.items()} == dict.fromkeys(found, 0)
        # It was not for want of trying: the ordinary memory was read.
        assert found["/proc/PID/mem"].bytes > 10 << 20
        assert found["process_vm_readv"].bytes > 10 << 20
        assert "permitted" in found["ptrace"].refused
        assert found["ptrace"].bytes == 0


@needs_root
def test_the_same_reading_finds_everything_without_protection(tmp_path: Path) -> None:
    with serving(tmp_path, CONTROL) as (port, secrets):
        assert port.pid is not None
        found = {reading.way: reading for reading in read_everything(port.pid, secrets)}
        for way in ("/proc/PID/mem", "process_vm_readv", "ptrace"):
            assert found[way].windows > 100, way


def core_after_abort(folder: Path, port: Isolated) -> Path:
    """Aborts an enclave and returns where its core file would be."""
    assert port.pid is not None
    cores = [folder / "core", folder / f"core.{port.pid}", Path("core")]
    os.kill(port.pid, signal.SIGABRT)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{port.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return next((core for core in cores if core.exists()), cores[0])


@pytest.fixture
def cores_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip("core files do not go to the working folder here")
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_CORE, before)


def test_no_core_file_is_written(tmp_path: Path, cores_allowed: Path) -> None:
    with serving(tmp_path, PROTECTED) as (port, secrets):
        assert read_core(core_after_abort(cores_allowed, port), secrets) == Reading(
            "core", 0, 0, "no core file was written"
        )


LOOK = """
import os, sys
from assurance.memory.scan import Secrets, read_everything
pid = int(sys.argv[1])
os.setgid(65534); os.setuid(65534)
for reading in read_everything(pid, Secrets({}, {"nothing": bytes(range(64, 96))})):
    print(reading.way, reading.bytes, reading.refused, sep=chr(9))
"""
SERVE = """
import ctypes, os, sys
from pathlib import Path
place, secret = Path(sys.argv[1]), sys.argv[2] == "protected"
# The interpreter may lie in a folder of root's: the right to reach it, and no other, is kept for the launch.
libc = ctypes.CDLL(None)
assert libc.prctl(8, 1, 0, 0, 0) == 0
os.setgid(65534); os.setuid(65534)
head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(4, 4, 4)
assert libc.capset(head, data) == 0 and libc.prctl(47, 2, 2, 0, 0) == 0
from variegate.device_sim.device import Device
from variegate.isolation.host import IsolatedHost
from variegate.isolation.policy import DevicePolicy
how = DevicePolicy(secret_pages=secret, debug=not secret)
with Device.open(place, host=IsolatedHost(how)) as device:
    port = device.boot()
    print(port.pid, flush=True)
    sys.stdin.read()
"""


@needs_root
@pytest.mark.parametrize("mode", ["protected", "control"])
def test_another_process_of_the_same_user_reads_nothing(tmp_path: Path, mode: str) -> None:
    place = tmp_path / "device"
    with Device.create(place, CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER))
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and parent.stat().st_mode & 0o001 == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o001)
    command = [sys.executable, "-c", SERVE, str(place), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        line = server.stdout.readline()
        looked = subprocess.run([sys.executable, "-c", LOOK, line.strip()], capture_output=True, text=True, check=True)
        server.stdin.close()
    found = {
        way: (int(size), refused) for way, size, refused in (row.split("\t") for row in looked.stdout.splitlines())
    }
    if mode == "protected":
        assert {size for size, _ in found.values()} == {0}
        assert all("denied" in refused or "permitted" in refused for _, refused in found.values()), found
    else:
        assert found["/proc/PID/mem"][0] > 10 << 20


def test_windows_are_found_wherever_a_float_can_stand() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=1000).astype(np.float32).tobytes()
    signs = (rng.integers(0, 2, 4000) * 2 - 1).astype(np.float32).tobytes()
    key = rng.bytes(32)
    secrets = Secrets({"w": weights, "m": signs}, {"k": key})
    noise = rng.bytes(1 << 16)
    assert secrets.found(noise) == 0
    assert secrets.found((np.ones(5000, np.float32)).tobytes()) == 0
    for at in range(0, 16, 4):
        assert secrets.found(noise[: 4096 + at] + weights[400:460] + noise[:999]) > 0
        assert secrets.found(noise[: 4096 + at] + signs[400:560] + noise[:999]) > 0
    assert secrets.found(noise[:1001] + key[8:24] + noise[:7]) == 1


def test_a_graph_that_copies_weights_is_said_to_have_no_secret_memory(tmp_path: Path) -> None:
    place = tmp_path / "device"
    payload = COPYING["int8 -> DequantizeLinear -> MatMul"].payload()
    with Device.create(place, CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER, payload=payload))
    with Device.open(place, host=IsolatedHost(PROTECTED)) as device:
        memory = {p.name: p for p in device.boot().status().protections}["memory"]
        assert memory.state == ProtectionState.OFF
        assert "DequantizeLinear" in memory.reason
    strict = DevicePolicy(strict=True, require=("memory",))
    with Device.open(place, host=IsolatedHost(strict)) as device, pytest.raises(DeviceError, match="memory"):
        device.boot()
