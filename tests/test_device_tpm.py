"""A chip over a real TPM: what is restored, replaced, killed or measured otherwise gives nothing back."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.artefacts import CLASS, frames, seal_for
from testbed.devices import workplace
from testbed.swtpm import PROGRAM, SoftwareTpm, software_tpm
from testbed.tools import skip_without
from variegate.cli.main import main
from variegate.device_sim.chip import made_chip, open_chip
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.fuses import MAX_VALUE
from variegate.device_sim.tpm import Policy, Tpm, checked_tcti, pcr_after
from variegate.device_sim.tpm_chip import TpmChip, launch_digest
from variegate.device_sim.tpm_secret import MAX_SECRET_BYTES, Action, Job, made_from
from variegate.device_sim.tpm_state import State, read_head, read_state
from variegate.isolation.host import IsolatedHost
from variegate.isolation.policy import DevicePolicy
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Policy as CopyPolicy
from variegate.keys.seller import Seller
from variegate.keys.signing import SellerRoot

skip_without(swtpm=PROGRAM, tpm2_pytss=importlib.util.find_spec("tpm2_pytss"))
esapi = pytest.importorskip("tpm2_pytss")

MEASURED = {"runtime": b"m" * 32}
OTHER = {"runtime": b"n" * 32}


@pytest.fixture(scope="module")
def seller() -> Seller:
    return Seller.generate()


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    with software_tpm() as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    with workplace() as place:
        (place / "chip").mkdir()
        yield place / "chip"


@pytest.fixture(scope="module")
def master() -> Iterator[tuple[Path, Path]]:
    """A TPM that is off, and the folder of a chip over it: copies of both are what a test works with."""
    with software_tpm() as tpm, workplace() as place:
        with TpmChip.make(place, tpm.tcti, MEASURED) as made:
            made.burn_secret("identity", b"the secret")
        tpm.kill()
        yield tpm.folder, place


@pytest.fixture
def chip(tpm: SoftwareTpm, folder: Path, master: tuple[Path, Path]) -> Iterator[TpmChip]:
    tpm.kill()
    shutil.copytree(master[0] / "state", tpm.folder / "state", dirs_exist_ok=True)
    shutil.copytree(master[1], folder, dirs_exist_ok=True)
    tpm.start()
    with opened(tpm, folder) as made:
        yield made


def opened(tpm: SoftwareTpm, folder: Path) -> TpmChip:
    return TpmChip(folder, tpm.tcti, MEASURED)


def state_of(folder: Path, chip: TpmChip) -> State:
    return read_state((folder / "state").read_bytes(), chip._key)


def secret_of(chip: TpmChip) -> bytes:
    with os.fdopen(chip.open_secret("identity"), "rb") as file:
        return file.read()


def handles(tpm: SoftwareTpm, first: int) -> list[int]:
    """Handles that the TPM lists from `first` on."""
    with esapi.ESAPI(tpm.tcti) as esys:
        _, found = esys.get_capability(esapi.TPM2_CAP.HANDLES, first, 64)
        return [int(handle) for handle in found.data.handles]


NV, TRANSIENT, SESSIONS = 0x01000000, 0x80000000, 0x02000000


def test_counts_and_keeps(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    assert chip.counter("boots") == 0
    chip.advance("boots", 5)
    chip.advance("boots", 3)
    chip.advance("security", MAX_VALUE)
    assert (chip.reserve("budget.0", 1, 60, 100), chip.reserve("budget.0", 1, 60, 100)) == (60, 40)
    assert chip.reserve("budget.0", 1, 60, 100) == 0
    assert chip.load("trust") is None
    chip.burn("trust", b"one")
    chip.burn("trust", b"two")
    chip.close()
    tpm.restart()
    with opened(tpm, folder) as again:
        assert [again.counter(name) for name in ("boots", "security", "budget.0")] == [5, MAX_VALUE, 100]
        assert again.load("trust") == b"two"
        assert secret_of(again) == b"the secret"


def test_refuses_what_it_cannot_hold(chip: TpmChip) -> None:
    for name, value in (("", 1), ("x" * 49, 1), ("x", -1), ("x", MAX_VALUE + 1), ("\0", 1)):
        with pytest.raises(MisuseError):
            chip.advance(name, value)
    with pytest.raises(MisuseError):
        chip.reserve("x", 1, 1, MAX_VALUE + 1)
    with pytest.raises(MisuseError):
        chip.burn_secret("x", bytes(MAX_SECRET_BYTES + 1))
    with pytest.raises(DeviceError, match="no such secret"):
        chip.open_secret("x")
    with pytest.raises(DeviceError, match="no more than"):
        chip.burn("x", bytes(1 << 20))


def test_off_means_off(chip: TpmChip) -> None:
    chip.close()
    calls = (
        lambda: chip.counter("a"),
        lambda: chip.advance("a", 1),
        lambda: chip.reserve("a", 1, 1, 9),
        lambda: chip.load("a"),
        lambda: chip.burn("a", b""),
        lambda: chip.open_secret("identity"),
    )
    for call in calls:
        with pytest.raises(DeviceError, match="off"):
            call()


# Restored folders


def test_a_device_over_a_tpm(tpm: SoftwareTpm, folder: Path, seller: Seller) -> None:
    home, backup = folder / "d", folder / "backup"
    with Device.create(home, CLASS, seller.root, tpm=tpm.tcti) as device:
        policy = CopyPolicy(budget=50)
        flash(device, seal_for(device.identity, seller.signer, security_counter=1, policy=policy))
        expected = device.boot().classify_batch(frames(8))
    shutil.copytree(home, backup)
    with Device.open(home) as device:
        np.testing.assert_array_equal(device.boot().classify_batch(frames(8)), expected)
        spent = device.counter("budget.0")
        assert 16 <= spent <= 50
        flash(device, seal_for(device.identity, seller.signer, sequence=2, security_counter=2))
        assert device.boot().manifest.sequence == 2
        assert (device.status().security_counter, device.counter("budget.0")) == (2, spent)
        flash(device, seal_for(device.identity, seller.signer, sequence=4, security_counter=2))
        refused = [seal_for(device.identity, seller.signer, sequence=n, security_counter=2) for n in (3, 4)]
    with Device.open(home) as device:
        for older in refused:
            with pytest.raises(RefusedError):
                flash(device, older)
        assert (device.status().sequence, device.boot().manifest.sequence) == (4, 4)
    current = folder / "current"
    home.rename(current)
    backup.rename(home)
    with pytest.raises(DeviceError, match="TPM did not unseal"):
        Device.open(home)
    shutil.rmtree(home)
    current.rename(home)
    with Device.open(home) as device:
        assert device.boot().manifest.sequence == 4


def test_a_restored_state_is_refused(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.advance("budget.0", 10)
    before = (folder / "state").read_bytes()
    chip.advance("budget.0", 11)
    after = (folder / "state").read_bytes()
    chip.close()
    (folder / "state").write_bytes(before)
    with pytest.raises(DeviceError, match="restored"):
        opened(tpm, folder)
    (folder / "state").write_bytes(after)
    with opened(tpm, folder) as again:
        assert again.counter("budget.0") == 11


def test_what_was_sealed_before_a_rise_no_longer_unseals(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    old = state_of(folder, chip)
    job = chip._job(Action.DECRYPT, old, name="identity", data=old.secrets["identity"])
    assert job.ask() == b"the secret"
    chip.advance("boots", 7)
    assert job.ask() == b"the secret"  # no other counter matters
    chip.advance("security", 1)
    assert secret_of(chip) == b"the secret"
    with pytest.raises(DeviceError, match=r"TPM did not unseal: tpm:error\(2\.0\): policy failure"):
        job.ask()
    # Nor with the new bound and the old object: the bound is part of what it was sealed under.
    with Tpm(tpm.tcti) as now, pytest.raises(DeviceError, match="policy check failed"):
        now.unseal(old.sealed, replace(job.policy, most=old.raises + 1))


def test_another_measurement_does_not_unseal(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.close()
    with pytest.raises(DeviceError, match=r"TPM did not unseal: .*policy"):
        TpmChip(folder, tpm.tcti, OTHER)
    with opened(tpm, folder) as again:
        assert secret_of(again) == b"the secret"
        with Tpm(tpm.tcti) as other:
            other.measure(b"z" * 32)
        with pytest.raises(DeviceError, match="TPM did not unseal"):
            again.open_secret("identity")


def test_a_state_that_was_never_answered_for_does_not_come_back(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    """Two states may bear one number when a process dies between file and TPM; the smaller must not win later."""
    chip.close()
    run_steps(tpm, folder, die_at=7)  # the reservation is written, and `updates` not yet raised
    never_answered = (folder / "state").read_bytes()
    assert read_state(never_answered, chip._key).counters == {"budget.0": 10}
    before = before_step(folder, 6)
    assert read_state(before, chip._key).counters == {}
    (folder / "state").write_bytes(before)  # which still counts
    with opened(tpm, folder) as again:
        assert again.reserve("budget.0", 1, 50, 100) == 50
    (folder / "state").write_bytes(never_answered)
    with pytest.raises(DeviceError, match="restored"):
        opened(tpm, folder)


def test_a_kill_while_turning_on_leaves_no_second_state(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.close()
    base = (folder / "state").read_bytes()
    run_steps(tpm, folder, die_at=3)  # taken over in the file, `updates` not yet raised
    spare = (folder / "state").read_bytes()
    assert spare != base
    (folder / "state").write_bytes(base)
    with opened(tpm, folder) as again:
        assert again.reserve("budget.0", 1, 50, 100) == 50
    (folder / "state").write_bytes(spare)
    with pytest.raises(DeviceError, match="restored"):
        opened(tpm, folder)


# Other holders


def test_one_holder_at_a_time(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    with pytest.raises(DeviceError, match="in use"):
        opened(tpm, folder)
    chip.advance("a", 1)
    code = "import sys; from tests.test_device_tpm import *; TpmChip(Path(sys.argv[1]), sys.argv[2], MEASURED)"
    child = subprocess.run(
        [sys.executable, "-c", code, folder, tpm.tcti], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert child.returncode == 1
    assert "in use" in child.stderr
    chip.advance("a", 2)


def test_a_copy_of_the_folder_stops_the_first_holder(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    assert chip.reserve("budget.0", 1, 10, 100) == 10
    shutil.copy(folder / "state", copy / "state")
    with opened(tpm, copy) as second:
        with pytest.raises(DeviceError, match="another process"):
            chip.reserve("budget.0", 1, 10, 100)
        with pytest.raises(DeviceError, match="off"):
            chip.reserve("budget.0", 1, 10, 100)
        # It took a number of the counter's; what is answered is still counted once only.
        with pytest.raises(DeviceError, match="another process"):
            second.reserve("budget.0", 1, 10, 100)


@pytest.mark.parametrize("die_at", [2, 3, 4])
def test_a_copy_killed_while_it_turns_on_stops_the_first_holder_too(
    tpm: SoftwareTpm, folder: Path, chip: TpmChip, die_at: int
) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    run_steps(tpm, copy, die_at=die_at)
    with pytest.raises(DeviceError, match="another process"):
        chip.reserve("budget.0", 1, 10, 100)


def test_not_after_a_fork(chip: TpmChip) -> None:
    chip._process += 1
    with pytest.raises(DeviceError, match="another process"):
        chip.counter("a")


def test_threads_share_it(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    granted: list[int] = []

    def spend() -> None:
        while got := chip.reserve("budget.0", 1, 7, 200):
            granted.append(got)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 200
    chip.close()
    with opened(tpm, folder) as again:
        assert again.counter("budget.0") == 200


# Kills

ROOT = Path(__file__).resolve().parent.parent
STEPS = ["key", "openings", "write", "updates", "updates", "on", "write", "updates"]
STEPS += ["reserved", "reseal", "write", "raises", "updates", "raised"]

CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from variegate.device_sim import tpm_chip
from variegate.device_sim.tpm import Tpm
from variegate.device_sim.tpm_secret import Job

number = 0

def step():
    global number
    shutil.copy(Path(sys.argv[1], "state"), f"{sys.argv[1]}.{number}")
    if number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    number += 1

def stepped(call):
    def made(*args, **kwargs):
        step()
        return call(*args, **kwargs)
    return made

def say(word):
    print(word, flush=True)
    step()

Tpm.increment = stepped(Tpm.increment)
Job.ask = stepped(Job.ask)
tpm_chip.write_atomic = stepped(tpm_chip.write_atomic)
chip = tpm_chip.TpmChip(Path(sys.argv[1]), sys.argv[2], {"runtime": b"m" * 32})
say("on")
assert chip.reserve("budget.0", 1, 10, 10**6) == 10
say("reserved")
chip.advance("security", chip.counter("security") + 1)
say("raised")
"""


