"""Updates that move an envelope only, downloads that break off, and images whose process does not live."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from testbed.devices import twin, workplace
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.slots import TRIES, files
from variegate.device_sim.storage import Fault, PowerCut
from variegate.isolation.policy import DevicePolicy
from variegate.keys.artefact import Artefact
from variegate.keys.component import HEADER_BYTES, Layout
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, open_envelope, seal_batch
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Manifest, Policy
from variegate.runtime.port import Host, LabelPort

SIGNER = MemorySigner()
PAYLOAD = tiny_payload(seed=3, padding=200_000)
CEK = os.urandom(32)


def renewed(public: DevicePublic, artefact: Artefact, number: int) -> bytes:
    """An envelope of another epoch, seed and policy for the same component."""
    keys = SealedKeys(CEK, os.urandom(32))
    ref = open_envelope(artefact.envelope, SIGNER.root).manifest.component
    like = seal_for(public, SIGNER, payload=PAYLOAD, keys=keys, sequence=number, security_counter=number, epoch=number)
    manifest = replace(open_envelope(like.envelope, SIGNER.root).manifest, component=ref, policy=Policy(budget=99_000))
    return seal_batch([EnvelopeDraft(manifest, keys, public.kem, public.kem_public)], SIGNER)[0]


@dataclass(frozen=True)
class Bench:
    """A device that runs sequence 1, and an envelope of sequence 2 for the same component."""

    folder: Path
    running: Path
    old: Artefact
    envelope: Path
    public: DevicePublic


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with workplace() as folder:
        with Device.create(folder / "running", CLASS, SIGNER.root) as device:
            public = device.identity
            keys = SealedKeys(CEK, os.urandom(32))
            old = seal_for(public, SIGNER, payload=PAYLOAD, keys=keys, security_counter=1, chunk=1 << 14)
            flash(device, old)
        (folder / "new.vge").write_bytes(renewed(public, old, 2))
        yield Bench(folder, folder / "running", old, folder / "new.vge", public)


def test_a_new_epoch_moves_the_envelope_only(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        before = device.boot().classify_batch(frames(200))
        report = flash(device, bench.envelope)
        assert report.moved == bench.envelope.stat().st_size < 8000 < len(bench.old.component)
        assert (report.slot, report.written, report.confirmed) == ("b", report.chunks, True)
        enclave = device.boot()
        assert (enclave.manifest.epoch, enclave.manifest.policy.budget) == (2, 99_000)
        assert enclave.classify_batch(frames(200)).tolist() != before.tolist()  # another seed
        with pytest.raises(RefusedError):
            flash(device, bench.old)


def test_the_next_one_writes_no_chunk_either(bench: Bench) -> None:
    third = bench.folder / "third.vge"
    third.write_bytes(renewed(bench.public, bench.old, 3))
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, bench.envelope)
        report = flash(device, third)
        assert (report.slot, report.written) == ("a", 0)
        assert report.moved == third.stat().st_size
        assert device.boot().manifest.sequence == 3
        assert flash(device, third).moved == third.stat().st_size  # again: confirmed already


def test_says_when_the_component_is_not_there(bench: Bench) -> None:
    with Device.create(bench.folder / "empty", CLASS, SIGNER.root) as device:
        lone = bench.folder / "lone.vge"
        lone.write_bytes(seal_for(device.identity, SIGNER).envelope)
        with pytest.raises(MisuseError, match="does not hold the component") as caught:
            flash(device, lone)
        assert caught.value.hint == "give the component's file as well"
    with twin(bench.running, bench.folder / "t") as device:
        lone.write_bytes(seal_for(bench.public, SIGNER, sequence=2, security_counter=2).envelope)
        with pytest.raises(MisuseError):
            flash(device, lone)
        assert device.slots.record().trial is None
        assert device.boot().manifest.sequence == 1


def test_an_envelope_alone_is_checked_like_any_other(bench: Bench) -> None:
    envelope = bench.envelope.read_bytes()
    bad = bench.folder / "bad.vge"
    with twin(bench.running, bench.folder / "t") as device:
        kept = device.slots.storage.names()
        for data in (
            b"",
            b"x",
            envelope[:-1],
            envelope + b"\0",
            bytes([envelope[0] ^ 1]) + envelope[1:],
            bytes(1 << 17),
        ):
            bad.write_bytes(data)
            with pytest.raises(RefusedError) as caught:
                flash(device, bad)
            assert caught.value.refusal is Refusal.ARTEFACT
        assert device.slots.storage.names() == kept


def test_a_damaged_copy_in_the_slot_is_not_passed_on(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        device.slots.storage.write("a.component", 150_000, b"damage")
        with pytest.raises(MisuseError):
            flash(device, bench.envelope)
        assert not device.slots.storage.exists("b.component")
        component = bench.folder / "component"
        component.write_bytes(bench.old.component)
        report = flash(device, bench.envelope, component_file=component)
        assert report.moved == len(bench.old.component) + bench.envelope.stat().st_size
        assert device.boot().manifest.sequence == 2


def test_the_other_slot_serves_when_the_confirmed_one_holds_something_else(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, seal_for(bench.public, SIGNER, sequence=2, security_counter=1))
        report = flash(device, bench.envelope)
        assert (report.slot, report.written) == ("a", 0)
        assert device.boot().manifest.epoch == 2


@pytest.mark.parametrize("seed", range(2))
def test_no_power_cut_over_an_envelope_update_bricks(bench: Bench, seed: int) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, bench.envelope)
        total = device.slots.storage.operations
    outcomes = set()
    for operation in range(1, total + 1):
        with twin(bench.running, bench.folder / "t", Fault(operation, seed)) as device, pytest.raises(PowerCut):
            flash(device, bench.envelope)
        with Device.open(bench.folder / "t") as device:
            for _ in range(TRIES + 1):
                enclave = device.boot()
                assert len(enclave.classify_batch(frames(2))) == 2
            outcomes.add(enclave.manifest.sequence)
            report = flash(device, bench.envelope)
            assert report.moved == bench.envelope.stat().st_size
            assert device.boot().manifest.sequence == 2
            with pytest.raises(RefusedError):
                flash(device, bench.old)
    assert outcomes == {1, 2}


def test_command(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with twin(bench.running, bench.folder / "t"):
        pass
    assert main(["device", "flash", str(bench.folder / "t"), str(bench.envelope)]) == 0
    assert f"{bench.envelope.stat().st_size} bytes read" in capsys.readouterr().err
    lone = bench.folder / "lone.vge"
    lone.write_bytes(seal_for(bench.public, SIGNER, sequence=3, security_counter=3).envelope)
    assert main(["device", "flash", str(bench.folder / "t"), str(lone)]) == 2
    assert "give the component's file" in capsys.readouterr().err


class Line:
    """An artefact that comes over a connection which breaks after so many reads."""

    def __init__(self, artefact: Artefact, reads: int, error: Exception) -> None:
        self.envelope = artefact.envelope
        self.length = len(artefact.component)
        self.asked: list[slice] = []
        self._artefact, self._reads, self._error = artefact, reads, error

    def read(self, part: slice) -> bytes:
        if len(self.asked) == self._reads:
            raise self._error
        self.asked.append(part)
        return bytes(self._artefact.component[part])


@pytest.mark.parametrize("error", [DeviceError("lost"), ConnectionResetError(104, "reset"), TimeoutError()])
@pytest.mark.parametrize("again", [False, True], ids=["same process", "after a restart"])
def test_a_download_that_breaks_off_goes_on_where_it_was(bench: Bench, again: bool, error: Exception) -> None:
    new = seal_for(bench.public, SIGNER, payload=PAYLOAD, sequence=2, security_counter=2, chunk=1 << 14)
    layout = Layout.parse(bytes(new.component[:HEADER_BYTES]), _manifest(new).component)
    target = bench.folder / "t"
    device = twin(bench.running, target)
    try:
        done = 2  # header and leaves
        for reads in (2, 5, 3, 4):
            line = Line(new, reads, error)
            with pytest.raises(DeviceError):
                flash(device, line)
            assert line.asked[2:] == [layout.span(done - 2 + i) for i in range(reads - 2)]
            done += reads - 2
            if again:
                device.close()
                device = Device.open(target)
            assert device.slots.record().trial is None
            assert device.boot().manifest.sequence == 1
        line = Line(new, 100, error)
        report = flash(device, line)
        assert report.written == layout.chunks - (done - 2)
        assert line.asked[2:] == [layout.span(i) for i in range(done - 2, layout.chunks)]
        assert report.moved == len(new.envelope) + sum(part.stop - part.start for part in line.asked)
        assert device.boot().manifest.sequence == 2
    finally:
        device.close()


def _manifest(artefact: Artefact) -> Manifest:
    return open_envelope(artefact.envelope, SIGNER.root).manifest


class Crashing:
    """A host (`runtime.port.Host`) below which the process of one sequence does not live."""

    policy = DevicePolicy()

    def __init__(self, inner: Host, sequence: int) -> None:
        self.inner, self.sequence, self.started = inner, sequence, 0

    def measurements(self) -> Mapping[str, bytes]:
        return self.inner.measurements()

    def start(self, artefact: Artefact, platform: Any) -> LabelPort:
        if _manifest(artefact).sequence == self.sequence:
            self.started += 1
            raise DeviceError("the enclave stopped")
        return self.inner.start(artefact, platform)


def test_an_image_whose_process_dies_is_tried_so_often_and_gives_way(bench: Bench) -> None:
    target = bench.folder / "t"
    new = seal_for(bench.public, SIGNER, sequence=2, security_counter=2)
    with twin(bench.running, target) as device:
        flash(device, new, confirm=False)
        inner = device._host
    host = Crashing(inner, 2)
    for boot in range(1, TRIES + 2):
        with Device.open(target, host=host) as device:
            enclave = device.boot()
            assert enclave.manifest.sequence == 1
            assert len(enclave.classify_batch(frames(3))) == 3
            assert host.started == min(boot, TRIES)
            record = device.slots.record()
            assert (record.trial, record.tries) == (("b", TRIES - boot) if boot <= TRIES else (None, 0))
            assert device.counter("security") == 1
    with Device.open(target, host=host) as device:
        assert any("did not run: the enclave stopped" in line for line in device.log())
        assert any("reverted" in line for line in device.log())
    with Device.open(target) as device:  # nothing stands in the way of a process that lives
        assert flash(device, new).written == 0
        assert device.boot().manifest.sequence == 2


def test_confirming_an_image_whose_process_dies_keeps_the_old_one(bench: Bench) -> None:
    target = bench.folder / "t"
    new = seal_for(bench.public, SIGNER, sequence=2, security_counter=2)
    with twin(bench.running, target) as device:
        inner = device._host
    with Device.open(target, host=Crashing(inner, 2)) as device:
        with pytest.raises(DeviceError, match="stopped"):
            flash(device, new)
        assert device.counter("security") == 1
        assert [device.boot().manifest.sequence for _ in range(TRIES + 1)] == [1] * (TRIES + 1)
        assert device.slots.record().trial is None
        assert device.slots.storage.exists(files("b")[0])
