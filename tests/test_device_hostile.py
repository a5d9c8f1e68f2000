"""An attacker with the disk in hand: what is forged there buys nothing, and what is old stays old."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from testbed.artefacts import CLASS, frames, seal_for
from testbed.devices import twin, workplace
from variegate.device_sim.audit import SEGMENT_BYTES, SEGMENTS
from variegate.device_sim.audit_log import HEAD
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.fuses import Fuses
from variegate.device_sim.slots import TRIES, BootRecord, files
from variegate.device_sim.storage import Fault, PowerCut
from variegate.keys import keyfile
from variegate.keys.artefact import Artefact
from variegate.keys.errors import DeviceError, MisuseError, RefusedError
from variegate.keys.rotation import rotate
from variegate.keys.seller import Seller
from variegate.runtime.enclave import Enclave

LAST = (1 << 62) - 1


@pytest.fixture(scope="module")
def seller() -> Seller:
    return Seller.generate()


@pytest.fixture
def folder() -> Iterator[Path]:
    with workplace() as place:
        yield place


@pytest.fixture
def device(folder: Path, seller: Seller) -> Iterator[Device]:
    """Runs sequence 1, security counter 1, in slot a."""
    with Device.create(folder / "d", CLASS, seller.root) as made:
        flash(made, seal_for(made.identity, seller.signer, security_counter=1))
        yield made


def place(device: Device, slot: str, artefact: Artefact) -> None:
    """Writes an image into a slot as whoever holds the disk can."""
    disk = device.slots.storage
    for name, data in zip(files(slot), (artefact.envelope, artefact.component), strict=True):
        disk.create(name)
        disk.write(name, 0, data)
        disk.fsync(name)
    disk.fsync_dir()


def kept(device: Device) -> Callable[[], None]:
    """A backup of the disk; call it to restore it."""
    disk = device.slots.storage
    contents = {name: disk.read(name) for name in disk.names()}

    def restore() -> None:
        for name, data in contents.items():
            disk.create(name)
            disk.write(name, 0, data)
            disk.fsync(name)

    return restore


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and all that it carries along."""
    return [] if error is None else [error, *chain(error.__context__), *chain(error.__cause__)]


@pytest.mark.parametrize("counter", [1, 5])
def test_flash_asks_the_chip_what_was_confirmed(device: Device, seller: Seller, counter: int) -> None:
    restore = kept(device)
    update = seal_for(device.identity, seller.signer, sequence=2, security_counter=counter)
    place(device, "b", update)
    device.slots.write(replace(device.slots.record(), confirmed="b"))
    assert flash(device, update).written > 0
    assert device.counter("security") == counter
    assert device.confirms(update.envelope)
    restore()
    if counter > 1:
        with pytest.raises(RefusedError):
            device.boot()


@pytest.mark.parametrize(
    ("generation", "tries"), [(1 << 64, 0), ((1 << 64) - 1, 0), (LAST + 1, 0), (-1, 0), (True, 0), (9, 4), (9, True)]
)
def test_a_record_out_of_range_does_not_count(generation: int, tries: int) -> None:
    assert BootRecord.from_bytes(BootRecord(9, "a", None, TRIES).to_bytes()) == BootRecord(9, "a", None, TRIES)
    assert BootRecord.from_bytes(BootRecord(generation, "a", None, tries).to_bytes()) is None


def test_a_record_from_the_far_future_hides_nothing(device: Device, seller: Seller) -> None:
    forged = replace(device.slots.record(), generation=(1 << 64) - 1)
    device.slots.storage.write("boot", 4096, forged.to_bytes())
    update = seal_for(device.identity, seller.signer, sequence=2, security_counter=2)
    report = flash(device, update)
    assert report.confirmed
    assert device.slots.record().confirmed == report.slot
    assert device.counter("security") == 2


def test_a_record_that_takes_no_change_fails_aloud(device: Device, seller: Seller) -> None:
    forged = replace(device.slots.record(), generation=LAST)
    device.slots.storage.write("boot", 4096, forged.to_bytes())
    with pytest.raises(DeviceError, match="boot record"):
        flash(device, seal_for(device.identity, seller.signer, sequence=2, security_counter=2))


