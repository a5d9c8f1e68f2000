"""Changes to a disk that are not durable yet: of files' bytes and of names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from variegate.keys.errors import DeviceError

SECTOR_BYTES = 512
"""The unit that a disk writes whole or not at all."""


@dataclass(frozen=True)
class Write:
    """Bytes at an offset."""

    offset: int
    data: bytes

    def sectors(self) -> Iterator[Write]:
        """Cut at sector boundaries of the file."""
        start, end = self.offset, self.offset + len(self.data)
        while start < end:
            stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
            yield Write(start, self.data[start - self.offset : stop - self.offset])
            start = stop


@dataclass(frozen=True)
class Truncate:
    """A new length; added bytes are zeros."""

    length: int

    def sectors(self) -> Iterator[Truncate]:
        """Itself: it lands whole or not at all."""
        yield self


@dataclass(eq=False)
class File:
    """One file under any name: the place of its synced bytes, and the changes since."""

    path: Path
    length: int
    pending: list[Write | Truncate] = field(default_factory=list)


@dataclass(frozen=True)
class NameChange:
    """A directory change: `file` gets the name `new` and loses `old`; None where there is no such name."""

    file: File
    old: str | None
    new: str | None


def apply(descriptor: int, change: Write | Truncate) -> None:
    """Does a change to a real file."""
    if isinstance(change, Truncate):
        os.ftruncate(descriptor, change.length)
        return
    data, offset = memoryview(change.data), change.offset
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


@contextmanager
def disk() -> Iterator[None]:
    """Turns the real disk's failures into ours.

    Raises:
        DeviceError: For any `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise DeviceError(f"the device's disk failed: {error.strerror}") from error
