"""Flashing: what it refuses, what it keeps, and that no power cut bricks a device."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from testbed.devices import twin, workplace
from variegate.device_sim.device import Device
from variegate.device_sim.flash import FlashReport, flash
from variegate.device_sim.slots import TRIES
from variegate.device_sim.storage import Fault, PowerCut
from variegate.keys.artefact import Artefact
from variegate.keys.errors import MisuseError, Refusal, RefusedError

SEEDS = range(3)


@dataclass(frozen=True)
class Bench:
    """One device that is off and empty, one that runs sequence 1, and artefacts for both."""

    folder: Path
    empty: Path
    running: Path
    old: Artefact
    new: Artefact
    signer: MemorySigner

    def seal(self, **changes: Any) -> Artefact:
        with Device.open(self.empty) as device:
            return seal_for(device.identity, self.signer, **changes)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    signer = MemorySigner()
    with workplace() as folder:
        with Device.create(folder / "empty", CLASS, signer.root) as device:
            public = device.identity
        old = seal_for(public, signer, security_counter=1)
        new = seal_for(public, signer, sequence=2, security_counter=2, payload=tiny_payload(seed=5))
        with twin(folder / "empty", folder / "running") as device:
            flash(device, old)
        yield Bench(folder, folder / "empty", folder / "running", old, new, signer)


def cut_at(bench: Bench, start: Path, fault: Fault) -> Path | None:
    """Flashes the new image until the power goes; None when the flash was over before."""
    target = bench.folder / "cut"
    with twin(start, target, fault) as device:
        try:
            flash(device, bench.new)
        except PowerCut:
            return target
    return None


def booted(folder: Path) -> int | None:
    """Sequence of the image that boots and answers, or None when there is none yet.

    Boots until no try is left: what was not confirmed has given way by then, and must have left a way back.
    """
    with Device.open(folder) as device:
        record = device.slots.record()
        if record.confirmed is None and not record.passed:
            return None
        for _ in range(TRIES + 1):
            enclave = device.boot()
            assert len(enclave.classify_batch(frames(4))) == 4
        return enclave.manifest.sequence


def operations(bench: Bench, start: Path) -> int:
    with twin(start, bench.folder / "count") as device:
        flash(device, bench.new)
        return device.slots.storage.operations


def test_installs_and_boots(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        report = flash(device, bench.new)
        assert report == FlashReport(
            slot="b",
            sequence=2,
            chunks=report.chunks,
            written=report.chunks,
            moved=len(bench.new.envelope) + len(bench.new.component),
            confirmed=True,
        )
        assert device.counter("security") == 2
        assert device.boot().manifest.sequence == 2


def test_again_writes_nothing(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        before = device.slots.storage.operations
        assert flash(device, bench.old).written == 0
        assert device.slots.storage.operations == before


def test_streams_from_files(bench: Bench) -> None:
    whole, envelope, component = (bench.folder / n for n in ("whole", "envelope", "component"))
    whole.write_bytes(bench.new.to_bytes())
    envelope.write_bytes(bench.new.envelope)
    component.write_bytes(bench.new.component)
    seen: list[tuple[int, int]] = []
    with twin(bench.running, bench.folder / "t") as device:
        report = flash(device, whole, progress=lambda done, of: seen.append((done, of)))
        assert seen == [(i + 1, report.chunks) for i in range(report.chunks)]
        assert device.boot().manifest.sequence == 2
    with twin(bench.running, bench.folder / "t") as device:
        assert flash(device, envelope, component_file=component).confirmed
        with pytest.raises(MisuseError):
            flash(device, bench.folder / "missing")
        (bench.folder / "noise").write_bytes(b"VG" + bytes(300))
        with pytest.raises(RefusedError):
            flash(device, bench.folder / "noise")


def test_a_damaged_confirmed_image_is_repaired_by_flashing_it_again(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        device.slots.storage.write("a.component", 2000, b"\xff\xff\xff\xff")
        device.slots.storage.fsync("a.component")
        with pytest.raises(RefusedError):
            device.boot()
        assert flash(device, bench.old).slot == "b"
        assert device.boot().manifest.sequence == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"security_counter": 0}, Refusal.ROLLED_BACK),
        ({"ueid": b"\x01" + bytes(32), "security_counter": 2}, Refusal.WRONG_DEVICE),
        ({"device_class": "lidar-v1", "security_counter": 2}, Refusal.WRONG_CLASS),
        ({"not_after": 1, "security_counter": 2}, Refusal.EXPIRED),
        ({"canaries": bytes(32), "security_counter": 2}, Refusal.SELF_TEST),
        ({"measurements": {"runtime": bytes(32)}, "security_counter": 2}, Refusal.SELF_TEST),
    ],
)
def test_refuses_and_keeps_the_old_image(bench: Bench, changes: dict[str, object], reason: Refusal) -> None:
    artefact = bench.seal(sequence=3, **changes)
    with twin(bench.running, bench.folder / "t") as device:
        with pytest.raises(RefusedError) as caught:
            flash(device, artefact)
        assert caught.value.refusal is Refusal.ARTEFACT
        assert f": {reason}: " in device.log()[-1]
        assert device.slots.record().trial is None
        assert device.counter("security") == 1
        assert device.boot().manifest.sequence == 1


def test_refuses_before_it_writes(bench: Bench) -> None:
    other = MemorySigner()
    with twin(bench.running, bench.folder / "t") as device:
        kept = device.slots.storage.names()
        for bad in (
            seal_for(device.identity, other, sequence=3, security_counter=3),
            Artefact(bench.new.envelope, bench.old.component),
            Artefact(bench.new.envelope, bytes(bench.new.component) + b"\0"),
            Artefact(bench.new.envelope[:-1], bench.new.component),
        ):
            with pytest.raises(RefusedError):
                flash(device, bad)
        assert device.slots.storage.names() == kept


def test_a_bad_chunk_stops_the_flash_and_a_good_copy_goes_on(bench: Bench) -> None:
    bad = bytearray(bench.new.component)
    bad[-1] ^= 1
    with twin(bench.running, bench.folder / "t") as device:
        with pytest.raises(RefusedError):
            flash(device, Artefact(bench.new.envelope, bytes(bad)))
        last = device.slots.storage.read("b.component", len(bad) - 40)
        assert last != bytes(bad[-40:])
        assert not device.slots.storage.exists("b.envelope")
        assert device.boot().manifest.sequence == 1
        report = flash(device, bench.new)
        assert report.written == 1
        assert device.boot().manifest.sequence == 2


def test_resumes_from_what_is_there(bench: Bench) -> None:
    big = bench.seal(sequence=4, security_counter=4, payload=tiny_payload(padding=5 << 20), chunk=1 << 16)
    target = bench.folder / "t"
    with twin(bench.running, target, Fault(70)) as device, pytest.raises(PowerCut):
        flash(device, big)
    with Device.open(target) as device:
        report = flash(device, big)
        assert 0 < report.written < report.chunks / 2
        assert device.boot().manifest.sequence == 4


def test_an_image_that_is_not_confirmed_gives_way(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        assert not flash(device, bench.new, confirm=False).confirmed
        assert [device.boot().manifest.sequence for _ in range(4)] == [2, 2, 2, 1]
        assert device.counter("security") == 1
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, bench.new, confirm=False)
        device.boot()
        device.confirm()
        assert [device.boot().manifest.sequence for _ in range(5)] == [2] * 5


def test_a_slot_being_written_is_off_trial(bench: Bench) -> None:
    target = bench.folder / "t"
    other = bench.seal(sequence=5, security_counter=1)
    with twin(bench.running, target) as device:
        flash(device, bench.new, confirm=False)
    with Device.open(target, fault=Fault(6)) as device, pytest.raises(PowerCut):
        flash(device, other)
    with Device.open(target) as device:
        assert device.slots.record().trial is None


def test_a_shorter_image_takes_the_place_of_a_longer_one(bench: Bench) -> None:
    long = bench.seal(sequence=3, security_counter=2, payload=tiny_payload(padding=5000))
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, long, confirm=False)
        flash(device, bench.new)
        assert device.boot().manifest.sequence == 2


@pytest.mark.parametrize("first", [True, False], ids=["first", "update"])
def test_no_power_cut_bricks(bench: Bench, first: bool) -> None:
    start, allowed = (bench.empty, {None, 2}) if first else (bench.running, {1, 2})
    total = operations(bench, start)
    outcomes = set()
    for operation in range(1, total + 1):
        for seed in SEEDS:
            target = cut_at(bench, start, Fault(operation, seed))
            assert target is not None
            outcomes.add(booted(target))
            with Device.open(target) as device:
                flash(device, bench.new)
                assert device.boot().manifest.sequence == 2
    assert outcomes == allowed
    assert cut_at(bench, start, Fault(total + 1)) is None


def test_no_second_power_cut_bricks(bench: Bench) -> None:
    chance = random.Random(11)
    total = operations(bench, bench.running)
    cuts = 0
    for _ in range(120):
        target = cut_at(bench, bench.running, Fault(chance.randint(1, total), chance.randrange(1 << 30)))
        assert target is not None
        for _ in range(3):  # in recovery, by booting or by flashing on
            fault = Fault(chance.randint(1, 12), chance.randrange(1 << 30))
            with Device.open(target, fault=fault) as device:
                try:
                    if chance.random() < 0.5:
                        device.boot()
                    else:
                        flash(device, bench.new)
                except PowerCut:
                    cuts += 1
        assert booted(target) in {1, 2}
    assert cuts > 120


def test_a_restored_disk_cannot_bring_the_old_image_back(bench: Bench) -> None:
    target = bench.folder / "t"
    with twin(bench.running, target) as device:
        shutil.copytree(target / "disk", bench.folder / "backup", dirs_exist_ok=True)
        flash(device, bench.new)
    shutil.rmtree(target / "disk")
    (bench.folder / "backup").rename(target / "disk")
    with Device.open(target) as device:
        with pytest.raises(RefusedError):
            device.boot()
        with pytest.raises(RefusedError):
            flash(device, bench.old)
        assert flash(device, bench.new).confirmed
        assert device.boot().manifest.sequence == 2
