"""The seller's root that a device pins, and how a confirmed image survives a rotation of that root."""

from __future__ import annotations

from dataclasses import dataclass

from variegate.keys import cbor
from variegate.keys.errors import DeviceError
from variegate.keys.primitives import sha256
from variegate.keys.signing import SellerRoot

_MAX_TRUST_BYTES = 16 * 1024


@dataclass(frozen=True)
class Trust:
    """The pinned root.

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
    numbered: bytes | None = None
    """SHA-256 of the envelope that the highest sequence number of the security counter was confirmed for: the confirmed
    image's, unless that one was let back below it."""

    def to_bytes(self) -> bytes:
        """The burnt value."""
        earlier = None if self.earlier is None else self.earlier.to_bytes()
        # As chips from before hold it, where it says all.
        more = [] if self.numbered == self.envelope else [self.numbered]
        return cbor.encode([self.serial, self.root.to_bytes(), earlier, self.envelope, *more])

    @classmethod
    def from_bytes(cls, data: bytes) -> Trust:
        """Reads `to_bytes`.

        Raises:
            DeviceError: The chip is damaged.
            RefusedError: It is damaged, or its keys are.
        """
        match cbor.decode(data, limit=_MAX_TRUST_BYTES):
            case [int(serial), bytes(root), None, None]:
                return cls(serial, SellerRoot.from_bytes(root))
            case [int(serial), bytes(root), None | bytes() as earlier, bytes(envelope), *more]:
                before = None if earlier is None else SellerRoot.from_bytes(earlier)
                match more:
                    case []:
                        return cls(serial, SellerRoot.from_bytes(root), before, envelope, envelope)
                    case [bytes(numbered)]:
                        return cls(serial, SellerRoot.from_bytes(root), before, envelope, numbered)
        raise DeviceError("the device's pinned root is damaged", hint="replace the chip")

    def confirming(self, envelope: bytes, *, highest: bool) -> Trust:
        """After an image under `root` was confirmed: nothing counts under an earlier root any more.

        Args:
            envelope: The image's.
            highest: Whether no higher sequence number was confirmed under its security counter.
        """
        digest = sha256(envelope)
        return Trust(self.serial, self.root, None, digest, digest if highest else self.numbered)

    def following(self, root: SellerRoot, serial: int) -> Trust:
        """After a rotation: the image confirmed last, which only the chip names, stays good under its own root."""
        if self.envelope is None:
            return Trust(serial, root)
        return Trust(serial, root, self.earlier or self.root, self.envelope, self.numbered)

    def of(self, envelope: bytes) -> SellerRoot:
        """The root against which a confirmed envelope is checked."""
        return self.earlier if self.earlier is not None and sha256(envelope) == self.envelope else self.root
