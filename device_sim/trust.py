"""The seller's root as a device pins it, and how a confirmed image outlives a rotation of that root."""

from __future__ import annotations

from dataclasses import dataclass

from variegate.keys import cbor
from variegate.keys.errors import DeviceError
from variegate.keys.primitives import sha256
from variegate.keys.signing import SellerRoot

_MAX_TRUST_BYTES = 16 * 1024


@dataclass(frozen=True)
class Trust:
    """What is pinned.

    Attributes:
        serial: Rotations followed so far.
        root: The seller's public keys.
        earlier: The keys that signed the confirmed image, where a rotation came after it.
        envelope: SHA-256 of the confirmed image's envelope, or None before the first: nothing else counts under
            `earlier`.
    """

    serial: int
    root: SellerRoot
    earlier: SellerRoot | None = None
    envelope: bytes | None = None

    def to_bytes(self) -> bytes:
        """What is burnt."""
        earlier = None if self.earlier is None else self.earlier.to_bytes()
        return cbor.encode([self.serial, self.root.to_bytes(), earlier, self.envelope])

    @classmethod
    def from_bytes(cls, data: bytes) -> Trust:
        """Reads `to_bytes`.

        Raises:
            DeviceError: The chip is damaged.
            RefusedError: It is damaged, or its keys are.
        """
        match cbor.decode(data, limit=_MAX_TRUST_BYTES):
            case [int(serial), bytes(root), None, None | bytes() as envelope]:
                return cls(serial, SellerRoot.from_bytes(root), None, envelope)
            case [int(serial), bytes(root), bytes(earlier), bytes(envelope)]:
                return cls(serial, SellerRoot.from_bytes(root), SellerRoot.from_bytes(earlier), envelope)
        raise DeviceError("the device's pinned root is damaged", hint="such a chip is to be replaced")

    def confirming(self, envelope: bytes) -> Trust:
        """After an image under `root` was confirmed: nothing counts under an earlier root any more."""
        return Trust(self.serial, self.root, None, sha256(envelope))

    def following(self, root: SellerRoot, serial: int) -> Trust:
        """After a rotation: the image confirmed last, which only the chip names, stays good under its own root."""
        if self.envelope is None:
            return Trust(serial, root)
        return Trust(serial, root, self.earlier or self.root, self.envelope)

    def of(self, envelope: bytes) -> SellerRoot:
        """The root that a confirmed envelope is to be held against."""
        return self.earlier if self.earlier is not None and sha256(envelope) == self.envelope else self.root