def run_steps(tpm: SoftwareTpm, folder: Path, *, die_at: int) -> list[str]:
    """Turns a chip on, reserves 10 and raises the security counter by one, in a process killed before step `die_at`.

    Returns:
        What it was answered.
    """
    command = [sys.executable, "-c", CHILD, str(folder), tpm.tcti, str(die_at)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == (-signal.SIGKILL if die_at < len(STEPS) else 0), child.stderr
    return child.stdout.split()


def before_step(folder: Path, number: int) -> bytes:
    """The state's file as `run_steps` had it before a step."""
    return Path(f"{folder}.{number}").read_bytes()


def test_a_kill_between_any_two_steps_loses_nothing_and_bricks_nothing(
    tpm: SoftwareTpm, folder: Path, chip: TpmChip
) -> None:
    chip.close()
    budget = security = 0
    for die_at in range(len(STEPS) + 1):
        old = state_of(folder, chip)
        answered = run_steps(tpm, folder, die_at=die_at)
        now = state_of(folder, chip)
        reserved, raised = "reserved" in answered, "raised" in answered
        # Counted from the moment it is in the file, which is before it is answered.
        assert now.counters.get("budget.0", 0) == budget + 10 * (die_at > STEPS.index("write", 6))
        assert now.counters.get("security", 0) == security + (die_at > STEPS.index("write", 10))
        with opened(tpm, folder) as again:
            assert budget + 10 * reserved <= again.counter("budget.0") <= budget + 10, die_at
            assert security + raised <= again.counter("security") <= security + 1, die_at
            assert secret_of(again) == b"the secret"
            budget, security = again.counter("budget.0"), again.counter("security")
            if again._state.raises > old.raises:
                with pytest.raises(DeviceError, match="policy failure"):
                    again._job(Action.STATE_KEY, old).ask()
    assert security == len(STEPS) - STEPS.index("write", 10)


def test_a_budget_is_exact_over_kills(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    code = CHILD.split("\nTpm.increment", maxsplit=1)[0] + (
        '\nchip = tpm_chip.TpmChip(Path(sys.argv[1]), sys.argv[2], {"runtime": b"m" * 32})\n'
        'while got := chip.reserve("budget.0", 1, 3, 1000):\n    print(got, flush=True)\n'
    )
    chip.close()
    answered = kills = 0
    while kills < 5:
        command = [sys.executable, "-c", code, str(folder), tpm.tcti, "0"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(20)]
        child.kill()
        rest, _ = child.communicate()
        lines += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        answered += sum(int(line) for line in lines)
        kills += 1
        with opened(tpm, folder) as again:
            assert answered <= again.counter("budget.0") <= answered + 3 * kills
    with opened(tpm, folder) as again:
        spent = again.counter("budget.0")
        assert again.reserve("budget.0", 1, 1000, 1000) == 1000 - spent
        assert again.reserve("budget.0", 1, 1000, 1000) == 0


def test_a_tpm_that_goes_away(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.advance("a", 4)
    tpm.kill()
    with pytest.raises(DeviceError, match="TPM did not"):
        chip.advance("a", 5)
    tpm.start()
    with pytest.raises(DeviceError, match="off"):
        chip.advance("a", 5)
    chip.close()
    with opened(tpm, folder) as again:
        assert again.counter("a") in (4, 5)
        tpm.kill()
        with pytest.raises(DeviceError, match="TPM did not"):
            again.open_secret("identity")
        with pytest.raises(DeviceError, match="TPM did not"):
            again.advance("security", 1)
    with pytest.raises(DeviceError, match="TPM did not"):
        opened(tpm, folder)
    tpm.start()
    with opened(tpm, folder) as again:
        assert again.counter("security") == 0
        again.advance("security", 1)
        assert secret_of(again) == b"the secret"


def test_a_tpm_killed_in_the_midst(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    for _ in range(4):
        pid, delay = tpm.pid, np.random.default_rng().uniform(0.005, 0.05)
        killer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
        killer.start()
        answered = chip.counter("budget.0")
        with pytest.raises(DeviceError, match="TPM did not"):  # noqa: PT012  it is killed at any moment
            while True:
                answered += chip.reserve("budget.0", 1, 3, MAX_VALUE)
        killer.join()
        chip.close()
        tpm.restart()
        chip = opened(tpm, folder)
        assert answered <= chip.counter("budget.0") <= answered + 3
    chip.close()


# An attacker with the TPM


def test_another_tpm_gives_nothing(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.close()
    with software_tpm() as other, pytest.raises(DeviceError, match="TPM did not"):
        opened(other, folder)


@pytest.mark.parametrize("counter", ["updates", "openings", "raises"])
@pytest.mark.parametrize("kind", ["ordinary", "counter"])
def test_a_counter_defined_again_does_not_go_back(
    tpm: SoftwareTpm, folder: Path, chip: TpmChip, counter: str, kind: str
) -> None:
    chip.close()
    state = state_of(folder, chip)
    index = getattr(state.indices, counter)
    with Tpm(tpm.tcti) as now:
        value = now.value(index)
    lib: Any = esapi
    flags = lib.TPMA_NV.AUTHREAD | lib.TPMA_NV.AUTHWRITE | lib.TPMA_NV.NO_DA
    flags |= lib.TPM2_NT.COUNTER << 4 if kind == "counter" else 0
    area = lib.TPMS_NV_PUBLIC(nvIndex=index, nameAlg=lib.TPM2_ALG.SHA256, attributes=flags, dataSize=8)
    with lib.ESAPI(tpm.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(index))
        handle = esys.nv_define_space(None, lib.TPM2B_NV_PUBLIC(nvPublic=area))
        if kind == "counter":
            esys.nv_increment(handle)
        else:
            esys.nv_write(handle, value.to_bytes(8, "big"))
    if (counter, kind) == ("openings", "counter"):
        # Higher than ever, as turning a device on makes it anyhow.
        with opened(tpm, folder) as again:
            assert secret_of(again) == b"the secret"
        return
    with pytest.raises(DeviceError, match=r"replaced|restored|policy"):
        opened(tpm, folder)


def test_a_forged_state_does_not_open_the_identity(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    """Who has the TPM can seal a root secret of their own, and authenticate any counters with it."""
    chip.advance("budget.0", 50)
    chip.close()
    true = state_of(folder, chip)
    with Tpm(tpm.tcti) as now:
        raises = now.value(true.indices.raises)
    policy = Policy(pcr_after(launch_digest(MEASURED)), true.indices.raises, raises)
    sealed, key = made_from(Job(Action.MAKE, tpm.tcti, policy).ask())
    forged = replace(true, sealed=sealed, counters={})
    (folder / "state").write_bytes(forged.to_bytes(key))
    with opened(tpm, folder) as other, pytest.raises(DeviceError, match="damaged"):
        other.open_secret("identity")


def test_a_state_with_other_numbers_needs_the_key(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.close()
    true = state_of(folder, chip)
    (folder / "state").write_bytes(replace(true, counters={"budget.0": 0}).to_bytes(bytes(32)))
    with pytest.raises(DeviceError, match="damaged"):
        opened(tpm, folder)


def test_a_state_is_its_own_and_whole(folder: Path, chip: TpmChip) -> None:
    data, key = (folder / "state").read_bytes(), chip._key
    state = read_state(data, key)
    assert read_state(state.to_bytes(key), key) == state
    assert state.to_bytes(key) != data  # under another salt
    for cut in (0, 31, 32, 33, len(data) - 1):
        with pytest.raises(DeviceError, match="damaged"):
            read_head(data[:cut])
    for wrong in (replace(state, number=-1), replace(state, counters={"a": -1}), replace(state, burnt={"a": 1})):  # type: ignore[dict-item]
        with pytest.raises(DeviceError, match="damaged"):
            read_state(wrong.to_bytes(key), key)
    for forged in (replace(state, raises=state.raises + 1), replace(state, number=1)):
        with pytest.raises(DeviceError, match="damaged"):
            read_state(forged.to_bytes(bytes(32)), key)
    at = data.index(state.sealed.private)
    with pytest.raises(DeviceError, match="damaged"):  # the head counts too
        read_state(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], key)


def test_what_is_burnt_cannot_be_read_from_the_folder(folder: Path, chip: TpmChip) -> None:
    chip.burn("storage", b"k" * 32)
    assert chip.load("storage") == b"k" * 32
    assert all(b"k" * 32 not in path.read_bytes() for path in folder.iterdir())


def test_a_damaged_state_is_refused(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.close()
    path = folder / "state"
    data = path.read_bytes()
    for damaged in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], b"", data + bytes(1 << 20), None):
        path.unlink(missing_ok=True)
        if damaged is None:
            path.mkdir()
        else:
            path.write_bytes(damaged)
        with pytest.raises(DeviceError, match="damaged"):
            opened(tpm, folder)
    path.rmdir()
    with pytest.raises(DeviceError, match="damaged"):
        opened(tpm, folder)
    path.write_bytes(data)
    opened(tpm, folder).close()


# Descriptions, and what a TPM is left with


@pytest.mark.parametrize(
    "tcti",
    ["", "cmd:touch ran", "cmd", "/disk/evil.so", "libevil", "swtpm:path=x y", "swtpm:path=\0", "swtpm:" + "x" * 300],
)
def test_no_other_way_to_a_tpm(tmp_path: Path, tcti: str) -> None:
    with pytest.raises(MisuseError):
        checked_tcti(tcti)
    (tmp_path / "chip.json").write_text(json.dumps({"schema": 1, "tcti": tcti}))
    with pytest.raises(DeviceError, match="description"):
        open_chip(tmp_path, lambda: MEASURED)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "[" * 4000, "[" * 5000, '"\\ud800"', '{"schema": 1}', '{"schema": 1, "tcti": 3}'),
        '{"schema": 2, "tcti": "swtpm"}',
        '{"schema": 1, "tcti": "cmd:x"}',
        '{"schema": 1, "tcti": "swtpm", "x": 1}',
    ],
)
def test_hostile_descriptions_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "chip.json").write_text(text)
    with pytest.raises(DeviceError, match="description"):
        open_chip(tmp_path, lambda: MEASURED)


def test_no_tpm_there(tmp_path: Path) -> None:
    for tcti in (f"swtpm:path={tmp_path}/none", "device:/dev/null", f"device:{tmp_path}/none"):
        with pytest.raises(DeviceError, match="TPM did not"):
            TpmChip.make(tmp_path, tcti, MEASURED)
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seller: Seller
) -> None:
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(MisuseError) as caught:
        Device.create(tmp_path / "d", CLASS, seller.root, tpm="swtpm:path=x")
    assert "variegate[tpm]" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_many_operations_do_not_fill_the_tpm(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    policy = chip._job(Action.STATE_KEY, chip._state).policy
    with Tpm(tpm.tcti) as now:
        for number in range(20):
            sealed = now.seal(bytes([number]), policy)
            assert now.unseal(sealed, policy) == bytes([number])
            with pytest.raises(DeviceError, match="policy"):
                now.unseal(sealed, replace(policy, most=0))
            with pytest.raises(DeviceError, match="TPM did not unseal"):
                now.unseal(replace(sealed, private=sealed.private[:-1] + bytes([sealed.private[-1] ^ 1])), policy)
            with pytest.raises(DeviceError, match="TPM did not unseal"):
                now.unseal(replace(sealed, public=b"?"), policy)
    for number in range(40):
        chip.advance("a", number)
    assert handles(tpm, TRANSIENT) == handles(tpm, SESSIONS) == []


def test_what_a_killed_process_left_loaded_is_flushed(tpm: SoftwareTpm, folder: Path, chip: TpmChip) -> None:
    chip.close()
    with esapi.ESAPI(tpm.tcti) as esys:
        for _ in range(3):
            esys.create_primary(None, "ecc")
            arguments = (esapi.ESYS_TR.NONE, esapi.ESYS_TR.NONE, esapi.TPM2_SE.POLICY)
            esys.start_auth_session(
                *arguments, esapi.TPMT_SYM_DEF(algorithm=esapi.TPM2_ALG.NULL), esapi.TPM2_ALG.SHA256
            )
    assert (len(handles(tpm, TRANSIENT)), len(handles(tpm, SESSIONS))) == (3, 3)
    with opened(tpm, folder) as again:
        assert secret_of(again) == b"the secret"
    assert handles(tpm, TRANSIENT) == handles(tpm, SESSIONS) == []


def test_a_chip_whose_making_fails_leaves_nothing(tpm: SoftwareTpm, folder: Path) -> None:
    assert handles(tpm, NV) == []
    with (  # noqa: PT012  what fails is the block
        pytest.raises(DeviceError, match="no more than"),
        made_chip(folder, tpm.tcti, lambda: MEASURED) as chip,
    ):
        assert len(handles(tpm, NV)) == 3
        chip.burn("x", bytes(1 << 20))
    assert handles(tpm, NV) == []
    with pytest.raises(MisuseError):
        TpmChip.make(folder / "none", tpm.tcti, MEASURED)
    assert handles(tpm, NV) == []


def test_made_and_asked_on_the_command_line(
    tpm: SoftwareTpm, folder: Path, seller: Seller, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "seller.root").write_bytes(seller.root.to_bytes())
    home = folder / "camera7"
    made = ["device", "new", str(home), "--class", CLASS, "--root", str(folder / "seller.root")]
    assert main([*made, "--tpm", "cmd:x"]) == 2
    assert main([*made, "--tpm", tpm.tcti]) == 0
    assert json.loads((home / "fuses" / "chip.json").read_text()) == {"schema": 1, "tcti": tpm.tcti}
    capsys.readouterr()
    assert main(["device", "status", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device_class"] == CLASS
    tpm.kill()
    assert main(["device", "status", str(home)]) == 1
    assert "TPM did not" in capsys.readouterr().err


# Where the private identity is

HOLDER = """
import os, subprocess, sys
from pathlib import Path
from variegate.device_sim.device import Device

with Device.open(Path(sys.argv[1])) as device:
    descriptor = device.identity_descriptor()
    done = subprocess.run(["sha256sum"], stdin=descriptor, capture_output=True, text=True, check=True)
    os.close(descriptor)
    print(done.stdout.split()[0], flush=True)
    input()
    device._identity()
    print("loaded", flush=True)
    input()
"""


def memory_has(pid: int, needle: bytes) -> bool:
    """Whether a process's private memory holds some bytes."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, flags, *rest = line.split()
            if not flags.startswith("rw") or (len(rest) > 3 and rest[3] in ("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            memory.seek(start)
            try:
                if needle in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


def test_the_identity_passes_by_the_process_that_opens_it(tpm: SoftwareTpm, folder: Path, root: SellerRoot) -> None:
    home = folder / "d"
    with Device.create(home, CLASS, root, tpm=tpm.tcti) as device:
        public = device.identity
        descriptor = device.identity_descriptor()
        with os.fdopen(descriptor, "rb") as file:
            secret = file.read()
            assert file.read() == b""  # once
    assert DeviceIdentity.from_bytes(secret).public == public
    needle = secret[-32:]
    assert all(needle not in path.read_bytes() for path in home.rglob("*") if path.is_file())
    command = [sys.executable, "-c", HOLDER, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline().strip() == hashlib.sha256(secret).hexdigest()
        assert not memory_has(child.pid, needle)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "loaded\n"
        assert memory_has(child.pid, needle)  # the search finds what is there
        child.stdin.write("\n")


@pytest.fixture(scope="module")
def root(seller: Seller) -> SellerRoot:
    return seller.root


def test_an_isolated_enclave_takes_the_identity_from_the_pipe(tpm: SoftwareTpm, folder: Path, seller: Seller) -> None:
    host = IsolatedHost(DevicePolicy())
    with Device.create(folder / "d", CLASS, seller.root, tpm=tpm.tcti, host=host) as device:
        flash(device, seal_for(device.identity, seller.signer, security_counter=1))
        assert device.boot().classify(frames(1)[0]) in range(10)
        assert device._private is None
    with pytest.raises(DeviceError, match="TPM did not unseal"):  # not measured as it was made
        Device.open(folder / "d")


def test_refusals_of_a_device_stay_ours(tpm: SoftwareTpm, folder: Path, seller: Seller) -> None:
    with Device.create(folder / "d", CLASS, seller.root, tpm=tpm.tcti) as device:
        artefact = seal_for(device.identity, seller.signer)
        tpm.kill()
        with pytest.raises((DeviceError, RefusedError)):
            flash(device, artefact)
        tpm.start()
    with Device.open(folder / "d") as device:
        flash(device, artefact)
        assert device.boot().classify(frames(1)[0]) in range(10)
