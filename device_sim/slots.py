"""Two slots, and the boot record that says which one is confirmed.

    a.envelope  a.component  b.envelope  b.component
    boot        two copies of the record, 4096 bytes apart, the newer one written over the older

    copy = SHA-256(body) || length of body (2, big-endian) || body
    body = deterministic CBOR [generation, confirmed, trial, tries, passed]

The record is on the disk, and security does not depend on it: every image is checked in full before it runs, and the
chip holds the digests of the image that passed its self-test and of the confirmed one.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from variegate.device_sim.at_rest import AtRest
from variegate.keys import cbor
from variegate.keys.component import MAX_COMPONENT_BYTES
from variegate.keys.errors import DeviceError, Refusal, RefusedError
from variegate.keys.primitives import HASH_BYTES, sha256
from variegate.keys.signing import MAX_STATEMENT_BYTES

SLOTS = ("a", "b")
TRIES = 3
"""Boots that an image on trial gets before the device goes back."""
_FILE = "boot"
_COPY_BYTES = 4096  # the largest physical sector: a torn write of one copy cannot reach the other
_LENGTH_BYTES = 2
_MAX_BODY = 256
_GENERATIONS = 1 << 62  # no device writes so often; a record from beyond would hide all that follow


@dataclass(frozen=True)
class BootRecord:
    """Which image boots.

    Attributes:
        generation: Rises with every write; the copy with the highest counts.
        confirmed: Slot of the image that was confirmed, or None before the first.
        trial: Slot of an image on trial, or None.
        tries: Boots that it has left.
        passed: Its self-test passed, and its confirmation must be completed.
    """

    generation: int = 0
    confirmed: str | None = None
    trial: str | None = None
    tries: int = 0
    passed: bool = False

    @property
    def inactive(self) -> str:
        """The slot that may be written."""
        return SLOTS[self.confirmed == SLOTS[0]]

    def to_bytes(self) -> bytes:
        """One copy."""
        body = cbor.encode(list(astuple(self)))
        return sha256(body) + len(body).to_bytes(_LENGTH_BYTES, "big") + body

    @classmethod
    def from_bytes(cls, copy: bytes) -> BootRecord | None:
        """Reads one copy; None when it is torn, blank or damaged."""
        start = HASH_BYTES + _LENGTH_BYTES
        length = int.from_bytes(copy[HASH_BYTES:start], "big")
        body = copy[start : start + length]
        if len(body) != length or sha256(body) != copy[:HASH_BYTES]:
            return None
        try:
            match cbor.decode(body, limit=_MAX_BODY):
                case [
                    generation,
                    None | "a" | "b" as confirmed,
                    None | "a" | "b" as trial,
                    tries,
                    bool(passed),
                ] if _within(generation, _GENERATIONS - 1) and _within(tries, TRIES):
                    return cls(generation, confirmed, trial, tries, passed)
        except RefusedError:
            pass
        return None


class Slots:
    """The slots' files and the boot record on one disk."""

    def __init__(self, storage: AtRest) -> None:
        self.storage = storage

    def format(self) -> None:
        """Writes the record of a device without an image."""
        self.storage.create(_FILE)
        self.storage.truncate(_FILE, 2 * _COPY_BYTES)
        self.storage.fsync_dir()
        self.write(BootRecord())

    def record(self) -> BootRecord:
        """The newest copy that is whole; an empty record when none is.

        Raises:
            DeviceError: The disk failed.
        """
        if not self.storage.exists(_FILE):
            return BootRecord()
        copies = (BootRecord.from_bytes(self.storage.read(_FILE, i * _COPY_BYTES, _COPY_BYTES)) for i in (0, 1))
        return max((c for c in copies if c is not None), key=lambda c: c.generation, default=BootRecord())

    def write(self, record: BootRecord) -> BootRecord:
        """Writes a record, durable before this returns; a power cut leaves the one before or this one.

        Returns:
            The record with its new generation.

        Raises:
            DeviceError: The disk failed, or it does not return the written bytes.
        """
        record = replace(record, generation=self.record().generation + 1)
        if not self.storage.exists(_FILE):
            self.storage.create(_FILE)
            self.storage.fsync_dir()
        self.storage.write(_FILE, record.generation % 2 * _COPY_BYTES, record.to_bytes())
        self.storage.fsync(_FILE)
        if self.record() != record:  # forged to be the last generation, or worn out
            raise DeviceError("the device's boot record cannot be changed", hint="give the device a blank disk")
        return record

    def envelope(self, slot: str) -> bytes:
        """The envelope in a slot; nothing is checked but its length.

        Raises:
            RefusedError: `MALFORMED`, when there is none; `TOO_LARGE`.
            DeviceError: The disk failed.
        """
        return self._read(slot, files(slot)[0], MAX_STATEMENT_BYTES)

    def component(self, slot: str) -> bytes:
        """The component in a slot, whole in memory; nothing is checked but its length.

        Raises:
            RefusedError, DeviceError: As `envelope`.
        """
        return self._read(slot, files(slot)[1], MAX_COMPONENT_BYTES)

    def _read(self, slot: str, name: str, most: int) -> bytes:
        if not self.storage.exists(name):
            raise RefusedError(Refusal.MALFORMED, f"slot {slot} is empty")
        if self.storage.size(name) > most:
            raise RefusedError(Refusal.TOO_LARGE, f"slot {slot} holds more than {most} bytes")
        return self.storage.read(name)


def _within(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def files(slot: str) -> tuple[str, str]:
    """Names of a slot's envelope and component."""
    return f"{slot}.envelope", f"{slot}.component"
