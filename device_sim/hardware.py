"""The hardware of a simulated device: what the runtime asks of a platform, over a chip and a disk."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from variegate.device_sim.changes import disk, sync_folder
from variegate.device_sim.fuses import Fuses
from variegate.device_sim.journal import Journal
from variegate.device_sim.measure import measurements
from variegate.device_sim.slots import Slots
from variegate.device_sim.storage import Fault, Storage
from variegate.device_sim.trust import Trust
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.primitives import KEM_HYBRID
from variegate.keys.signing import SellerRoot

_IDENTITY, _TRUST = "identity", "trust"


class Hardware:
    """A device that is on: the hardware below the runtime (`runtime.platform.Platform`).

    Attributes:
        slots: The disk's slots and boot record.
    """

    def __init__(self, fuses: Fuses, storage: Storage, clock: Callable[[], float]) -> None:
        """Use `create` or `open`."""
        identity, trust = fuses.load(_IDENTITY), fuses.load(_TRUST)
        if identity is None or trust is None:
            raise DeviceError("the device was never provisioned", hint="make it with `variegate device new`")
        self.slots = Slots(storage)
        self._fuses = fuses
        self._clock = clock
        self._identity = DeviceIdentity.from_bytes(identity)
        self._trust = Trust.from_bytes(trust)
        self._root = self._trust.root
        self._journal = Journal(storage)

    @classmethod
    def create(cls, folder: Path, device_class: str, root: SellerRoot, *, kem: str = KEM_HYBRID) -> Self:
        """Manufactures a device: keys, the seller's root, an empty disk.

        Args:
            folder: Where it shall lie; must not exist.
            device_class: Kind of device.
            root: The seller's public keys to pin.
            kem: Key-agreement algorithm of its key.

        Returns:
            The device, on.

        Raises:
            MisuseError: `folder` exists, or the folder that it shall lie in does not.
            DeviceError: The real disk failed.
        """
        if folder.exists():
            raise MisuseError(f"{folder} exists already", hint="give a folder that does not exist")
        if not folder.parent.is_dir():
            raise MisuseError(f"{folder.parent} is no folder", hint="make it first")
        identity = DeviceIdentity.generate(device_class, kem=kem)
        with disk(), ExitStack() as undo:
            partial = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
            undo.callback(shutil.rmtree, partial, ignore_errors=True)
            (partial / "disk").mkdir()
            (partial / "fuses").mkdir(mode=0o700)
            with Fuses(partial / "fuses") as fuses:
                fuses.burn(_IDENTITY, identity.to_bytes())
                fuses.burn(_TRUST, Trust(0, root).to_bytes())
            Slots(Storage(partial / "disk")).format()
            partial.rename(folder)
            sync_folder(folder.parent)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path, *, fault: Fault | None = None, clock: Callable[[], float] = time.time) -> Self:
        """Turns a device on; nothing boots yet.

        Args:
            folder: Where it lies.
            fault: When its disk loses power, if ever.
            clock: Unix time in seconds.

        Raises:
            MisuseError: There is no device in `folder`.
            DeviceError: Another process holds it, or its chip or disk failed.
        """
        if not all((folder / part).is_dir() for part in ("disk", "fuses")):
            raise MisuseError(f"{folder} holds no device", hint="make one with `variegate device new`")
        fuses = Fuses(folder / "fuses")
        try:
            return cls(fuses, Storage(folder / "disk", fault=fault), clock)
        except BaseException:
            fuses.close()
            raise

    @property
    def ueid(self) -> bytes:
        """33 bytes, unique."""
        return self._identity.public.ueid

    @property
    def device_class(self) -> str:
        """Kind of device."""
        return self._identity.public.device_class

    @property
    def root(self) -> SellerRoot:
        """The seller's public keys that this device trusts."""
        return self._root

    @property
    def identity(self) -> DevicePublic:
        """What the seller needs to seal for this device."""
        return self._identity.public

    def unwrap(self, sealed: bytes, info: bytes) -> bytes:
        """Opens HPKE ciphertext with the device's key.

        Raises:
            RefusedError: `SEALED`.
        """
        return self._identity.unwrap(sealed, info)

    def counter(self, name: str) -> int:
        """Value of a monotonic counter; 0 for one never advanced.

        Raises:
            DeviceError: The device is off, or another process turned it on.
        """
        return self._fuses.counter(name)

    def advance(self, name: str, value: int) -> None:
        """Raises a counter, durable before it returns; a lower or equal value changes nothing.

        Raises:
            DeviceError: It could not be raised.
        """
        self._fuses.advance(name, value)

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """Raises a counter by `most`, or by as much as `limit` leaves; by nothing where that is below `least`.

        Raises:
            DeviceError: It could not be made durable.
        """
        return self._fuses.reserve(name, least, most, limit)

    def now(self) -> float:
        """Unix time in seconds."""
        return self._clock()

    def measurements(self) -> Mapping[str, bytes]:
        """What was measured at launch, by name, 32 bytes each."""
        return measurements()

    def record(self, event: str, detail: str) -> None:
        """Writes a line of the inner log.

        Raises:
            DeviceError: The disk failed.
        """
        self._journal.write(self.now(), event, detail)

    def log(self) -> list[str]:
        """The inner log, oldest line first."""
        return self._journal.lines()

    def _pin(self, trust: Trust) -> None:
        self._fuses.burn(_TRUST, trust.to_bytes())
        self._trust, self._root = trust, trust.root

    def close(self) -> None:
        """Turns the device off."""
        self._fuses.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
