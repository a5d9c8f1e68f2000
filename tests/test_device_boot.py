"""The device: made, opened, booted, kept to one holder, moved to the seller's next root."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for
from testbed.devices import twin, workplace
from variegate.device_sim.audit import MAX_LINE, SEGMENT_BYTES, SEGMENTS
from variegate.device_sim.changes import SECTOR_BYTES
from variegate.device_sim.device import Device, Lifecycle
from variegate.device_sim.flash import flash
from variegate.device_sim.slots import TRIES, BootRecord
from variegate.keys.envelope import SealedKeys
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError
from variegate.keys.manifest import Policy
from variegate.keys.primitives import KEM_CLASSIC, KEM_NAMES
from variegate.keys.rotation import rotate
from variegate.keys.seller import Seller
from variegate.runtime.platform import Platform


@pytest.fixture(scope="module")
def seller() -> Seller:
    return Seller.generate()


@pytest.fixture
def folder() -> Iterator[Path]:
    with workplace() as place:
        yield place


@pytest.fixture
def device(folder: Path, seller: Seller) -> Iterator[Device]:
    with Device.create(folder / "device", CLASS, seller.root) as made:
        yield made


def test_is_a_platform(device: Device, seller: Seller) -> None:
    platform: Platform = device
    assert platform.root == seller.root
    assert platform.device_class == CLASS
    assert platform.ueid == device.identity.ueid
    assert len(platform.measurements()["runtime"]) == 32


@pytest.mark.parametrize("kem", KEM_NAMES)
def test_seal_flash_and_classify(folder: Path, seller: Seller, kem: str) -> None:
    with Device.create(folder / "d", CLASS, seller.root, kem=kem) as device:
        copies = []
        for number in (1, 2):
            keys = SealedKeys(bytes(32), bytes([number]) * 32)
            flash(device, seal_for(device.identity, seller.signer, sequence=number, keys=keys))
            copies.append(device.boot().classify_batch(frames(200)))
        assert copies[0].dtype == np.int64
        assert copies[0].tolist() != copies[1].tolist()  # another seed, another copy
        assert device.status().lifecycle is Lifecycle.DEPLOYED


def test_the_runtime_can_be_asked_for_by_its_measurement(device: Device, seller: Seller) -> None:
    measured = dict(device.measurements())
    flash(device, seal_for(device.identity, seller.signer, measurements=measured))
    assert device.boot().manifest.measurements == measured


def test_an_empty_device_says_so(device: Device) -> None:
    with pytest.raises(DeviceError, match="no image"):
        device.boot()
    status = device.status()
    assert (status.lifecycle, status.boots, status.images) == (Lifecycle.PROVISIONED, 1, {})


def test_is_made_whole_or_not_at_all(folder: Path, seller: Seller) -> None:
    with pytest.raises(MisuseError):
        Device.create(folder / "d", "", seller.root)
    assert list(folder.iterdir()) == []
    with Device.create(folder / "d", CLASS, seller.root, kem=KEM_CLASSIC):
        pass
    with pytest.raises(MisuseError, match="exists"):
        Device.create(folder / "d", CLASS, seller.root)
    with pytest.raises(MisuseError, match="no device"):
        Device.open(folder)


def test_secrets_stay_in_the_fuses(device: Device, folder: Path) -> None:
    assert (folder / "device" / "fuses" / "identity").stat().st_mode & 0o777 == 0o600
    assert (folder / "device" / "fuses").stat().st_mode & 0o777 == 0o700
    secret = (folder / "device" / "fuses" / "identity").read_bytes()[-32:]
    shown = repr(vars(device)) + repr(device.status()) + "".join(device.log())
    assert repr(secret)[2:-1] not in shown
    assert all(secret not in p.read_bytes() for p in (folder / "device" / "disk").iterdir())


def test_one_process_at_a_time(device: Device, folder: Path) -> None:
    code = (
        "import sys, pathlib, variegate.device_sim.device as d; from variegate.keys.errors import DeviceError\n"
        "try: d.Device.open(pathlib.Path(sys.argv[1]))\nexcept DeviceError as e: sys.exit(e.message)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(folder / "device")], capture_output=True, text=True, check=False
    )
    assert child.stderr == "the device is in use by another process\n"


def test_booting_stops_what_ran(device: Device, seller: Seller) -> None:
    flash(device, seal_for(device.identity, seller.signer, policy=Policy(budget=10)))
    first = device.boot()
    second = device.boot()
    with pytest.raises(MisuseError, match="closed"):
        first.classify(frames(1)[0])
    assert len(second.classify_batch(frames(8))) == 8
    with pytest.raises(LimitError):
        second.classify_batch(frames(3))


def test_an_image_on_trial_that_fails_gives_way_at_once(device: Device, seller: Seller) -> None:
    flash(device, seal_for(device.identity, seller.signer))
    bad = seal_for(device.identity, seller.signer, sequence=2)
    flash(device, bad, confirm=False)
    device.slots.storage.write("b.component", 500, b"damage")
    assert device.boot().manifest.sequence == 1
    assert device.slots.record().trial is None
    with pytest.raises(DeviceError, match="no image"):
        _empty_then_boot(device)


def _empty_then_boot(device: Device) -> None:
    device.slots.write(BootRecord())
    device.boot()


def test_confirming_tests_the_image(device: Device, seller: Seller) -> None:
    device.confirm()  # nothing on trial: nothing happens
    assert device.slots.record().confirmed is None
    flash(device, seal_for(device.identity, seller.signer, sequence=2, canaries=bytes(32)), confirm=False)
    with pytest.raises(RefusedError):
        device.confirm()
    assert device.slots.record().trial is None


@pytest.mark.parametrize("forgery", ["signer", "device"])
def test_a_forged_record_confirms_nothing(device: Device, seller: Seller, forgery: str) -> None:
    """`passed` written by an attacker with the disk in hand: the image is checked all the same."""
    flash(device, seal_for(device.identity, seller.signer, security_counter=1))
    signer = MemorySigner() if forgery == "signer" else seller.signer
    ueid = device.ueid if forgery == "signer" else b"\x01" + bytes(32)
    forged = seal_for(device.identity, signer, sequence=9, security_counter=9, ueid=ueid)
    for name, data in (("b.envelope", forged.envelope), ("b.component", forged.component)):
        device.slots.storage.create(name)
        device.slots.storage.write(name, 0, data)
    device.slots.write(replace(device.slots.record(), trial="b", tries=TRIES, passed=True))
    assert device.boot().manifest.sequence == 1
    assert device.counter("security") == 1


@pytest.mark.parametrize("offset", [0, 4096])
def test_a_torn_boot_record_falls_back_to_the_other_copy(device: Device, seller: Seller, offset: int) -> None:
    flash(device, seal_for(device.identity, seller.signer))
    for _ in range(2):  # both copies say the same but for their generation
        device.slots.write(device.slots.record())
    device.slots.storage.write("boot", offset, b"\0" * 40)
    assert device.boot().manifest.sequence == 1
    device.slots.storage.write("boot", 0, bytes(8192))
    assert device.slots.record() == BootRecord()
    flash(device, seal_for(device.identity, seller.signer, sequence=2))
    assert device.boot().manifest.sequence == 2


def test_a_changed_boot_record_does_not_count() -> None:
    whole = BootRecord(7, "a", "b", 3, True).to_bytes()
    assert BootRecord.from_bytes(whole.ljust(4096, b"\0")) == BootRecord(7, "a", "b", 3, True)
    for place in range(len(whole)):
        for bit in range(8):
            bad = bytearray(whole)
            bad[place] ^= 1 << bit
            assert BootRecord.from_bytes(bytes(bad)) is None
        assert BootRecord.from_bytes(whole[:place]) is None


def test_follows_a_rotation_and_keeps_running(folder: Path, seller: Seller) -> None:
    new, statement = rotate(seller)
    third, next_statement = rotate(new)
    with Device.create(folder / "d", CLASS, seller.root) as device:
        flash(device, seal_for(device.identity, seller.signer))
        device.follow(statement)
        assert device.root == new.root
        with pytest.raises(RefusedError) as caught:
            device.follow(statement)
        assert caught.value.refusal is Refusal.ARTEFACT
    with Device.open(folder / "d") as device:
        assert device.root == new.root
        assert device.boot().manifest.sequence == 1  # confirmed before: good by its hash
        device.follow(next_statement)
        assert device.boot().manifest.sequence == 1
        assert device.status().images["a"].sequence == 1
        with pytest.raises(RefusedError):  # but nothing else under the old root
            flash(device, seal_for(device.identity, seller.signer, sequence=2))
        flash(device, seal_for(device.identity, third.signer, sequence=3))
        assert device.boot().manifest.sequence == 3
        assert device.status().root_serial == third.serial


def test_an_old_rooted_image_in_the_other_slot_is_not_good_by_hash(device: Device, seller: Seller) -> None:
    statement = rotate(seller).statement
    flash(device, seal_for(device.identity, seller.signer, sequence=1))
    flash(device, seal_for(device.identity, seller.signer, sequence=2))
    device.follow(statement)
    assert device.boot().manifest.sequence == 2
    device.slots.write(replace(device.slots.record(), confirmed="a"))
    with pytest.raises(RefusedError):
        device.boot()


def test_counters_outlive_a_restored_disk(folder: Path, seller: Seller) -> None:
    with Device.create(folder / "d", CLASS, seller.root) as device:
        flash(device, seal_for(device.identity, seller.signer, policy=Policy(budget=64)))
        device.boot().classify_batch(frames(64))
    with twin(folder / "d", folder / "e") as device, pytest.raises(LimitError):
        device.boot().classify(frames(1)[0])


def test_the_log_is_bounded_and_on_one_line_each(device: Device, folder: Path) -> None:
    device.record("note", "one\ntwo\x1b[31m é")
    assert device.log()[-1].endswith("note one\\ntwo\\x1b[31m \\xe9")
    for number in range(2000):
        device.record("note", f"{number} " + "x" * 300)
    lines = device.log()
    assert lines[-1].split()[2] == "1999"
    assert max(map(len, lines)) <= MAX_LINE
    files = [path for path in (folder / "device" / "disk").iterdir() if path.name.startswith("audit.")]
    assert len(files) == SEGMENTS
    assert max(path.stat().st_size for path in files) == SEGMENT_BYTES + SECTOR_BYTES


def test_links_on_the_disk_lead_nowhere(folder: Path, seller: Seller) -> None:
    outside = folder / "outside"
    outside.write_bytes(b"untouched")
    with Device.create(folder / "d", CLASS, seller.root) as device:
        artefact = seal_for(device.identity, seller.signer)
    (folder / "d" / "disk" / "a.component").symlink_to(outside)
    with Device.open(folder / "d") as device:
        flash(device, artefact)
        assert device.boot().manifest.sequence == 1
    assert outside.read_bytes() == b"untouched"


def test_a_slot_too_large_is_refused_unread(device: Device, seller: Seller) -> None:
    flash(device, seal_for(device.identity, seller.signer))
    device.slots.storage.truncate("a.component", (1 << 30) + 1)
    with pytest.raises(RefusedError):
        device.boot()
    assert "too-large" in device.log()[-1]
