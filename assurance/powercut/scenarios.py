"""Part of `assurance.powercut`: the interrupted operations, and the check of a device afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.artefacts import CLASS, frames, seal_for, tiny_payload
from testbed.devices import twin
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.slots import TRIES
from variegate.device_sim.storage import Fault, PowerCut
from variegate.keys.artefact import Artefact
from variegate.keys.component import HEADER_BYTES, Layout
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, open_envelope, seal_batch
from variegate.keys.errors import DeviceError, RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import ComponentRef
from variegate.keys.rotation import rotate
from variegate.keys.seller import Seller
from variegate.keys.signing import Signer

SHOWN = frames(16)
"""The frames that a device is asked after each cut."""
_CEK = bytes(range(32))
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Scenario:
    """Something that a device does while its power goes.

    Attributes:
        name: Of it.
        start: The device before, off.
        act: Does the operation, or the rest of it.
        labels: The images' labels of `SHOWN`, by their sequence; the last is the new image's.
        artefact: The file that is flashed.
        old: The image before, which must not come back; None on a device without one.
    """

    name: str
    start: Path
    act: Callable[[Device], None]
    labels: dict[int, list[int]]
    artefact: Path
    old: Artefact | None

    @property
    def new(self) -> int:
        """Sequence of the new image."""
        return max(self.labels)


@dataclass
class Score:
    """The results of cuts.

    Attributes:
        cuts: Times the power went, or the process was killed, in a first try.
        double_cuts: Times it went once more in the recovery.
        bricks: Devices that did not boot, gave a wrong label, or did not take the new image afterwards.
        rollbacks_tried: Times the old image was flashed, or booted from a restored disk, after the new was confirmed.
        rollbacks_accepted: Times that worked.
        reasons: Why a device counts as bricked.
    """

    cuts: int = 0
    double_cuts: int = 0
    bricks: int = 0
    rollbacks_tried: int = 0
    rollbacks_accepted: int = 0
    reasons: tuple[str, ...] = ()

    def judge(self, scenario: Scenario, target: Path) -> None:
        """Turns a device on after a cut, lets it finish, and tries to bring the old image back."""
        try:
            _recovers(scenario, target)
        except Exception as error:  # noqa: BLE001  whatever it is, the device is of no use
            self.bricks += 1
            self.reasons += (f"{scenario.name}: {type(error).__name__}: {error}",)
            return
        if scenario.old is not None:
            self.rollbacks_tried += 2
            self.rollbacks_accepted += _flashes(target, scenario.old)
            self.rollbacks_accepted += _boots_restored(scenario, target)

    def add(self, other: Score) -> None:
        """Takes another's counts in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def scenarios(folder: Path, *, padding: int = 0) -> list[Scenario]:
    """First flash, update, update by an envelope alone, a download resumed, and a rotation of the root.

    Args:
        folder: To work in; must exist.
        padding: Bytes that make components larger.
    """
    seller = Seller.generate()
    following, statement = rotate(seller)
    empty, running, begun = (folder / name for name in ("empty", "running", "begun"))
    with Device.create(empty, CLASS, seller.root) as device:
        public = device.identity
    old = _sealed(public, seller.signer, 1, padding)
    new = _sealed(public, seller.signer, 2, padding)
    old_ref, new_ref = (open_envelope(a.envelope, seller.root).manifest.component for a in (old, new))
    labels = {1: _flashed(empty, running, old), 2: _flashed(empty, folder / "t", new)}
    whole, envelope, rotated = (folder / name for name in ("new.vgc", "new.vge", "rotated.vgc"))
    whole.write_bytes(new.to_bytes())
    envelope.write_bytes(_renewed(public, seller.signer, old_ref, padding))
    with twin(running, folder / "t") as device:
        flash(device, envelope)
        renewed = device.boot().classify_batch(SHOWN).tolist()
    with twin(running, begun) as device, contextlib.suppress(DeviceError):
        flash(device, _Broken(new, new_ref))
    later = _sealed(public, following.signer, 2, padding)
    rotated.write_bytes(later.to_bytes())
    rotated_labels = {1: labels[1], 2: _flashed(empty, folder / "t", later, statement)}

    def follow(device: Device) -> None:
        if device.root != following.root:
            device.follow(statement)
        flash(device, rotated)

    def install(device: Device) -> None:
        flash(device, whole)

    def renew(device: Device) -> None:
        flash(device, envelope)

    return [
        Scenario("first", empty, install, {2: labels[2]}, whole, None),
        Scenario("update", running, install, labels, whole, old),
        Scenario("envelope_only", running, renew, {1: labels[1], 2: renewed}, envelope, old),
        Scenario("resumed", begun, install, labels, whole, old),
        Scenario("rotation", running, follow, rotated_labels, rotated, old),
    ]


