"""A simulated device: boots one of two images, puts a new one on trial, confirms it.

The steps of a confirmation, in an order that neither bricks the device nor lets an old image back:

    1. the image on trial boots and passes its self-test
    2. the boot record says `passed`
    3. the chip's sequence number for the image's security counter rises to the image's, then the security counter
    4. the chip notes the image's digest as the confirmed one, and forgets the root before a rotation
    5. the boot record makes it the confirmed one

Before 2 the chip notes the digest of the image that passed, and 3 is done only for this digest, because whoever has the
disk can write the boot record. A power cut before 2 leaves the old image and an unchanged counter. After 2 the next
boot finishes 3 to 5, each of which may be done twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from variegate.attest.release import Exchange
from variegate.device_sim.hardware import BOOTS, Hardware
from variegate.device_sim.slots import SLOTS, TRIES, BootRecord
from variegate.keys import component
from variegate.keys.artefact import Artefact
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import DeviceError, Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import sha256
from variegate.keys.rotation import follow
from variegate.runtime.admission import SECURITY_COUNTER, admit, sequence_counter, uniform
from variegate.runtime.port import LabelPort

_LIFECYCLE = "lifecycle"
_PASSED = "passed"
"""Burnt value: SHA-256 of the envelope that passed its self-test last."""


class Lifecycle(StrEnum):
    """How far a device has come; it never goes back."""

    PROVISIONED = "provisioned"
    """It has its keys and the seller's root, and has never confirmed an image."""
    DEPLOYED = "deployed"
    """It has confirmed an image."""


@dataclass(frozen=True, kw_only=True)
class DeviceStatus:
    """A device's status for its owner.

    Attributes:
        ueid: 33 bytes.
        device_class: Kind of device.
        lifecycle: How far it has come.
        boots: Times it was booted.
        security_counter: Images below this are refused.
        sequence: Images of this security counter that are numbered below this are refused, unless they allow a
            downgrade themselves.
        root: Fingerprint of the seller's root that it trusts, 32 bytes.
        root_serial: Rotations of that root followed so far.
        record: Which slot is confirmed, which on trial.
        images: Manifest of each slot that holds a signed image for this device.
    """

    ueid: bytes
    device_class: str
    lifecycle: Lifecycle
    boots: int
    security_counter: int
    sequence: int
    root: bytes
    root_serial: int
    record: BootRecord
    images: Mapping[str, Manifest]


