"""An older copy stays out: by the security counter, and by the sequence number among copies of one counter."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from testbed.artefacts import CLASS, MemorySigner, frames, seal_for, tiny_payload
from testbed.devices import twin, workplace
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.fuses import Fuses
from variegate.device_sim.hosting import host_for
from variegate.device_sim.slots import TRIES, files
from variegate.device_sim.storage import Fault, PowerCut
from variegate.device_sim.trust import Trust
from variegate.isolation.policy import DevicePolicy
from variegate.keys import cbor
from variegate.keys.artefact import Artefact
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import Policy
from variegate.runtime.enclave import Enclave

SIGNER = MemorySigner()
LARGE, SMALL = Policy(budget=100_000), Policy(budget=16)


def numbers_of(counter: int) -> str:
    """The chip's counter of sequence numbers under a security counter."""
    return f"sequence.{counter}"


@dataclass(frozen=True)
class Bench:
    """A device that is off and empty, and one that has confirmed sequence 5 under security counter 1."""

    folder: Path
    empty: Path
    running: Path
    confirmed: Artefact

    def seal(self, **changes: Any) -> Artefact:
        with Device.open(self.empty) as device:
            return seal_for(device.identity, SIGNER, **{"security_counter": 1, **changes})


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with workplace() as folder:
        with Device.create(folder / "empty", CLASS, SIGNER.root) as device:
            confirmed = seal_for(device.identity, SIGNER, sequence=5, security_counter=1, policy=SMALL)
        with twin(folder / "empty", folder / "running") as device:
            flash(device, confirmed)
        yield Bench(folder, folder / "empty", folder / "running", confirmed)


def place(device: Device, slot: str, artefact: Artefact) -> None:
    """Writes an image into a slot, as whoever has the disk can."""
    for name, data in zip(files(slot), (artefact.envelope, artefact.component), strict=True):
        if device.slots.storage.exists(name):
            device.slots.storage.remove(name)
        device.slots.storage.create(name)
        device.slots.storage.write(name, 0, data)
        device.slots.storage.fsync(name)
    device.slots.storage.fsync_dir()


def refused(device: Device, call: Callable[..., object], *arguments: object, **more: object) -> None:
    """Refused outwards in the one way, inwards as rolled back."""
    with pytest.raises(RefusedError) as caught:
        call(*arguments, **more)
    assert caught.value.refusal is Refusal.ARTEFACT
    assert caught.value.message == "artefact refused"
    assert f": {Refusal.ROLLED_BACK}: " in [line for line in device.log() if "refused" in line][-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 4, "policy": LARGE},
        {"sequence": 4, "policy": LARGE, "epoch": 7},
        {"sequence": 4, "policy": LARGE, "buyer": "another"},
        {"sequence": 0, "payload": tiny_payload(seed=9)},
    ],
    ids=["policy", "epoch", "buyer", "component"],
)
def test_a_lower_sequence_of_the_same_counter_is_refused(bench: Bench, changes: dict[str, Any]) -> None:
    older = bench.seal(**changes)
    with twin(bench.running, bench.folder / "t") as device:
        for confirm in (True, False):
            refused(device, flash, device, older, confirm=confirm)
        assert device.slots.record().trial is None
        assert not device.slots.storage.exists("b.envelope")
        assert f"sequence {changes['sequence']}, confirmed 5" in device.log()[-1]
        assert device.boot().manifest.policy == SMALL


