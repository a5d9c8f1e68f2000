"""The chip: counters that only rise, and burnt-in secrets. A restored disk does not reset them.

    lock        held (flock) while the device is on: one process at a time
    counters    records of 64 bytes, written in place into zeros, each durable before `advance` returns
    <name>      one burnt value, replaced whole (mode 0600)

    record = SHA-256(value || name)[:8] || value (8, big-endian) || name (48, padded with zeros)

Only the last record can be torn by a power cut or a kill: it was never acknowledged, and the next one replaces it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import write_atomic
from variegate.keys.primitives import sha256

MAX_NAME_BYTES = 48
MAX_VALUE = (1 << 63) - 1
RECORDS = 4096
"""Records in the file; a full one is rewritten with one record for each counter."""
_SUM, _VALUE = 8, 8
_RECORD = _SUM + _VALUE + MAX_NAME_BYTES
_PRIVATE = 0o600


class Fuses:
    """Counters and burnt values in one folder; held by one process, safe among its threads."""

    def __init__(self, folder: Path) -> None:
        """Turns the chip on.

        Args:
            folder: The folder that simulates the chip.

        Raises:
            DeviceError: Another process holds the device, or the counters were damaged.
        """
        self._folder = folder
        self._process = os.getpid()
        self._guard = threading.Lock()
        self._open: list[int] = []
        self._log: int | None = None  # None: off, or broken
        try:
            with _chip():
                self._open.append(_locked(folder / "lock"))
                _clear_leftovers(folder)
                self._load()
        except BaseException:
            self.close()
            raise

    def counter(self, name: str) -> int:
        """Value of a counter; 0 for one never advanced.

        Raises:
            MisuseError: `name` is empty or too long.
            DeviceError: The chip is off, or another process turned it on.
        """
        checked_name(name)
        self._here()
        with self._guard:
            self._counters()
            return self._values.get(name, 0)

    def advance(self, name: str, value: int) -> None:
        """Raises a counter, durable before it returns; a lower or equal value changes nothing.

        Raises:
            DeviceError: It could not be made durable; the counters are then off until opened again.
            MisuseError: The name or the value is out of its range.
        """
        if not 0 <= value <= MAX_VALUE:
            raise MisuseError(f"counter {name} cannot hold {value}")
        self._here()
        with self._guard:
            if value > self._values.get(name, 0):
                self._raise(name, value)

    def reserve(self, name: str, least: int, most: int, limit: int) -> int:
        """Raises a counter by `most`, or by as much as `limit` leaves, durable before it returns.

        Two callers never get the same part of the count.

        Returns:
            By how much; 0, and nothing changed, when `limit` leaves less than `least`.

        Raises:
            DeviceError: It could not be made durable; the counters are then off until opened again.
            MisuseError: The name or the limit is out of its range.
        """
        if not 0 <= limit <= MAX_VALUE:
            raise MisuseError(f"counter {name} cannot hold {limit}")
        self._here()
        with self._guard:
            value = self._values.get(name, 0)
            granted = min(most, limit - value)
            if granted < max(1, least):
                return 0
            self._raise(name, value + granted)
            return granted

    def _raise(self, name: str, value: int) -> None:
        """Writes a counter's new value; `_guard` is held."""
        record = _record(name, value)
        with self._unless_broken():
            if self._used == RECORDS:
                self._compact()
            log = self._counters()
            _write(log, record, self._used * _RECORD)
            os.fdatasync(log)
        self._used += 1
        self._values[name] = value

    def load(self, name: str) -> bytes | None:
        """A burnt value, or None when there is none.

        Raises:
            DeviceError: The chip failed.
        """
        self._here()
        path = self._folder / name
        with _chip():
            return path.read_bytes() if path.exists() else None

    def burn(self, name: str, value: bytes) -> None:
        """Replaces a value whole, durable before it returns.

        Raises:
            DeviceError: The chip failed, and is off until opened again.
        """
        self._here()
        with self._guard:
            self._counters()
            with self._unless_broken():
                write_atomic(self._folder / name, value, overwrite=True)

    def burn_secret(self, name: str, value: bytes) -> None:
        """Replaces a value that only `open_secret` gives back, durable before it returns.

        Raises:
            DeviceError: The chip failed.
        """
        self.burn(name, value)

    def open_secret(self, name: str) -> int:
        """A descriptor from which a secret can be read once; the caller closes it.

        Raises:
            DeviceError: There is no such secret, or the chip failed.
        """
        self._here()
        with self._guard:
            self._counters()
        with _chip():
            return os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def boot(self) -> None:
        """None: a chip of files knows nothing of the machine's boot."""

    def close_boot(self) -> bool:
        """False: whoever reads the files has the secrets."""
        return False

    def close(self) -> None:
        """Turns the chip off."""
        with self._guard:
            self._log = None
            while self._open:
                os.close(self._open.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _here(self) -> None:
        # A fork shares the lock but not the counters: each side would count on its own. Before `_guard` is taken,
        # which a fork may copy while it is held.
        if os.getpid() != self._process:
            raise DeviceError("the device was opened by another process", hint="open it after the fork")

    def _counters(self) -> int:
        if self._log is None:
            raise DeviceError("the device's counters are off", hint="open the device again")
        return self._log

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """After a failed write nobody knows what is durable (pages may be dropped): no more writes."""
        try:
            with _chip():
                yield
        except DeviceError:
            self._log = None
            raise

    def _load(self) -> None:
        path = self._folder / "counters"
        if not path.exists():
            write_atomic(path, bytes(RECORDS * _RECORD), overwrite=True)
        data = path.read_bytes()
        self._values: dict[str, int] = {}
        self._used = 0
        while self._used < RECORDS:
            record = _parse(data[self._used * _RECORD : (self._used + 1) * _RECORD])
            if record is None:
                break
            name, value = record
            self._values[name] = max(value, self._values.get(name, 0))
            self._used += 1
        if len(data) != RECORDS * _RECORD or any(data[(self._used + 1) * _RECORD :]):
            raise DeviceError("the device's counters are damaged", hint="replace the chip")
        self._attach()

    def _attach(self) -> None:
        self._log = os.open(self._folder / "counters", os.O_WRONLY)
        self._open.append(self._log)

    def _compact(self) -> None:
        records = b"".join(_record(name, value) for name, value in sorted(self._values.items()))
        used = len(self._values)
        if used == RECORDS:
            raise DeviceError(f"the device has no more than {RECORDS} counters")
        write_atomic(self._folder / "counters", records.ljust(RECORDS * _RECORD, b"\0"), overwrite=True)
        os.close(self._open.pop())
        self._attach()
        self._used = used


def checked_name(name: str) -> bytes:
    """A counter's name as it is kept.

    Raises:
        MisuseError: It is not 1 to 48 bytes.
    """
    encoded = name.encode()
    if not 1 <= len(encoded) <= MAX_NAME_BYTES or b"\0" in encoded:
        raise MisuseError(f"counter name {name!r} is not 1 to {MAX_NAME_BYTES} bytes long")
    return encoded


def _record(name: str, value: int) -> bytes:
    body = value.to_bytes(_VALUE, "big") + checked_name(name).ljust(MAX_NAME_BYTES, b"\0")
    return sha256(body)[:_SUM] + body


def _parse(record: bytes) -> tuple[str, int] | None:
    body = record[_SUM:]
    if sha256(body)[:_SUM] != record[:_SUM]:
        return None
    return body[_VALUE:].rstrip(b"\0").decode(), int.from_bytes(body[:_VALUE], "big")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a chip's lock, and removes the temporary files of a killed replacement.

    Raises:
        DeviceError: Another process holds the device, or the folder cannot be used.
    """
    with _chip():
        descriptor = _locked(folder / "lock")
    try:
        with _chip():
            _clear_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def _clear_leftovers(folder: Path) -> None:
    """Removes the temporary files of a killed replacement."""
    for left in folder.glob(".*"):
        left.unlink()


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DeviceError(
            "the device is in use by another process", hint="stop that process, or use another device"
        ) from None
    return descriptor


def _write(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


@contextmanager
def _chip() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(f"the device's chip failed: {error.strerror}") from error
    except MisuseError as error:  # of `write_atomic`, for which the folder is the caller's choice
        raise DeviceError(f"the device's chip failed: {error.message}") from error
