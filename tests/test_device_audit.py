"""The audit log: signed, chained, counted by the chip, bounded; damage shows, and never stops a device."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for
from testbed.devices import twin, workplace
from variegate.cli.main import main
from variegate.device_sim import audit_log
from variegate.device_sim.at_rest import AtRest
from variegate.device_sim.audit import KEPT, LOST, SEGMENT_BYTES, SEGMENTS, AuditKey, Head, parse, to_export
from variegate.device_sim.audit_log import HEAD
from variegate.device_sim.audit_report import AuditReport, verify
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.fuses import Fuses
from variegate.device_sim.repeats import BURST, EVERY_S, WINDOW_S, Repeats
from variegate.device_sim.storage import Fault, PowerCut
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, LimitError, Refusal, RefusedError, VariegateError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Policy
from variegate.keys.rotation import rotate
from variegate.keys.seller import Seller

SIGNER = MemorySigner()
SMALL_SEGMENT = 4096


@pytest.fixture
def folder() -> Iterator[Path]:
    with workplace() as place:
        yield place


@pytest.fixture
def device(folder: Path) -> Iterator[Device]:
    with Device.create(folder / "d", CLASS, SIGNER.root) as made:
        yield made


def report(device: Device) -> AuditReport:
    return verify(device.export_log(), device.identity)


def told(device: Device) -> list[tuple[str, str]]:
    found = report(device)
    assert not found.faults
    return [(entry.event, entry.detail) for entry in found.entries]


def filled(device: Device, count: int) -> None:
    for number in range(count):
        device.record("note", f"{number:05} " + "x" * 200)


def reopened(device: Device, folder: Path) -> Device:
    device.close()
    return Device.open(folder / "d")


def test_tells_the_life_of_a_device(folder: Path) -> None:
    seller = Seller.generate()
    with Device.create(folder / "d", CLASS, seller.root) as device:
        flash(device, seal_for(device.identity, seller.signer, security_counter=1, policy=Policy(budget=64)))
        device.boot().classify_batch(frames(33))
        with pytest.raises(LimitError):
            device.boot().classify_batch(frames(64))
        flash(device, seal_for(device.identity, seller.signer, sequence=2, security_counter=1), confirm=False)
        for _ in range(4):
            device.boot()
        with pytest.raises(RefusedError):
            flash(device, seal_for(device.identity, seller.signer, not_after=1, security_counter=1))
        device.follow(rotate(seller).statement)
        found, policy = report(device), device.measurements()["policy"].hex()
    assert not found.faults
    events = [entry.event for entry in found.entries]
    trial = ["flash", "flash", "boot", "boot", "boot", "reverted", "boot"]
    assert events == [
        "made", "flash", "flash", "confirmed", "boot", "budget", "boot", "budget", *trial, "refused", "followed"
    ]  # fmt: skip
    assert [entry.sequence for entry in found.entries] == list(range(1, found.count + 1))
    assert [entry.boot for entry in found.entries] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6, 6, 6, 6]
    assert "expired" in found.entries[-2].detail
    assert found.entries[4].detail == f"sequence 1 in slot a; policy {policy}"
    assert found.entries[10].detail == f"sequence 2 in slot b, on trial; policy {policy}"
    assert found.entries[5].detail == "budget.0: 33 of 64 reserved"
    assert found.entries[7].detail == "budget.0: refused, 33 of 64 reserved"


def test_an_export_verifies_with_the_identity_alone(device: Device) -> None:
    filled(device, 5)
    export, public = device.export_log(), type(device.identity).from_json(device.identity.to_json())
    assert verify(export, public).count == 6
    other = DeviceIdentity.generate(CLASS).public
    with pytest.raises(RefusedError) as caught:
        verify(export, other)
    assert caught.value.refusal is Refusal.WRONG_DEVICE
    with pytest.raises(RefusedError) as caught:
        verify(export, replace(other, ueid=device.ueid))
    assert caught.value.refusal is Refusal.SIGNATURE


def test_no_bit_of_an_export_can_be_changed(device: Device) -> None:
    device.record("note", "one")
    export, public = device.export_log(), device.identity
    assert not verify(export, public).faults
    for place in range(len(export)):
        bad = bytearray(export)
        bad[place] ^= 1 << (place % 8)
        with contextlib.suppress(RefusedError):
            assert verify(bytes(bad), public).faults, place
    for length in range(len(export)):
        with pytest.raises(RefusedError):
            verify(export[:length], public)


@given(st.binary(max_size=300))
def test_an_export_of_noise_is_refused(noise: bytes) -> None:
    public = IDENTITY.public
    with pytest.raises(RefusedError):
        verify(noise, public)
    with pytest.raises(RefusedError):
        verify(cbor.encode([1, noise, noise, [noise]]), public)
    assert parse(noise, None) is None or noise


IDENTITY = DeviceIdentity.generate(CLASS)


def taken_apart(export: bytes) -> tuple[bytes, bytes, list[bytes]]:
    _, by, end, segments = cbor.decode(export, limit=1 << 20)
    return by, end, segments


def first_record(segment: bytes) -> int:
    return 2 + int.from_bytes(segment[:2], "big")


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda s: [*s[:-1], s[-1][:-20]], "is missing"),
        (lambda s: s[:-1], "are missing"),
        (lambda s: s[1:], "are missing"),
        (lambda s: [s[0], *s[2:]], "are missing"),
        (lambda s: s[:0], "are missing"),
        (lambda s: [*s[:2], s[2][: first_record(s[2])] + s[2][-9:], *s[3:]], "are missing"),
        (lambda s: [*s, b"noise"], "signed head"),
        (lambda s: [*s, s[0]], "does not follow"),
    ],
)
def test_what_is_taken_out_of_an_export_is_named(
    device: Device, harm: Callable[[list[bytes]], list[bytes]], fault: str
) -> None:
    filled(device, 400)
    certificate, end, segments = taken_apart(device.export_log())
    assert len(segments) > 3
    found = verify(to_export(certificate, end, harm(segments)), device.identity)
    assert any(fault in line for line in found.faults), found.faults


def test_an_older_end_does_not_fit(device: Device) -> None:
    device.record("note", "one")
    certificate, end, _ = taken_apart(device.export_log())
    device.record("note", "two")
    later = taken_apart(device.export_log())
    assert verify(to_export(certificate, end, later[2]), device.identity).faults == ("entry 3 is not counted",)


def test_keeps_within_its_bounds_and_says_what_was_dropped(device: Device, folder: Path) -> None:
    count = 0
    for _ in range(3):
        filled(device, SEGMENTS * SEGMENT_BYTES // 350)
        found = report(device)
        assert not found.faults
        assert found.dropped > count
        count = found.dropped
        assert found.entries[-1].sequence == found.count == device.logged
        assert found.entries[0].sequence <= found.dropped + 1
    kept = sum(path.stat().st_size for path in (folder / "d" / "disk").glob("audit.*"))
    assert kept <= SEGMENTS * (SEGMENT_BYTES + 512)
    with reopened(device, folder) as again:
        assert report(again).dropped == count


def test_goes_on_after_being_turned_off(device: Device, folder: Path) -> None:
    filled(device, 3)
    before = told(device)
    with reopened(device, folder) as again:
        again.record("note", "on")
        assert told(again) == [*before, ("note", "on")]


HARMS: dict[str, Callable[[Path, random.Random], object]] = {
    "all gone": lambda disk, _: [path.rename(path.with_name("x")) for path in disk.glob("audit.*")],
    "emptied": lambda disk, _: [path.write_bytes(b"") for path in disk.glob("audit.*")],
    "noise": lambda disk, chance: [path.write_bytes(chance.randbytes(9999)) for path in disk.glob("audit.*")],
    "newest gone": lambda disk, _: (disk / "audit.3").unlink(),
    "newest cut": lambda disk, _: os.truncate(disk / "audit.3", 1024 + 512),
    "newest changed": lambda disk, _: _flip(disk / "audit.3", 700),
    "newest head changed": lambda disk, _: _flip(disk / "audit.3", 40),
    "middle changed": lambda disk, _: _flip(disk / "audit.2", 700),
    "middle gone": lambda disk, _: (disk / "audit.2").unlink(),
    "oldest gone": lambda disk, _: (disk / "audit.1").unlink(),
    "newest is an older one": lambda disk, _: shutil.copy(disk / "audit.2", disk / "audit.3"),
}


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_log_bricks_nothing_and_shows(folder: Path, harm: str) -> None:
    with Device.create(folder / "d", CLASS, SIGNER.root) as device:
        filled(device, 200)
        assert len(list((folder / "d" / "disk").glob("audit.*"))) == 3
        count = device.logged
        copies = [seal_for(device.identity, SIGNER, sequence=number) for number in (1, 2)]
    HARMS[harm](folder / "d" / "disk", random.Random(1))
    for copy in copies:  # what was found missing is told once, and held against the log for good
        with Device.open(folder / "d") as device:
            flash(device, copy)
            assert device.boot().classify_batch(frames(2)).shape == (2,)
            found = report(device)
            assert found.faults
            assert "missing" in found.faults[0]
            assert found.dropped == 0
            lost = [entry for entry in found.entries if entry.event == LOST]
            assert len(lost) == (found.lost > 0) == ("newest" in harm or harm in {"all gone", "emptied", "noise"})
            if lost:
                assert lost[0].sequence == count + 1
                assert lost[0].detail.endswith(f"to {count}")


def test_a_loss_is_not_forgotten_when_its_entry_is_dropped(device: Device, folder: Path) -> None:
    filled(device, 10)
    device.close()
    (folder / "d" / "disk" / "audit.1").unlink()
    with Device.open(folder / "d") as again:
        filled(again, SEGMENTS * SEGMENT_BYTES // 300)
        found = report(again)
        assert LOST not in {entry.event for entry in found.entries}
        assert found.lost == 11
        assert found.faults == ("the device itself has found 11 entries missing",)


def test_a_restored_disk_shows(device: Device, folder: Path) -> None:
    filled(device, 3)
    shutil.copytree(folder / "d" / "disk", folder / "backup")
    filled(device, 3)
    device.close()
    shutil.rmtree(folder / "d" / "disk")
    shutil.move(folder / "backup", folder / "d" / "disk")
    with Device.open(folder / "d") as again:
        assert "entries 5 to 7 are missing" in report(again).faults


def at_the_edge(device: Device, segments: int) -> None:
    """Fills the log until the next such entry begins a segment, after so many."""
    end = size = 0
    while True:
        filled(device, 1)
        tip = device._audit._tip
        assert tip is not None
        assert tip.head is not None
        size = max(size, tip.end - end)
        end = tip.end
        if tip.head.number == segments and end + size > SMALL_SEGMENT:
            return


@pytest.mark.parametrize(("segments", "operations"), [(0, 4), (1, 6), (SEGMENTS, 5)], ids=["append", "new", "turn"])
def test_no_power_cut_breaks_the_log(
    folder: Path, segments: int, operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at each operation of an append, of one that begins a segment, and of one that overwrites the oldest."""
    monkeypatch.setattr(audit_log, "SEGMENT_BYTES", SMALL_SEGMENT)
    with Device.create(folder / "base", CLASS, SIGNER.root) as device:
        if segments:
            at_the_edge(device, segments)
        files = len(list((folder / "base" / "disk").glob("audit.*")))
    outcomes = set()
    for operation in range(1, operations + 1):
        for seed in range(6):
            with twin(folder / "base", folder / "t", Fault(operation, seed)) as device:
                with pytest.raises(PowerCut):
                    filled(device, 3)
                counted = device.logged
            with Device.open(folder / "t") as device:
                found = report(device)
                assert not found.faults
                outcomes.add(found.count - counted)
                device.record("note", "on")
                assert report(device).count == found.count + 1
    assert outcomes == {0, 1}
    assert len(list((folder / "t" / "disk").glob("audit.*"))) == min(SEGMENTS, files + (segments > 0))