def test_the_retired_root_ends_with_the_first_image_under_the_new_one(device: Device, seller: Seller) -> None:
    new, statement = rotate(seller)
    device.follow(statement)
    restore = kept(device)
    assert device.boot().manifest.sequence == 1
    update = seal_for(device.identity, new.signer, sequence=2, security_counter=1)
    flash(device, update)
    restore()
    with pytest.raises(RefusedError):
        device.boot()
    flash(device, update)
    assert device.boot().manifest.sequence == 2


def test_a_rotation_keeps_what_the_chip_says_was_confirmed(device: Device, seller: Seller) -> None:
    flash(device, seal_for(device.identity, seller.signer, sequence=2, security_counter=1))
    device.slots.write(replace(device.slots.record(), confirmed="a"))
    device.follow(rotate(seller).statement)
    with pytest.raises(RefusedError):
        device.boot()
    device.slots.write(replace(device.slots.record(), confirmed="b"))
    assert device.boot().manifest.sequence == 2


def test_an_empty_slot_does_not_stop_a_rotation(device: Device, seller: Seller) -> None:
    new, statement = rotate(seller)
    device.slots.storage.remove("a.envelope")
    device.follow(statement)
    assert device.root == new.root


def test_a_forged_pass_does_not_raise_the_counter(device: Device, seller: Seller) -> None:
    """A validly signed image that fails its self-test would lock the good one out."""
    place(device, "b", seal_for(device.identity, seller.signer, sequence=9, security_counter=9, canaries=bytes(32)))
    device.slots.write(replace(device.slots.record(), trial="b", tries=TRIES, passed=True))
    assert device.boot().manifest.sequence == 1
    assert device.counter("security") == 1
    assert "did not pass" in device.log()[-2]


def test_a_pass_that_was_cut_short_is_completed_with_its_own_image_only(device: Device, seller: Seller) -> None:
    update, other = (
        seal_for(device.identity, seller.signer, sequence=number, security_counter=number) for number in (2, 3)
    )
    flash(device, update, confirm=False)
    trial = device.slots.record()
    device.confirm()
    device.slots.write(replace(trial, passed=True))  # as a cut before the last step leaves it
    assert device.settle().confirmed == "b"
    place(device, "b", other)
    device.slots.write(replace(trial, passed=True))
    assert device.settle().trial is None
    assert device.counter("security") == 2


def test_confirming_stops_the_image_before(device: Device, seller: Seller) -> None:
    before = device.boot()
    update = seal_for(device.identity, seller.signer, sequence=2, security_counter=1)
    flash(device, update, confirm=False)
    assert len(before.classify_batch(frames(2))) == 2
    tried = device.boot()
    device.confirm()
    assert len(tried.classify_batch(frames(2))) == 2  # what was confirmed may go on
    flash(device, seal_for(device.identity, seller.signer, sequence=3, security_counter=1))
    with pytest.raises(MisuseError, match="closed"):
        tried.classify(frames(1)[0])


def test_no_enclave_outlives_its_device(device: Device, seller: Seller) -> None:
    enclave = Enclave.open(seal_for(device.identity, seller.signer, sequence=2, security_counter=1), device)
    enclave.classify(frames(1)[0])
    device.close()
    with pytest.raises(DeviceError, match="off"):
        enclave.classify(frames(1)[0])


def test_a_fork_has_no_chip(tmp_path: Path) -> None:
    with Fuses(tmp_path) as fuses:
        fuses.burn("x", b"1")
        uses: list[Callable[[], object]] = [
            lambda: fuses.counter("a"),
            lambda: fuses.advance("a", 1),
            lambda: fuses.reserve("a", 1, 1, 9),
            lambda: fuses.burn("x", b"2"),
            lambda: fuses.load("x"),
        ]
        child = os.fork()
        if child == 0:
            refused = 0
            for use in uses:
                try:
                    use()
                except DeviceError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(uses)
        for use in uses:
            use()


def test_only_regular_files_are_flashed(device: Device, folder: Path, seller: Seller) -> None:
    artefact = seal_for(device.identity, seller.signer, sequence=2, security_counter=1)
    (folder / "e").write_bytes(artefact.envelope)
    end, start = os.pipe()
    feeder = threading.Thread(target=os.write, args=(start, artefact.to_bytes()))
    feeder.start()
    try:
        with pytest.raises(MisuseError, match="regular"):
            flash(device, Path(f"/dev/fd/{end}"))
    finally:
        feeder.join()
        os.close(start)
        os.close(end)
    os.mkfifo(folder / "pipe")
    for path in (folder / "pipe", folder, Path("a\0b")):
        with pytest.raises(MisuseError):
            flash(device, path)
        with pytest.raises(MisuseError):
            flash(device, folder / "e", component_file=path)