def test_the_same_file_and_higher_numbers_are_taken(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        assert flash(device, bench.confirmed).written == 0
        for sequence in (6, 9):
            assert flash(device, bench.seal(sequence=sequence, policy=LARGE)).confirmed
        refused(device, flash, device, bench.confirmed)
        assert device.status().sequence == 9


def test_a_higher_counter_starts_its_own_numbers(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, bench.seal(sequence=1, security_counter=2))
        assert (device.status().security_counter, device.status().sequence) == (2, 1)
        refused(device, flash, device, bench.seal(sequence=9))
        flash(device, bench.seal(sequence=3, security_counter=2))
        refused(device, flash, device, bench.seal(sequence=2, security_counter=2))


def test_the_signed_field_lets_a_copy_back_and_no_other(bench: Bench) -> None:
    older = bench.seal(sequence=2, policy=LARGE, allow_downgrade=True)
    between = bench.seal(sequence=3, policy=LARGE)
    with twin(bench.running, bench.folder / "t") as device:
        assert flash(device, older).confirmed
        assert device.boot().manifest.policy == LARGE
        # The chip keeps the highest: a copy that was let back opens no way for those between.
        refused(device, flash, device, between)
        assert flash(device, bench.confirmed).confirmed
        flash(device, bench.seal(sequence=1, security_counter=2))
        refused(device, flash, device, older)


TWINS: list[dict[str, Any]] = [
    {"policy": LARGE},
    {"policy": LARGE, "epoch": 7},
    {"buyer": "another"},
    {"payload": tiny_payload(seed=9)},
    {},
]


@pytest.mark.parametrize("changes", TWINS, ids=["policy", "epoch", "buyer", "component", "sealed anew"])
def test_another_copy_of_equal_numbers_is_refused(bench: Bench, changes: dict[str, Any]) -> None:
    """Two registries of one seller may give them; which of two is the older nobody can tell."""
    other = bench.seal(sequence=5, **changes)
    with twin(bench.running, bench.folder / "t") as device:
        for confirm in (True, False):
            refused(device, flash, device, other, confirm=confirm)
        assert "another artefact has security counter 1 and sequence 5" in device.log()[-1]
        assert device.slots.record().trial is None
        # Nor does whoever holds the disk get it in.
        place(device, "b", other)
        record = device.slots.record()
        for passed in (False, True):
            device.slots.write(replace(record, trial="b", tries=TRIES, passed=passed))
            assert device.boot().manifest.policy == SMALL
        device.slots.write(replace(record, confirmed="b", trial=None))
        refused(device, device.boot)
        device.slots.write(record)
        assert flash(device, bench.confirmed).confirmed
        assert flash(device, bench.seal(sequence=6, **changes)).confirmed


@pytest.mark.parametrize("number", [0, 1])
def test_a_devices_first_copy_ends_all_others_of_its_numbers(bench: Bench, number: int) -> None:
    first, second = (bench.seal(sequence=number, security_counter=0, policy=policy) for policy in (SMALL, LARGE))
    with twin(bench.empty, bench.folder / "t") as device:
        flash(device, first)
        refused(device, flash, device, second)
        assert flash(device, first).confirmed


def test_a_host_of_its_own_process_refuses_equal_numbers_too(bench: Bench) -> None:
    twin(bench.running, bench.folder / "t").close()
    host = host_for(DevicePolicy())
    with Device.open(bench.folder / "t", host=host) as device:
        refused(device, host.start, bench.seal(sequence=5, policy=LARGE), device)
        with host.start(bench.confirmed, device) as enclave:
            assert len(enclave.classify_batch(frames(2))) == 2


def test_which_copy_has_the_highest_number_outlives_one_that_was_let_back(bench: Bench) -> None:
    older = bench.seal(sequence=2, allow_downgrade=True)
    other, free = bench.seal(sequence=5, policy=LARGE), bench.seal(sequence=5, policy=LARGE, allow_downgrade=True)
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, older)
        refused(device, flash, device, other)
    with Device.open(bench.folder / "t") as device:
        refused(device, flash, device, other)
        assert flash(device, bench.confirmed).confirmed
        # Signed to come in, it has the number from then on.
        assert flash(device, free).confirmed
        for copy in (other, bench.confirmed):
            refused(device, flash, device, copy)
        assert device.boot().manifest.policy == LARGE


def test_what_a_chip_from_before_pinned_is_read() -> None:
    root, digest = SIGNER.root, bytes(range(32))
    for earlier in (None, root):
        known = Trust.from_bytes(cbor.encode([1, root.to_bytes(), earlier and earlier.to_bytes(), digest]))
        assert (known.envelope, known.numbered, known.earlier) == (digest, digest, earlier)
        for trust in (known, replace(known, numbered=bytes(32)), Trust(0, root)):
            assert Trust.from_bytes(trust.to_bytes()) == trust


def test_an_older_trial_that_was_waiting_gives_way(bench: Bench) -> None:
    older = bench.seal(sequence=4, policy=LARGE)
    with twin(bench.empty, bench.folder / "t") as device:
        flash(device, older, confirm=False)
        record = device.slots.record()
        assert device.boot().manifest.sequence == 4
        flash(device, bench.confirmed)
        place(device, "b", older)
        for passed in (False, True):
            device.slots.write(replace(record, confirmed="a", trial="b", passed=passed))
            assert device.boot().manifest.sequence == 5
            assert device.slots.record().trial is None
        device.slots.write(replace(record, confirmed="a", trial="b"))
        refused(device, device.confirm)
        device.slots.write(replace(record, confirmed="b", trial=None))
        refused(device, device.boot)


