"""The hardware of a simulated device: implements the runtime's platform with a chip and a disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from variegate.device_sim.at_rest import STORAGE_KEY_BYTES, AtRest
from variegate.device_sim.audit import AuditKey
from variegate.device_sim.audit_log import AuditLog
from variegate.device_sim.changes import disk
from variegate.device_sim.chip import Chip, made_chip, open_chip
from variegate.device_sim.hosting import POLICY_FILE, InProcess, policy_of
from variegate.device_sim.slots import Slots
from variegate.device_sim.storage import Fault, Storage
from variegate.device_sim.trust import Trust
from variegate.isolation.keeper import BOOT
from variegate.isolation.policy import DevicePolicy
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import PUBLIC, refuse_shared, sync_folder, write_atomic
from variegate.keys.identity import DeviceIdentity, DevicePublic
from variegate.keys.primitives import KEM_HYBRID
from variegate.keys.signing import SellerRoot
from variegate.runtime.port import Host

_IDENTITY, _PUBLIC, _TRUST = "identity", "public", "trust"
_AUDIT, _STORAGE = "audit-key", "storage"
BOOTS = "boots"
"""The chip's counter of boots."""
_BUDGET_STEPS = 8
"""Of a budget: each is an entry of the log when it is reached."""


class Hardware:
    """A device that is on: the hardware below the runtime (`runtime.platform.Platform`).

    Attributes:
        slots: The disk's slots and boot record.
    """

    def __init__(self, fuses: Chip, storage: Storage, clock: Callable[[], float], host: Host) -> None:
        """Use `create` or `open`."""
        self._host = host
        public, trust = fuses.load(_PUBLIC), fuses.load(_TRUST)
        audit, key = fuses.load(_AUDIT), fuses.load(_STORAGE)
        if public is None or trust is None or audit is None or key is None:
            raise DeviceError("the device was never provisioned", hint="make it with `variegate device new`")
        encrypted = AtRest(storage, key)
        self.slots = Slots(encrypted)
        self._fuses = fuses
        self._clock = clock
        self._public = DevicePublic.from_json(public)
        self._private: DeviceIdentity | None = None
        self._private_lock = threading.Lock()
        self._boot_digest = fuses.boot
        self._trust = Trust.from_bytes(trust)
        self._root = self._trust.root
        self._audit = AuditLog(encrypted, fuses, AuditKey.from_bytes(audit))

    @classmethod
    def create(
        cls,
        folder: Path,
        device_class: str,
        root: SellerRoot,
        *,
        kem: str = KEM_HYBRID,
        tpm: str | None = None,
        policy: DevicePolicy | None = None,
        host: Host | None = None,
    ) -> Self:
        """Manufactures a device: keys, the seller's root, an empty disk.

        Args:
            folder: Where it shall lie; must not exist.
            device_class: Kind of device.
            root: The seller's public keys to pin.
            kem: Key-agreement algorithm of its key.
            tpm: TPM 2.0 below it, as `swtpm:path=/run/x.sock` or `device:/dev/tpmrm0`; None for a chip of files.
            policy: How its enclaves are isolated; the default policy if none is given.
            host: As `open`. A TPM binds the device's key to what this host measures.

        Returns:
            The device, on.

        Raises:
            MisuseError: `folder` exists, or the folder that it shall lie in does not, or others may write that; `tpm`
                names no TPM, or the extra `tpm` is not there.
            DeviceError: The real disk failed, or the TPM did.
        """
        if folder.exists():
            raise MisuseError(f"{folder} exists already", hint="give a folder that does not exist")
        if not folder.parent.is_dir():
            raise MisuseError(f"{folder.parent} is not a folder", hint="make it first")
        refuse_shared(folder.parent)
        identity = DeviceIdentity.generate(device_class, kem=kem)
        policy = DevicePolicy() if policy is None else policy
        host = InProcess(policy) if host is None else host
        with disk(), ExitStack() as undo:
            partial = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
            undo.callback(shutil.rmtree, partial, ignore_errors=True)
            (partial / "disk").mkdir()
            (partial / "fuses").mkdir(mode=0o700)
            with made_chip(partial / "fuses", tpm, host.measurements) as fuses:
                fuses.burn_secret(_IDENTITY, identity.to_bytes())
                fuses.burn(_PUBLIC, identity.public.to_json().encode())
                fuses.burn(_TRUST, Trust(0, root).to_bytes())
                audit = AuditKey.generate(identity.public.ueid, identity.sign)
                key = os.urandom(STORAGE_KEY_BYTES)
                fuses.burn(_AUDIT, audit.to_bytes())
                fuses.burn(_STORAGE, key)
                encrypted = AtRest(Storage(partial / "disk"), key)
                Slots(encrypted).format()
                facts = f"class {device_class}, root {root.fingerprint.hex()}"
                AuditLog(encrypted, fuses, audit).write(time.time(), "made", facts, boot=0)
                write_atomic(partial / POLICY_FILE, policy.to_toml(), mode=PUBLIC)
                partial.rename(folder)
                sync_folder(folder.parent)
        return cls.open(folder, host=host)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        host: Host | None = None,
        fault: Fault | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Turns a device on; nothing boots yet.

        Args:
            folder: Its folder.
            host: Where its enclaves run, as `hosting.host_of` says for its policy; in this process by default.
            fault: When its disk loses power, if ever.
            clock: Unix time in seconds.

        Raises:
            MisuseError: There is no device in `folder`.
            DeviceError: Another process holds it, or its chip or disk failed.
        """
        if not all((folder / part).is_dir() for part in ("disk", "fuses")):
            raise MisuseError(f"{folder} holds no device", hint="make one with `variegate device new`")
        policy = policy_of(folder)
        host = InProcess(policy) if host is None else host
        if policy.strict and host.policy != policy:
            raise MisuseError("the device's policy is strict: no other may replace it")
        fuses = open_chip(folder / "fuses", host.measurements)
        try:
            return cls(fuses, Storage(folder / "disk", fault=fault), clock, host)
        except BaseException:
            fuses.close()
            raise

    @property
    def ueid(self) -> bytes:
        """33 bytes, unique."""
        return self._public.ueid

    @property
    def device_class(self) -> str:
        """Kind of device."""
        return self._public.device_class

    @property
    def root(self) -> SellerRoot:
        """The seller's public keys that this device trusts."""
        return self._root

    @property
    def identity(self) -> DevicePublic:
        """The public identity, for which the seller seals."""
        return self._public

    def identity_descriptor(self) -> int:
        """A descriptor that the private identity is read from, once, to its end; the caller closes it.

        A process that inherits it can unseal; the keys need not pass through this process.

        Raises:
            DeviceError: The device is off, or its chip does not give the keys.
        """
        return self._fuses.open_secret(_IDENTITY)

    def unwrap(self, sealed: bytes, info: bytes) -> bytes:
        """Opens HPKE ciphertext with the device's key, which from then on is in this process's memory.

        Raises:
            RefusedError: `SEALED`.
            DeviceError: The chip does not give the key.
        """
        return self._identity().unwrap(sealed, info)

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
        granted = self._fuses.reserve(name, least, most, limit)
        used = self._fuses.counter(name)
        if granted == 0:
            self.record("budget", f"{name}: refused, {used} of {limit} reserved")
            return 0
        # A step, not a block: frequent queries must not fill the log.
        if used * _BUDGET_STEPS // limit > (used - granted) * _BUDGET_STEPS // limit:
            self.record("budget", f"{name}: {used} of {limit} reserved")
        return granted

    def now(self) -> float:
        """Unix time in seconds."""
        return self._clock()

    def measurements(self) -> Mapping[str, bytes]:
        """The measurements at launch, by name, 32 bytes each."""
        booted = {} if self._boot_digest is None else {BOOT: self._boot_digest}
        return {**self._host.measurements(), **booted, "root": self._root.fingerprint}

    @property
    def boot_digest(self) -> bytes | None:
        """Measurement of the machine's boot, 32 bytes, if the chip is bound to it."""
        return self._boot_digest

    def close_boot(self) -> bool:
        """Has the chip give its secrets to nobody else until the machine starts again.

        Returns:
            Whether it can do that.

        Raises:
            DeviceError: The chip failed.
        """
        return self._fuses.close_boot()

    def record(self, event: str, detail: str) -> None:
        """Writes an entry of the audit log; repeated refusals are counted before they are written.

        Raises:
            DeviceError: The disk failed.
        """
        self._audit.write(self.now(), event, detail, boot=self.counter(BOOTS))

    @property
    def logged(self) -> int:
        """Number of the last entry of the audit log that the chip counted, 0 before the first.

        Raises:
            DeviceError: The chip failed.
        """
        return self._audit.counted()

    def log(self) -> list[str]:
        """The audit log's entries as lines, oldest first; nothing is verified."""
        return self._audit.lines(self.now())

    def export_log(self) -> bytes:
        """The audit log, signed as it stands now, for `audit_report.verify`.

        Raises:
            DeviceError: The disk or the chip failed.
        """
        return self._audit.export(self.now(), boot=self.counter(BOOTS))

    def _identity(self) -> DeviceIdentity:
        with self._private_lock:
            if self._private is None:
                with disk(), os.fdopen(self.identity_descriptor(), "rb") as file:
                    self._private = DeviceIdentity.from_bytes(file.read())
            return self._private

    def _pin(self, trust: Trust) -> None:
        self._fuses.burn(_TRUST, trust.to_bytes())
        self._trust, self._root = trust, trust.root

    def close(self) -> None:
        """Turns the device off."""
        with contextlib.suppress(DeviceError):  # it may be off, or without power, already
            self._audit.flush(self.now(), boot=self.counter(BOOTS))
        self._fuses.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