def cut_at_the_chip(chip: Fuses, name: str, value: bytes) -> None:
    assert name == HEAD
    raise PowerCut("cut at the chip")


def restored(folder: Path, name: str) -> None:
    """Puts back a copy of the disk that was kept under a name."""
    shutil.rmtree(folder / "d" / "disk")
    shutil.copytree(folder / name, folder / "d" / "disk")


def uncounted(folder: Path, name: str, event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an entry reach the disk and not the chip, and keeps that disk under a name."""
    with monkeypatch.context() as patch, Device.open(folder / "d") as device:
        patch.setattr(Fuses, "burn", cut_at_the_chip)
        with pytest.raises(PowerCut):
            device.record(event, "x")
    shutil.copytree(folder / "d" / "disk", folder / name)


@pytest.mark.parametrize("before", [0, 20], ids=["appended", "in a new segment"])
def test_a_counted_entry_cannot_be_replaced_by_one_that_was_not(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    if before:
        monkeypatch.setattr(audit_log, "SEGMENT_BYTES", SMALL_SEGMENT)
        at_the_edge(device, 1)
    count = device.logged
    device.close()
    shutil.copytree(folder / "d" / "disk", folder / "clean")
    uncounted(folder, "harmless", "harmless" + "x" * before * 10, monkeypatch)
    restored(folder, "clean")
    with Device.open(folder / "d") as again:
        again.record("telling", "x")
        assert again.logged == count + 1
    restored(folder, "harmless")
    for _ in range(2):  # for good
        with Device.open(folder / "d") as again:
            found = report(again)
            assert found.faults == ("the device itself has found 1 entries missing",)
            assert found.entries[-1].event == LOST
            assert found.entries[-1].detail == f"entry {count + 1} is not the one that the chip counted"
            assert found.count == count + 2


def test_an_older_uncounted_entry_does_not_come_back_later(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.close()
    shutil.copytree(folder / "d" / "disk", folder / "clean")
    uncounted(folder, "harmless", "harmless", monkeypatch)
    restored(folder, "clean")
    with Device.open(folder / "d") as again:
        filled(again, 3)
    restored(folder, "harmless")
    with Device.open(folder / "d") as again:
        assert report(again).lost == 2


def test_a_cut_while_a_loss_is_noted_counts_it_once(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "d" / "disk", folder / "older")
    filled(device, 3)
    device.close()
    restored(folder, "older")
    with monkeypatch.context() as patch, Device.open(folder / "d") as again:
        patch.setattr(Fuses, "burn", cut_at_the_chip)
        with pytest.raises(PowerCut):
            again.record("note", "x")
    for _ in range(2):
        with Device.open(folder / "d") as again:
            found = report(again)
            assert (found.lost, found.count) == (3, 5)
            assert [entry.event for entry in found.entries] == ["made", LOST]


def test_a_cut_between_a_head_and_its_entry_loses_nothing(device: Device, folder: Path) -> None:
    """As sectors may land: a whole head, of a segment of which no entry reached the disk."""
    device.record("note", "one")
    log = device._audit
    tip = log._tip
    assert tip is not None
    assert tip.head is not None
    disk = device.slots.storage
    head = Head(number=2, firsts=(1, 3), previous=tip.link, lost=0)
    disk.create("audit.2")
    disk.truncate("audit.2", SEGMENT_BYTES)
    disk.write("audit.2", 0, log._key.sign(head.to_bytes()))
    disk.fsync("audit.2")
    disk.fsync_dir()
    with reopened(device, folder) as again:
        assert told(again)[-1] == ("note", "one")
        again.record("note", "two")
        assert told(again)[-1] == ("note", "two")


def test_a_damaged_head_in_the_chip_is_told(device: Device, folder: Path) -> None:
    device.close()
    (folder / "d" / "fuses" / HEAD).write_bytes(b"short")
    with Device.open(folder / "d") as again, pytest.raises(DeviceError, match="damaged"):
        again.record("note", "x")


def test_a_cut_before_the_chip_counts_is_made_good(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Fuses, "burn", cut_at_the_chip)
        with pytest.raises(PowerCut):
            device.record("note", "durable, not counted")
    assert device.logged == 1
    with reopened(device, folder) as again:
        assert told(again)[-1] == ("note", "durable, not counted")
        assert again.logged == 2


def test_repeats_are_counted_and_told_at_the_end(device: Device, folder: Path) -> None:
    bad = seal_for(device.identity, SIGNER, not_after=1)
    for _ in range(50):
        with pytest.raises(RefusedError):
            flash(device, bad)
    assert device.logged == 2
    assert device.log()[-1].endswith("(repeated 49 times)")
    with reopened(device, folder) as again:
        assert [detail for event, detail in told(again) if event == "refused"] == [
            "flash: expired: artefact has expired",
            "flash: expired: artefact has expired (repeated 49 times)",
        ]


def test_a_refusal_that_could_not_be_written_is_not_held_for_a_repeat(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DeviceError("the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr(AtRest, "fsync", broken)
        with pytest.raises(DeviceError):
            device.record("refused", "reason")
    device.record("refused", "reason")
    assert told(device)[-1] == ("refused", "reason")


def test_many_threads_write_one_log(device: Device) -> None:
    def write(name: int) -> None:
        for number in range(25):
            device.record("note", f"{name} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    notes = told(device)[1:]
    assert len(notes) == device.logged - 1 == 100
    for name in range(4):
        assert [d for _, d in notes if d.startswith(f"{name} ")] == [f"{name} {number}" for number in range(25)]


def test_a_watcher_may_write_while_others_flash_and_export(device: Device) -> None:
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            device.record("enclave", "x")

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    for thread in watchers:
        thread.start()
    try:
        for sequence in range(1, 4):
            flash(device, seal_for(device.identity, SIGNER, sequence=sequence))
            for _ in range(3):
                assert not report(device).faults
                assert device.log()
    finally:
        stop.set()
        for thread in watchers:
            thread.join()
    found = report(device)
    assert not found.faults
    assert found.count == device.logged
    assert sum(entry.event == "confirmed" for entry in found.entries) == 3 or found.dropped


def test_a_flood_of_different_refusals_wears_out_nothing(device: Device) -> None:
    start = device.slots.storage.operations
    for number in range(5000):
        device.record("refused", f"reason {number}")
    assert device.logged <= 1 + BURST + 1
    assert device.slots.storage.operations - start <= 4 * (BURST + 2)
    assert "the last: reason 4999" in device.log()[-1]


def test_a_flood_is_told_again_and_again_but_seldom() -> None:
    now = 0.0
    held = Repeats(lambda: now)
    written = 0
    for step in range(100_000):  # about a day
        now = step * 0.864
        written += len(held.due()) + held.admits("refused", f"reason {step}")
    day = 86400
    assert written <= BURST + day / EVERY_S + day / WINDOW_S + 2
    assert written >= day / EVERY_S
    assert held.admits("confirmed", "x")
    assert held.admits("confirmed", "x")


def test_every_refusal_is_written_or_counted() -> None:
    now, total = 0.0, 0
    held = Repeats(lambda: now)
    told: list[str] = []
    chance = random.Random(3)
    for _ in range(3000):
        now += chance.choice((0.01, 5.0))
        detail = f"reason {chance.randrange(200)}"
        told += [text for _, text in held.due()]
        if held.admits("refused", detail):
            total += 1
    told += [text for _, text in held.due(all_of_it=True)]
    for text in told:
        words = text.split()
        total += int(words[0] if text[0].isdigit() else words[-2])
    assert total == 3000
    assert held.owed() == []


def test_the_budget_is_told_in_steps_not_in_blocks(device: Device) -> None:
    flash(device, seal_for(device.identity, SIGNER, policy=Policy(budget=1000)))
    enclave = device.boot()
    for _ in range(1000):
        enclave.classify(frames(1)[0])
    for _ in range(2):
        with pytest.raises(LimitError):
            enclave.classify(frames(1)[0])
    told_of = [line for line in device.log() if " budget " in line]
    assert "1000 of 1000 reserved" in told_of[-2]
    assert len(told_of) <= 8 + 2


def test_the_key_shows_nothing_and_never_reaches_the_disk(device: Device, folder: Path) -> None:
    burnt = (folder / "d" / "fuses" / "audit-key").read_bytes()
    key = AuditKey.from_bytes(burnt)
    seed = cbor.decode(burnt, limit=1000)[0]
    assert seed.hex() not in repr(key) + repr(vars(device))
    assert all(seed not in path.read_bytes() for path in (folder / "d" / "disk").iterdir())
    assert seed not in device.export_log()
    assert (folder / "d" / "fuses" / "audit-key").stat().st_mode & 0o777 == 0o600
    for bad in (b"", b"\xff" * 40, cbor.encode([b"short", b""])):
        with pytest.raises(VariegateError):
            AuditKey.from_bytes(bad)


def test_heads_promise_what_they_say() -> None:
    head = Head(number=9, firsts=tuple(range(1, KEPT + 1)), previous=bytes(32), lost=0)
    key = AuditKey.generate(IDENTITY.public.ueid, IDENTITY.sign)
    good = parse(key.sign(head.to_bytes()), key.public)
    assert good is not None
    assert good.head == head
    for changed in (
        replace(head, firsts=()),
        replace(head, firsts=tuple(range(KEPT + 1))),
        replace(head, firsts=(2, 1)),
        replace(head, number=-1),
        replace(head, lost=1 << 63),
        replace(head, number=True),
    ):
        assert parse(key.sign(changed.to_bytes()), key.public) is None
    assert parse(AuditKey.generate(IDENTITY.public.ueid, IDENTITY.sign).sign(head.to_bytes()), key.public) is None


def run(*words: object) -> int:
    return main(["device", *map(str, words)])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Device.create(tmp_path / "car", CLASS, SIGNER.root) as device:
        flash(device, seal_for(device.identity, SIGNER))
    assert run("identity", tmp_path / "car", "--out", tmp_path / "car.json") == 0
    return tmp_path


def test_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("audit", home / "car") == 0
    shown = capsys.readouterr().out
    assert "confirmed sequence 1 in slot a" in shown
    assert "4 of 4 entries verified" in shown
    assert run("audit", home / "car", "--export", home / "x") == 0
    capsys.readouterr()
    assert run("audit", home / "x", "--identity", home / "car.json", "--json") == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (facts["whole"], facts["counted"], facts["faults"]) == (True, 4, [])
    assert [entry["event"] for entry in facts["entries"]] == ["made", "flash", "flash", "confirmed"]


def test_command_says_where_a_log_is_broken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "car" / "disk" / "audit.1").unlink()
    capsys.readouterr()
    assert run("audit", home / "car", "--identity", home / "car.json") == 1
    assert "BROKEN: entries 1 to 4 are missing" in capsys.readouterr().out
    assert run("audit", home / "car", "--json") == 1
    assert json.loads(capsys.readouterr().out)["lost"] == 4


def test_command_misused(home: Path) -> None:
    assert run("audit", home / "car", "--export", home / "x") == 0
    assert run("audit", home / "car", "--export", home / "x") == 2
    assert run("audit", home / "x") == 2
    assert run("audit", home / "x", "--identity", home / "car.json", "--export", home / "y") == 2
    assert run("audit", home / "none") == 2
    (home / "noise").write_bytes(b"noise")
    assert run("audit", home / "noise", "--identity", home / "car.json") == 1
    assert run("audit", home / "x", "--identity", home / "noise") == 1
    with Device.create(home / "bus", CLASS, SIGNER.root):
        pass
    assert run("identity", home / "bus", "--out", home / "bus.json") == 0
    assert run("audit", home / "x", "--identity", home / "bus.json") == 1