def test_what_is_open_ends_when_a_newer_one_is_confirmed(bench: Bench) -> None:
    with twin(bench.running, bench.folder / "t") as device:
        enclave = Enclave.open(bench.confirmed, device)
        enclave.classify(frames(1)[0])
        flash(device, bench.seal(sequence=6))
        with pytest.raises(RefusedError) as caught:
            enclave.classify(frames(1)[0])
        assert caught.value.refusal is Refusal.ROLLED_BACK


def test_an_enclave_of_its_own_process_ends_likewise(bench: Bench) -> None:
    twin(bench.running, bench.folder / "t").close()
    host = host_for(DevicePolicy())
    with Device.open(bench.folder / "t", host=host) as device:
        with host.start(bench.confirmed, device) as enclave:
            assert len(enclave.classify_batch(frames(2))) == 2
            device.advance(numbers_of(1), 6)
            with pytest.raises(RefusedError) as caught:
                enclave.classify_batch(frames(2))
            assert caught.value.refusal is Refusal.ROLLED_BACK
        refused(device, host.start, bench.confirmed, device)


@pytest.mark.parametrize("counter", [1, 2], ids=["same counter", "higher counter"])
@pytest.mark.parametrize("seed", range(2))
def test_no_power_cut_bricks_or_lets_an_older_one_back(bench: Bench, counter: int, seed: int) -> None:
    update = bench.seal(sequence=6, security_counter=counter)
    older = bench.seal(sequence=4, policy=LARGE)
    below = bench.seal(sequence=5, security_counter=counter, policy=LARGE)
    equal = bench.seal(sequence=6, security_counter=counter, policy=LARGE)
    with twin(bench.running, bench.folder / "t") as device:
        flash(device, update)
        total = device.slots.storage.operations
    chance = random.Random(seed)
    for operation in range(1, total + 1):
        fault = Fault(operation, chance.randrange(1 << 30))
        with twin(bench.running, bench.folder / "t", fault) as device, contextlib.suppress(PowerCut):
            flash(device, update)
        with Device.open(bench.folder / "t") as device:
            assert [device.boot().manifest.sequence for _ in range(TRIES + 1)][-1] in {5, 6}
            refused(device, flash, device, older)
            flash(device, update)
            for copy in (older, below, equal, bench.confirmed):
                refused(device, flash, device, copy)
            assert device.boot().manifest.sequence == 6


@pytest.mark.parametrize("landed", [False, True])
def test_a_cut_between_the_chips_writes_leaves_both_bounds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    """Whatever the chip took, and with a disk from before the update: no older copy of either counter comes in."""
    update = bench.seal(sequence=6, security_counter=2)
    older, below = bench.seal(sequence=4, policy=LARGE), bench.seal(sequence=5, security_counter=2)
    equal = bench.seal(sequence=6, security_counter=2, policy=LARGE)
    names: list[str] = []
    for number in range(1, 20):
        device = twin(bench.running, bench.folder / "t")
        with monkeypatch.context() as patch, device:
            seen = _cut(patch, number, landed)
            with contextlib.suppress(PowerCut):
                flash(device, update)
            if len(seen) < number:
                break
            names = seen
        with Device.open(bench.folder / "t") as device:
            place(device, "a", bench.confirmed)
            device.slots.write(replace(device.slots.record(), confirmed="a", trial=None, passed=False))
            refused(device, flash, device, older)
            if device.counter("security") == 2:
                refused(device, flash, device, below)
                refused(device, flash, device, equal)
            flash(device, update)
            assert device.boot().manifest.sequence == 6
    assert names.index(numbers_of(2)) < names.index("security")


def _cut(patch: pytest.MonkeyPatch, number: int, landed: bool) -> list[str]:
    """Cuts the power at a rise of the chip's counters; returns the names seen, as they come."""
    seen: list[str] = []
    write = Fuses._raise

    def cutting(chip: Fuses, name: str, value: int) -> None:
        seen.append(name)
        if len(seen) != number or landed:
            write(chip, name, value)
        if len(seen) == number:
            raise PowerCut("cut at the chip")

    patch.setattr(Fuses, "_raise", cutting)
    return seen
