"""The enclave as a process of its own: same labels, crashes, hangs, restarts, strictness, hostile launches."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.artefacts import CLASS, SHAPE, MemorySigner, frames, seal_for, tiny_payload
from tests.support.floats import float_payload
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.hosting import POLICY_FILE, host_of
from variegate.isolation import launch
from variegate.isolation import process as process_module
from variegate.isolation.enclave_platform import MAX_RECORDS, EnclavePlatform
from variegate.isolation.host import Isolated, IsolatedHost
from variegate.isolation.memory import sealed
from variegate.isolation.platform_client import answer
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.process import Process
from variegate.isolation.wire import Kind, Lost
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.manifest import Policy
from variegate.runtime.enclave import ProtectionState
from variegate.runtime.limits import LIMITS

SIGNER = MemorySigner()


@contextmanager
def flashed(folder: Path, how: DevicePolicy | None = None, **manifest: Any) -> Iterator[tuple[Device, Isolated]]:
    """A device with the tiny copy, booted in an enclave process."""
    place = folder / "device"
    with Device.create(place, CLASS, SIGNER.root, policy=how) as device:
        flash(device, seal_for(device.identity, SIGNER, **manifest))
    with Device.open(place, host=host_of(place)) as device:
        port = device.boot()
        assert isinstance(port, Isolated)
        yield device, port


def wanted(folder: Path, shown: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Labels of the same copy in this process."""
    with Device.open(folder / "device") as device:
        return device.boot().classify_batch(shown)


def ask_for_ever(port: Isolated, shown: np.ndarray[Any, Any]) -> None:
    while True:
        port.classify_batch(shown)


