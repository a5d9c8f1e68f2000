"""Two slots and the boot record that says which one counts.

    a.envelope  a.component  b.envelope  b.component
    boot        two copies of the record, 4096 bytes apart, the newer one written over the older

    copy = SHA-256(body) || length of body (2, big-endian) || body
    body = deterministic CBOR [generation, confirmed, trial, tries, passed]

The record only prefers: every image is checked in full before it runs, whatever the record says.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from variegate.device_sim.storage import Storage
from variegate.keys import cbor
from variegate.keys.artefact import Artefact
from variegate.keys.component import MAX_COMPONENT_BYTES
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.primitives import HASH_BYTES, sha256
from variegate.keys.signing import MAX_STATEMENT_BYTES

SLOTS = ("a", "b")
TRIES = 3
"""Boots that an image on trial gets before the device goes back."""
_FILE = "boot"
_COPY_BYTES = 4096  # the largest physical sector: a torn write of one copy cannot reach the other
_LENGTH_BYTES = 2
_MAX_BODY = 256
_MOST = (MAX_STATEMENT_BYTES, MAX_COMPONENT_BYTES)  # before anything is read into memory


@dataclass(frozen=True)
class BootRecord:
    """Which image boots.

    Attributes:
        generation: Rises with every write; the copy with the highest counts.
        confirmed: Slot of the image that was confirmed, or None before the first.
        trial: Slot of an image on trial, or None.
        tries: Boots that it has left.
        passed: Its self-test passed: what is left of its confirmation is to be completed.
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
                    int(generation),
                    None | "a" | "b" as confirmed,
                    None | "a" | "b" as trial,
                    int(tries),
                    bool(passed),
                ]:
                    return cls(generation, confirmed, trial, tries, passed)
        except RefusedError:
            pass
        return None


class Slots:
    """The slots' files and the boot record on one disk."""

    def __init__(self, storage: Storage) -> None:
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
            DeviceError: The disk failed.
        """
        record = replace(record, generation=self.record().generation + 1)
        if not self.storage.exists(_FILE):
            self.storage.create(_FILE)
            self.storage.fsync_dir()
        self.storage.write(_FILE, record.generation % 2 * _COPY_BYTES, record.to_bytes())
        self.storage.fsync(_FILE)
        return record

    def read(self, slot: str) -> Artefact:
        """The image in a slot; nothing is checked.

        Raises:
            RefusedError: `MALFORMED`, when the slot is empty; `TOO_LARGE`.
            DeviceError: The disk failed.
        """
        for name, most in zip(files(slot), _MOST, strict=True):
            if not self.storage.exists(name):
                raise RefusedError(Refusal.MALFORMED, f"slot {slot} is empty")
            if self.storage.size(name) > most:
                raise RefusedError(Refusal.TOO_LARGE, f"slot {slot} holds more than {most} bytes")
        envelope, component = (self.storage.read(name) for name in files(slot))
        return Artefact(envelope, component)


def files(slot: str) -> tuple[str, str]:
    """Names of a slot's envelope and component."""
    return f"{slot}.envelope", f"{slot}.component"