class Device(Hardware):
    """A device that is on, with at most one enclave running. Close it, or use it as a context manager."""

    _running: LabelPort | None = None
    broker: Exchange | None = None
    """The way to the seller's key broker, for copies that need one."""

    @property
    def boots(self) -> int:
        """Times it was booted."""
        return self.counter(BOOTS)

    def challenge(self) -> bytes:
        """A key broker's nonce, for the enclave.

        Raises:
            DeviceError: No broker is known, or it gives no answer.
            LimitError, RefusedError: As `attest.release.Exchange.challenge`.
        """
        return self._way_to_broker().challenge()

    def release(self, token: bytes, envelope: bytes) -> bytes:
        """Passes the enclave's evidence to the key broker.

        Raises:
            DeviceError, LimitError, RefusedError: As `challenge`.
        """
        return self._way_to_broker().release(token, envelope)

    def _way_to_broker(self) -> Exchange:
        if self.broker is None:
            raise DeviceError("the copy needs a key broker, and none is known", hint="give --broker URL")
        return self.broker

    def boot(self) -> LabelPort:
        """Starts the image on trial, or else the confirmed one; an enclave that ran before is stopped.

        An image on trial gets `TRIES` boots to be confirmed in. One that is refused is dropped at once.

        Returns:
            The enclave, at the same time the device's only one.

        Raises:
            DeviceError: No image was ever confirmed, or the hardware failed.
            RefusedError: `ARTEFACT`, when the confirmed image is refused; the inner log has the reason.
        """
        self._stop()
        self.advance(BOOTS, self.counter(BOOTS) + 1)
        record = self.settle()
        if record.trial is not None:
            self._running = self._on_trial(record, record.trial)
            if self._running is not None:
                self._booted(self._running, f"{record.trial}, on trial")
                return self._running
        if record.confirmed is None:
            raise DeviceError("the device has no image", hint="flash one")
        artefact, platform = self._image(record.confirmed, confirmed=True)
        self._running = self._host.start(artefact, platform)
        self._booted(self._running, record.confirmed)
        return self._running

    def _booted(self, port: LabelPort, where: str) -> None:
        policy = self.measurements().get("policy", b"").hex() or "none"
        self.record("boot", f"sequence {port.manifest.sequence} in slot {where}; policy {policy}")

    def _on_trial(self, record: BootRecord, slot: str) -> LabelPort | None:
        """Starts the image on trial; takes it off trial and returns None when it has no try left or is refused."""
        if record.tries > 0:
            # Counted before it runs: an image that takes the device down with it must not be tried for ever.
            record = self.slots.write(replace(record, tries=record.tries - 1))
            try:
                return self._tested(self._image(slot)[0])
            except RefusedError:
                pass  # recorded in the log where it was refused
            except DeviceError as error:
                # Its process did not live. The try is counted; the confirmed image runs meanwhile.
                self.record("trial", f"image in slot {slot} did not run: {error.message}")
                return None
        else:
            self.record("reverted", f"image in slot {slot} was not confirmed in {TRIES} boots")
        self.drop_trial(record)
        return None

    def try_slot(self, slot: str) -> None:
        """Puts the image in a slot on trial from the next boot on.

        Raises:
            DeviceError: The disk failed.
        """
        self.slots.write(replace(self.slots.record(), trial=slot, tries=TRIES, passed=False))

    def confirm(self) -> None:
        """Tests the image on trial and makes it the confirmed one; with none on trial nothing happens.

        Raises:
            RefusedError: `ARTEFACT`, when it does not open or fails its self-test; it is then off trial.
            DeviceError: The hardware failed.
        """
        record = self.settle()
        if record.trial is None:
            return
        try:
            artefact, _ = self._image(record.trial)
            self._tested(artefact).close()
        except RefusedError:
            self.drop_trial(record)
            raise
        self._fuses.burn(_PASSED, sha256(artefact.envelope))
        self.slots.write(replace(record, passed=True))
        if self.settle().confirmed != record.trial:
            raise DeviceError("the image on trial could not be confirmed", hint="flash it again")

    def confirms(self, envelope: bytes) -> bool:
        """Whether this is the envelope of the image confirmed last; the chip says so, not the disk."""
        return self._trust.envelope == sha256(envelope)

    def confirmed_as(self, envelope: bytes) -> bool:
        """As `runtime.platform.Platform.confirmed_as`."""
        # The last image that passed counts: a cut may come after its numbers rose, before it is noted as confirmed.
        numbered = self._trust.numbered
        return numbered is None or sha256(envelope) in {numbered, self._fuses.load(_PASSED)}

    def settle(self) -> BootRecord:
        """Completes a confirmation that a power cut interrupted.

        Returns:
            The boot record, no image on trial in it having passed.

        Raises:
            DeviceError: The hardware failed.
        """
        record = self.slots.record()
        if record.trial is None or not record.passed:
            return record
        try:
            envelope, manifest = self._passed(record.trial)
        except RefusedError as error:  # the disk has not the data that this device wrote: it was restored or damaged
            reason = f"confirm: {error.refusal}: {error.message}"
        else:
            return self._make_confirmed(record, envelope, manifest)
        self.record("refused", reason)
        return self.drop_trial(record)

    def _passed(self, slot: str) -> tuple[bytes, Manifest]:
        """The image in a slot, when it is the one that this device has tested."""
        envelope = self.slots.envelope(slot)
        if self._fuses.load(_PASSED) != sha256(envelope):
            raise RefusedError(Refusal.SELF_TEST, f"image in slot {slot} did not pass a self-test here")
        manifest = admit(envelope, self).manifest
        component.check(self.slots.component(slot), manifest.component)
        return envelope, manifest

    def _make_confirmed(self, record: BootRecord, envelope: bytes, manifest: Manifest) -> BootRecord:
        if self._running is not None and self._running.manifest != manifest:
            self._stop()
        # In this order: were the security counter first, a cut between them would leave it without a sequence number.
        self.advance(sequence_counter(manifest.security_counter), manifest.sequence)
        self.advance(SECURITY_COUNTER, manifest.security_counter)
        self.advance(_LIFECYCLE, 1)
        highest = self.counter(sequence_counter(manifest.security_counter)) == manifest.sequence
        self._pin(self._trust.confirming(envelope, highest=highest))
        record = self.slots.write(replace(record, confirmed=record.trial, trial=None, tries=0, passed=False))
        self.record("confirmed", f"sequence {manifest.sequence} in slot {record.confirmed}")
        return record

    def drop_trial(self, record: BootRecord) -> BootRecord:
        """Takes the image on trial, if any, off it.

        Raises:
            DeviceError: The disk failed.
        """
        if record.trial is None:
            return record
        return self.slots.write(replace(record, trial=None, tries=0, passed=False))

    def follow(self, statement: bytes) -> None:
        """Pins the seller's next root. The confirmed image stays good; the next must be under the new root.

        Args:
            statement: The rotation, signed by the root pinned now.

        Raises:
            RefusedError: `ARTEFACT`, when it does not follow from the pinned root; the log has the reason.
            DeviceError: The hardware failed.
        """
        trust = self._trust
        root, serial = uniform(self, "follow", lambda: follow(trust.root, trust.serial, statement))
        self.settle()  # an image that passed under the pinned root is confirmed under it
        self._pin(self._trust.following(root, serial))
        self.record("followed", f"root {root.fingerprint.hex()}, serial {serial}")

    def status(self) -> DeviceStatus:
        """Its status for its owner.

        Raises:
            DeviceError: The disk failed.
        """
        security_counter = self.counter(SECURITY_COUNTER)
        return DeviceStatus(
            ueid=self.ueid,
            device_class=self.device_class,
            lifecycle=list(Lifecycle)[self.counter(_LIFECYCLE)],
            boots=self.boots,
            security_counter=security_counter,
            sequence=self.counter(sequence_counter(security_counter)),
            root=self.root.fingerprint,
            root_serial=self._trust.serial,
            record=self.slots.record(),
            images={slot: manifest for slot in SLOTS if (manifest := self._manifest(slot)) is not None},
        )

    def close(self) -> None:
        """Turns the device off."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _image(self, slot: str, *, confirmed: bool = False) -> tuple[Artefact, Self]:
        """The image in a slot and the device with the root that it counts under."""

        def load() -> tuple[Artefact, Self]:
            envelope = self.slots.envelope(slot)
            platform = self._trusting(envelope) if confirmed else self
            admit(envelope, platform)  # before as much as a gigabyte is read
            return Artefact(envelope, self.slots.component(slot)), platform

        return uniform(self, f"slot {slot}", load)

    def _tested(self, artefact: Artefact) -> LabelPort:
        enclave = self._host.start(artefact, self)
        try:
            enclave.self_test()
        except BaseException:
            enclave.close()
            raise
        return enclave

    def _trusting(self, envelope: bytes) -> Self:
        """This device with the root that a confirmed envelope counts under."""
        root = self._trust.of(envelope)
        if root == self._root:
            return self  # not a copy: the rate is counted for each platform
        view = copy.copy(self)
        view._root = root  # noqa: SLF001  the same class
        return view

    def _manifest(self, slot: str) -> Manifest | None:
        try:
            envelope = self.slots.envelope(slot)
            return open_envelope(envelope, self._trust.of(envelope)).manifest
        except RefusedError:
            return None