@pytest.mark.parametrize("secret_pages", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_isolated_copy_gives_the_same_labels(tmp_path: Path, secret_pages: bool, dtype: str) -> None:
    shown: np.ndarray[Any, Any] = frames(300)
    payload = float_payload() if dtype == "float32" else tiny_payload()
    if dtype == "float32":
        shown = shown.astype(np.float32) / np.float32(255)
    policy = DevicePolicy(secret_pages=secret_pages)
    with flashed(tmp_path, policy, payload=payload, dtype=dtype) as (_, port):
        port.self_test()
        found = port.classify_batch(shown)
        assert found.dtype == np.int64
        assert [port.classify(frame) for frame in shown[:5]] == found[:5].tolist()
        status = port.status()
        assert status.answered == 305
        states = {p.name: p.state for p in status.protections}
        assert states["isolation"] == ProtectionState.ON
        assert states["memory"] == (ProtectionState.ON if secret_pages else ProtectionState.OFF)
        assert all(p.reason for p in status.protections)
    with pytest.raises(MisuseError, match="closed"):
        port.classify(shown[0])
    np.testing.assert_array_equal(found, wanted(tmp_path, shown))


def test_the_largest_batch_and_one_more(tmp_path: Path) -> None:
    shown = frames(LIMITS.batch)
    with flashed(tmp_path) as (_, port):
        found = port.classify_batch(shown)
        for wrong in (np.concatenate([shown, shown[:1]]), shown[:0], shown[0], shown.astype(np.int16), None):
            with pytest.raises(RefusedError) as refused:
                port.classify_batch(wrong)  # type: ignore[arg-type]
            assert refused.value.refusal == Refusal.INPUT
        assert port.classify(shown[7]) == found[7]
    np.testing.assert_array_equal(found, wanted(tmp_path, shown))


def test_floats_out_of_range_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    payload, good = float_payload(), np.zeros(SHAPE, np.float32)
    with flashed(tmp_path, payload=payload, dtype="float32", policy=Policy(budget=50)) as (_, port):
        for value in (np.nan, np.inf, -0.1, 1.1):
            with pytest.raises(RefusedError) as refused:
                port.classify(np.full(SHAPE, value, np.float32))
            assert refused.value.refusal == Refusal.INPUT
        port.classify(good)
        assert port.status().remaining == 49


def test_budget_and_rate_hold_over_kills(tmp_path: Path) -> None:
    shown = frames(1)[0]
    policy = DevicePolicy(restarts=100)
    answered = 0
    with flashed(tmp_path, policy, policy=Policy(budget=40)) as (device, port):
        for turn in range(100):
            try:
                port.classify(shown)
            except DeviceError:
                continue
            except LimitError:
                break
            answered += 1
            if turn % 5 == 0 and port.pid is not None:
                os.kill(port.pid, signal.SIGKILL)
        else:
            pytest.fail("the budget never ended")
        assert device.counter("budget.0") == 40
    assert 0 < answered <= 40


def test_a_killed_enclave_costs_its_query_an_error_and_is_started_anew(tmp_path: Path) -> None:
    shown = frames(64)
    with flashed(tmp_path) as (device, port):
        label = port.classify(shown[0])
        first = port.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while port.pid in (first, None):  # the supervisor notices by itself
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert port.classify(shown[0]) == label
        lines = "\n".join(device.log())
        assert "layout" not in lines  # onnxruntime's layout of the weights was learnt
        assert "SIGKILL" in lines
        assert lines.count("started as process") >= 2


def test_a_query_under_way_fails_when_the_enclave_is_killed_and_is_not_asked_again(tmp_path: Path) -> None:
    shown = frames(LIMITS.batch)
    with flashed(tmp_path, policy=Policy(budget=10 * LIMITS.batch)) as (device, port):
        port.classify_batch(shown[:1])
        killer = threading.Timer(0.004, os.kill, (port.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(DeviceError, match="no label"):
            ask_for_ever(port, shown)
        killer.join()
        spent = device.counter("budget.0")
        port.classify(shown[0])
        assert device.counter("budget.0") > spent  # and nothing was given back


def test_a_hung_enclave_is_ended_and_replaced(tmp_path: Path) -> None:
    shown = frames(1)[0]
    with flashed(tmp_path, DevicePolicy(hang_s=0.5)) as (device, port):
        label = port.classify(shown)
        hung = port.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(DeviceError, match=r"within 0\.5 s"):
            port.classify(shown)
        assert not Path(f"/proc/{hung}").exists()
        assert port.classify(shown) == label
        assert any("did not answer" in line for line in device.log())


def test_restarts_are_bounded(tmp_path: Path) -> None:
    shown = frames(1)[0]
    with flashed(tmp_path, DevicePolicy(restarts=1, restart_window_s=3600.0)) as (_, port):
        failures = 0
        for _ in range(6):
            if port.pid is not None:
                os.kill(port.pid, signal.SIGKILL)
            try:
                port.classify(shown)
            except DeviceError as error:
                failures += 1
                last = error.message
        assert failures >= 4
        assert "stopped more than 1 times" in last
        with pytest.raises(DeviceError):
            port.status()


def test_queries_of_many_threads_get_their_own_labels(tmp_path: Path) -> None:
    shown = frames(40)
    with flashed(tmp_path) as (_, port):
        expected = port.classify_batch(shown)
        wrong: list[int] = []

        def ask(start: int) -> None:
            for turn in range(30):
                at = (start + turn) % len(shown)
                if port.classify(shown[at]) != expected[at]:
                    wrong.append(at)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert port.status().answered == 40 + 4 * 30


def test_the_ram_cap_holds(tmp_path: Path) -> None:
    """A copy that does not fit under the cap is an error; the same copy opens under a larger one."""
    place = tmp_path / "device"
    with Device.create(place, CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER, payload=tiny_payload(padding=48 << 20), chunk=1 << 16))
    with (
        Device.open(place, host=IsolatedHost(DevicePolicy(ram_mib=160))) as device,
        pytest.raises(DeviceError, match="not enough memory") as caught,
    ):
        device.boot()
    # About four times the component, and what interpreter and libraries take.
    assert caught.value.hint == "this copy may take 352 MiB; ram_mib in the device's policy.toml is 160"
    with Device.open(place, host=IsolatedHost(DevicePolicy(ram_mib=1024))) as device:
        device.boot().classify(frames(1)[0])


def test_a_cap_below_what_the_enclave_takes_itself_is_refused(tmp_path: Path) -> None:
    with Device.create(tmp_path / "device", CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER))
    host = IsolatedHost(DevicePolicy(ram_mib=16))
    with Device.open(tmp_path / "device", host=host) as device, pytest.raises(DeviceError, match="its cap is 16 MiB"):
        device.boot()


def test_a_strict_device_serves_only_with_what_it_requires(tmp_path: Path) -> None:
    good = DevicePolicy(strict=True, require=("isolation", "seccomp", "landlock", "dumpable", "ptrace", "memory"))
    with flashed(tmp_path, DevicePolicy(), policy=Policy()) as (_, port):
        on = {p.name for p in port.status().protections if p.state == ProtectionState.ON}
    place = tmp_path / "device"
    (place / POLICY_FILE).write_bytes(good.to_toml())
    with Device.open(place, host=host_of(place)) as device:
        if set(good.require) <= on:
            device.boot().classify(frames(1)[0])
    for missing in (
        DevicePolicy(strict=True, require=("memory",), secret_pages=False),
        DevicePolicy(strict=True, require=("ptrace",), debug=True),
        DevicePolicy(strict=True, require=("dumpable",), debug=True),
        DevicePolicy(strict=True, require=("no such thing",)),
    ):
        (place / POLICY_FILE).write_bytes(missing.to_toml())
        with Device.open(place, host=host_of(place)) as device, pytest.raises(DeviceError, match=missing.require[0]):
            device.boot()
    # And nobody gets round it by opening the copy in a process of their own.
    with Device.open(place) as device, pytest.raises(DeviceError, match="strict"):
        device.boot()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"schema = 2", "schema"),
        (b"", "schema"),
        (b"schema = 1\nsecret = true", "secret"),
        (b"schema = 1\nstrict = 1", "strict"),
        (b"schema = 1\nram_mib = 1", "ram_mib"),
        (b"schema = 1\nram_mib = true", "ram_mib"),
        (b"schema = 1\nhang_s = nan", "hang_s"),
        (b"schema = 1\nhang_s = inf", "hang_s"),
        (b"schema = 1\nrequire = [1]", "require"),
        (b'schema = 1\nisolation = "vm"', "isolation"),
        (b"schema = 1\nrestarts = -1", "restarts"),
        (b"\xff", "TOML"),
        (b"schema = 1\n[isolation]\n", "isolation"),
        (b"#" * 20000, "exceeds"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_by_name(text: bytes, named: str) -> None:
    with pytest.raises(RefusedError, match=named):
        DevicePolicy.from_toml(text)


def test_a_policy_reads_back(tmp_path: Path) -> None:
    policy = DevicePolicy(strict=True, require=("memory", "seccomp"), hang_s=0.5, ram_mib=512, debug=True)
    assert DevicePolicy.from_toml(policy.to_toml()) == policy
    assert policy.digest != DevicePolicy().digest


def test_the_environment_of_the_supervisor_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    mark = tmp_path / "ran"
    for name in ("sitecustomize", "usercustomize", "numpy", "json", "coloredlogs"):
        (evil / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    for name, value in {
        "PYTHONPATH": str(evil),
        "PYTHONSTARTUP": str(evil / "json.py"),
        "PYTHONHOME": "/nonexistent",
        "PYTHONINSPECT": "1",
        "LD_PRELOAD": str(evil / "evil.so"),
        "LD_LIBRARY_PATH": str(evil),
    }.items():
        monkeypatch.setenv(name, value)
    before = launch.prepare().measurements
    with flashed(tmp_path) as (_, port):
        assert port.pid is not None
        assert Path(f"/proc/{port.pid}/environ").read_bytes() == b""
        port.classify(frames(1)[0])
    assert not mark.exists()
    assert launch.prepare().measurements == before


def test_a_file_of_the_runtime_that_was_swapped_changes_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = launch.prepare()
    for name, init in launch._OURS.items():
        shutil.copytree(Path(init).parent, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    ours = {name: str(tmp_path / name / "__init__.py") for name in launch._OURS}
    monkeypatch.setattr(launch, "_OURS", ours)
    assert launch.prepare().measurements == honest.measurements  # a copy is the same code
    for target in ("runtime/allowance.py", "keys/cbor.py", "isolation/bootstrap.py", "attest/__init__.py"):
        path = tmp_path / target
        kept = path.read_bytes()
        path.write_bytes(kept + b"\n# a line more\n")
        changed = launch.prepare().measurements
        assert changed["runtime"] != honest.measurements["runtime"]
        assert changed["interpreter"] == honest.measurements["interpreter"]
        path.write_bytes(kept)
    (tmp_path / "runtime" / "another.py").write_text("")
    assert launch.prepare().measurements["runtime"] != honest.measurements["runtime"]


def test_what_runs_is_what_was_measured_even_if_files_change_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our code runs from the sealed archive, not from the files."""
    ours = {}
    for name, init in launch._OURS.items():
        shutil.copytree(Path(init).parent, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        ours[name] = str(tmp_path / name / "__init__.py")
    monkeypatch.setattr(launch, "_OURS", ours)
    image = launch.prepare()
    for path in tmp_path.rglob("*.py"):
        path.write_text("raise SystemExit('not what was measured')")
    process = Process(image)  # says LOADED: it runs
    process.end(gently=True)
    with pytest.raises(DeviceError, match="does not start"):
        Process(launch.prepare())
    descriptor = sealed("test", image.archive)
    try:
        for tamper in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, 0)):
            with pytest.raises(PermissionError):
                tamper()
    finally:
        os.close(descriptor)


def test_cached_byte_code_and_what_lies_beside_the_libraries_is_not_run(tmp_path: Path) -> None:
    image = launch.prepare()
    assert not Path(process_module._NOWHERE).parent.is_dir()
    with pytest.raises(DeviceError, match="not measured"):
        launch.check_modules([str(tmp_path / "cbor2.py")], image)
    launch.check_modules([f"{launch.ARCHIVE_PATH}/variegate/keys/cbor.py", *list(image.files)[:3]], image)


def test_nothing_of_the_parent_stays_open_in_the_enclave(tmp_path: Path) -> None:
    leaked = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        with flashed(tmp_path) as (_, port):
            found = {entry.readlink().name for entry in Path(f"/proc/{port.pid}/fd").iterdir()}
        assert "hostname" not in found
    finally:
        os.close(leaked)


def test_a_bad_nonce_costs_an_error_and_no_enclave(tmp_path: Path) -> None:
    with flashed(tmp_path) as (_, port):
        pid = port.pid
        for nonce in (b"", bytes(65), bytes(300_000), "text", None):
            with pytest.raises(RefusedError):
                port.evidence(nonce)  # type: ignore[arg-type]
        assert port.pid == pid


def test_closing_does_not_wait_for_a_query_that_hangs(tmp_path: Path) -> None:
    with flashed(tmp_path, DevicePolicy(hang_s=600.0)) as (_, port):
        assert port.pid is not None
        os.kill(port.pid, signal.SIGSTOP)
        errors: list[Exception] = []

        def ask() -> None:
            try:
                port.classify(frames(1)[0])
            except DeviceError as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.2)
        began = time.monotonic()
        port.close()
        assert time.monotonic() - began < 20
        asking.join(20)
        assert len(errors) == 1


@pytest.mark.parametrize(
    "call",
    [
        ["counter", ["budget.0"]],
        ["reserve", ["budget.0", 1, 1, 100]],
        ["reserve", ["budget.7", -1, 1 << 62, 1 << 62]],
        ["record", ["confirmed", "sequence 9 in slot a"]],
        ["advance", ["security", 9]],
        ["record", ["refused", 7]],
        ["challenge", [1]],
        [],
    ],
)
def test_a_compromised_enclave_gets_no_more_than_serving_takes(tmp_path: Path, call: list[Any]) -> None:
    with Device.create(tmp_path / "device", CLASS, SIGNER.root) as device:
        offered = EnclavePlatform(device)
        assert answer(offered, ["record", ["enclave", "a line"]])[0] == Kind.ANSWER
        with pytest.raises(Lost):
            answer(offered, call)
        assert device.counter("budget.0") == 0
        before = len(device.log())
        for turn in range(1000):
            answer(offered, ["record", ["enclave", f"flood {turn} " + "x" * 5000]])
        assert len(device.log()) - before <= MAX_RECORDS


def test_the_enclave_ends_with_its_supervisor(tmp_path: Path) -> None:
    place = tmp_path / "device"
    with Device.create(place, CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER))
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from variegate.device_sim.device import Device\nfrom variegate.device_sim.hosting import host_of\n"
        "place = Path(sys.argv[1])\nport = Device.open(place, host=host_of(place)).boot()\n"
        "print(port.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        supervisor.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