def test_the_log_is_read_within_its_bounds(device: Device) -> None:
    disk = device.slots.storage
    for name in (f"audit.{place}" for place in range(SEGMENTS)):
        disk.create(name)
        disk.truncate(name, 1000 * SEGMENT_BYTES)
    assert device.log() == []


def test_an_envelope_is_looked_at_without_its_component(device: Device) -> None:
    device.slots.storage.remove("a.component")
    assert device.status().images["a"].sequence == 1
    device.slots.storage.write("a.envelope", 0, b"\xff" * 20)
    with pytest.raises(RefusedError):
        device.boot()
    assert "empty" not in device.log()[-1]


def test_a_device_is_made_beside_nothing_of_others(folder: Path, seller: Seller) -> None:
    others = folder / ".d2.new"
    others.mkdir()
    (others / "theirs").write_bytes(b"x")
    with Device.create(folder / "d2", CLASS, seller.root):
        pass
    assert (others / "theirs").read_bytes() == b"x"
    (folder / "file").write_bytes(b"x")
    for bad in (folder / "no" / "d", folder / "file" / "d"):
        with pytest.raises(MisuseError):
            Device.create(bad, CLASS, seller.root)
    assert not (folder / "no").exists()


@pytest.mark.parametrize("action", ["flash", "settle"])
def test_a_log_that_fails_does_not_carry_the_reason_out(folder: Path, seller: Seller, action: str) -> None:
    with Device.create(folder / "d", CLASS, seller.root) as device:
        bad = seal_for(device.identity, seller.signer, not_after=1)
        place(device, "b", bad)
        device.slots.write(BootRecord(trial="b", tries=TRIES, passed=True))
    with Device.open(folder / "d", fault=Fault(1)) as device:
        act = partial(flash, device, bad) if action == "flash" else device.settle
        with pytest.raises(PowerCut) as caught:
            act()
    assert not any(isinstance(error, RefusedError) for error in chain(caught.value))


def test_a_passphrase_that_is_no_text_stays_inside() -> None:
    with pytest.raises(MisuseError) as caught:
        keyfile.seal("device", bytes(32), "secret\udcff")
    assert chain(caught.value) == [caught.value]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("landed", [False, True])
def test_no_cut_between_writes_of_the_chip_bricks(
    folder: Path, seller: Seller, monkeypatch: pytest.MonkeyPatch, landed: bool, rotated: bool
) -> None:
    """The power goes just before or just after each write of the chip while an update is confirmed."""
    new, statement = rotate(seller)
    with Device.create(folder / "start", CLASS, seller.root) as device:
        flash(device, seal_for(device.identity, seller.signer, security_counter=1))
        if rotated:
            device.follow(statement)
        signer = new.signer if rotated else seller.signer
        update = seal_for(device.identity, signer, sequence=2, security_counter=2)
    found = []
    for number in range(1, 20):
        device = twin(folder / "start", folder / "t")
        with monkeypatch.context() as patch, device:
            seen = _cut_the_chip(patch, number, landed=landed)
            with contextlib.suppress(PowerCut):
                flash(device, update)
            if len(seen) < number:
                break
        with Device.open(folder / "t") as device:
            found.append([device.boot().manifest.sequence for _ in range(TRIES + 1)][-1])
            assert flash(device, update).confirmed
            assert device.counter("security") == 2
            assert device.boot().manifest.sequence == 2
    # What passed, its number, the security counter, what is confirmed; it is deployed already. The rest are the log's.
    assert len(found) == len(seen) == 4 + seen.count(HEAD)
    assert found == sorted(found)
    assert set(found) == {1, 2}


def _cut_the_chip(patch: pytest.MonkeyPatch, number: int, *, landed: bool) -> list[str]:
    """Cuts the power at the chip's write of this number; returns the writes seen, as they come."""
    seen: list[str] = []

    def cut(write: Callable[..., None]) -> Callable[..., None]:
        def cutting(chip: Fuses, name: str, value: object) -> None:
            seen.append(name)
            if len(seen) != number or landed:
                write(chip, name, value)
            if len(seen) == number:
                raise PowerCut("cut at the chip")

        return cutting

    patch.setattr(Fuses, "burn", cut(Fuses.burn))
    patch.setattr(Fuses, "_raise", cut(Fuses._raise))
    return seen