def cut(scenario: Scenario, target: Path, fault: Fault) -> bool:
    """Copies the scenario's device to `target` and lets it act until the power goes; False when it does not."""
    with twin(scenario.start, target, fault) as device:
        try:
            scenario.act(device)
        except PowerCut:
            return True
    return False


def recover(scenario: Scenario, target: Path, fault: Fault | None) -> int | None:
    """Boots a device and lets it act again.

    Returns:
        Storage operations that this took; None when the power went once more.
    """
    with Device.open(target, fault=fault) as device:
        try:
            if _holds_image(device, scenario):
                device.boot()
            scenario.act(device)
        except PowerCut:
            return None
        return device.slots.storage.operations


def operations(scenario: Scenario, target: Path) -> int:
    """Storage operations of the whole, uncut."""
    with twin(scenario.start, target) as device:
        scenario.act(device)
        return device.slots.storage.operations


class _Broken:
    """A download that breaks off half-way."""

    def __init__(self, artefact: Artefact, ref: ComponentRef) -> None:
        self.envelope, self.length = artefact.envelope, len(artefact.component)
        self._component = artefact.component
        layout = Layout.parse(bytes(artefact.component[:HEADER_BYTES]), ref)
        self._until = layout.span(layout.chunks // 2).start

    def read(self, part: slice) -> bytes:
        if part.start >= self._until:
            raise ConnectionResetError
        return bytes(self._component[part])


def _recovers(scenario: Scenario, target: Path) -> None:
    """Boots until what was not confirmed has given way, then acts; raises when a device is of no use."""
    with Device.open(target) as device:
        if _holds_image(device, scenario):
            for _ in range(TRIES + 1):
                _ask(scenario, device, set(scenario.labels))
        scenario.act(device)
        _ask(scenario, device, {scenario.new})


def _holds_image(device: Device, scenario: Scenario) -> bool:
    """Whether a device must boot: on one that was empty, nothing may be confirmed yet."""
    record = device.slots.record()
    return scenario.old is not None or record.confirmed is not None or record.passed


def _ask(scenario: Scenario, device: Device, allowed: set[int]) -> None:
    port = device.boot()
    sequence = port.manifest.sequence
    if sequence not in allowed:
        raise RuntimeError(f"sequence {sequence} boots")
    if port.classify_batch(SHOWN).tolist() != scenario.labels[sequence]:
        raise RuntimeError(f"sequence {sequence} gives wrong labels")


def _flashes(target: Path, artefact: Artefact) -> bool:
    with Device.open(target) as device:
        try:
            flash(device, artefact)
        except RefusedError:
            return False
        return True


def _boots_restored(scenario: Scenario, target: Path) -> bool:
    """Whether the disk from before, put back, boots."""
    shutil.rmtree(target / "disk")
    shutil.copytree(scenario.start / "disk", target / "disk")
    with Device.open(target) as device:
        try:
            device.boot()
        except RefusedError:
            return False
        return True


def _sealed(public: DevicePublic, signer: Signer, sequence: int, padding: int) -> Artefact:
    payload = tiny_payload(seed=sequence if padding else 0, padding=padding)
    keys = SealedKeys(_CEK, os.urandom(32))
    changes = {"sequence": sequence, "security_counter": sequence}
    return seal_for(public, signer, payload=payload, keys=keys, chunk=_CHUNK if padding else 1024, **changes)


def _renewed(public: DevicePublic, signer: Signer, ref: ComponentRef, padding: int) -> bytes:
    """The envelope of another epoch for the component of an old image."""
    keys = SealedKeys(_CEK, os.urandom(32))
    payload = tiny_payload(seed=1 if padding else 0, padding=padding)
    like = seal_for(public, signer, payload=payload, keys=keys, sequence=2, security_counter=2, epoch=1)
    manifest = open_envelope(like.envelope, signer.root).manifest
    draft = EnvelopeDraft(replace(manifest, component=ref), keys, public.kem, public.kem_public)
    return seal_batch([draft], signer)[0]


def _flashed(start: Path, target: Path, artefact: Artefact, statement: bytes | None = None) -> list[int]:
    """Flashes a copy of a device; the labels that it gives then."""
    with twin(start, target) as device:
        if statement is not None:
            device.follow(statement)
        flash(device, artefact)
        labels: list[int] = device.boot().classify_batch(SHOWN).tolist()
        return labels
