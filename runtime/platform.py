"""The interface of the runtime to the hardware.

The simulated device implements it; a TEE or an FPGA's processor could. The runtime trusts it for these things and for
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from variegate.keys.signing import SellerRoot


class Platform(Protocol):
    """One device.

    Attributes:
        ueid: 33 bytes, unique.
        device_class: Kind of device.
        root: The seller's public keys that this device trusts.
    """

    @property
    def ueid(self) -> bytes: ...  # noqa: D102

    @property
    def device_class(self) -> str: ...  # noqa: D102

    @property
    def root(self) -> SellerRoot: ...  # noqa: D102

    def unwrap(self, sealed: bytes, info: bytes) -> bytes:
        """Opens HPKE ciphertext with the device's key.

        Raises:
            RefusedError: `SEALED`.
        """
        ...

    def counter(self, name: str) -> int:
        """Value of a monotonic counter; 0 for one never advanced."""
        ...

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """Raises a counter by `most`, or by as much as `limit` leaves, in one step and durable on return.

        Returns:
            By how much; 0, and nothing changed, when `limit` leaves less than `least`.

        Raises:
            DeviceError: When the counter could not be raised.
        """
        ...

    def confirmed_as(self, envelope: bytes) -> bool:
        """Whether the highest sequence number of the security counter was confirmed for this envelope.

        True also if nothing was confirmed yet.
        """
        ...

    def now(self) -> float:
        """Unix time in seconds, by a clock that the attacker does not set."""
        ...

    def measurements(self) -> Mapping[str, bytes]:
        """The measurements at launch, by name, 32 bytes each; empty when nothing was."""
        ...

    def record(self, event: str, detail: str) -> None:
        """Writes a line of the device's inner log: refusals with their reason, never a secret."""
        ...
