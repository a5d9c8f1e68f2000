"""A disk that can lose power between any two operations.

Files live in one real folder. Unsynced changes stay in memory: `fsync` writes a file's bytes to the real file,
`fsync_dir` makes creations, renames and removals real. So a killed process loses the same data as in a power cut. A
`Fault` cuts the power at a chosen operation and lets a random part of the unsynced changes reach the disk first, sector
by sector and in any order, as a real disk may.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from variegate.device_sim.changes import File, NameChange, Truncate, Write, apply, disk
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import sync_folder

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ORPHAN = ".orphan-"


class PowerCut(DeviceError):  # noqa: N818  the event, not a mistake
    """The power went; the storage is dead until it is opened again."""


@dataclass(frozen=True)
class Fault:
    """The moment when the power goes, and the changes that reach the disk.

    Attributes:
        operation: Number of the operation that does not return, from 1. Only operations that change something
            count: a cut at a read leaves the same disk as a cut at the next change.
        seed: Chooses which unsynced sectors and directory changes land, and in what order.
        share: How likely each of them lands, 0 to 1; None lets the seed choose among none, some and all.
    """

    operation: int
    seed: int = 0
    share: float | None = None


class Storage:
    """Named files in one folder.

    Attributes:
        operations: How many operations that change something were begun.
    """

    def __init__(self, folder: Path, *, fault: Fault | None = None) -> None:
        self.operations = 0
        self._folder = folder
        self._fault = fault
        self._dead = False
        self._orphans = 0
        self._entries: list[NameChange] = []
        with disk():
            for left in folder.glob(f"{_ORPHAN}*"):  # as fsck clears files that no name leads to
                left.unlink()
            self._names = {p.name: File(p, p.stat().st_size) for p in folder.iterdir() if _is_ours(p)}
        self._durable = dict(self._names)

    def exists(self, name: str) -> bool:
        """Whether a file has this name.

        Raises:
            PowerCut: The power is off.
            MisuseError: `name` is no name.
        """
        self._powered()
        return _checked(name) in self._names

    def names(self) -> list[str]:
        """All names, sorted.

        Raises:
            PowerCut: The power is off.
        """
        self._powered()
        return sorted(self._names)

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            PowerCut: The power is off.
            DeviceError: There is no such file.
        """
        self._powered()
        return self._file(name).length

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file as last written, synced or not.

        Args:
            name: The file.
            offset: First byte.
            length: Bytes at the most; fewer come where the file ends. None reads to the end.

        Raises:
            PowerCut: The power is off.
            DeviceError: There is no such file, or the real disk failed.
        """
        self._powered()
        file = self._file(name)
        end = file.length if length is None else min(file.length, offset + length)
        if end <= offset:
            return b""
        with disk(), _opened(file.path, os.O_RDONLY) as real:
            real.seek(offset)
            piece = real.read(end - offset)
        if not file.pending:
            return piece
        out = bytearray(piece.ljust(end - offset, b"\0"))
        for change in file.pending:
            if isinstance(change, Truncate):
                cut = max(0, change.length - offset)
                out[cut:] = bytes(len(out[cut:]))
            else:
                start, stop = max(offset, change.offset), min(end, change.offset + len(change.data))
                if start < stop:
                    part = slice(start - change.offset, stop - change.offset)
                    out[start - offset : stop - offset] = change.data[part]
        return bytes(out)

    def create(self, name: str) -> None:
        """Makes an empty file; one that exists is emptied.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: The real disk failed.
        """
        _checked(name)
        if name in self._names:
            self.truncate(name, 0)
            return
        self._begin()
        self._orphans += 1
        path = self._folder / f"{_ORPHAN}{self._orphans}"
        with disk():
            _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL).close()
        self._names[name] = File(path, 0)
        self._entries.append(NameChange(self._names[name], None, name))

    def truncate(self, name: str, length: int) -> None:
        """Cuts or lengthens (with zeros) a file.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: There is no such file.
        """
        file = self._file(name)
        self._begin()
        file.pending.append(Truncate(length))
        file.length = length

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Writes `data` at `offset`; a gap before it reads as zeros. Nothing to write changes nothing.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: There is no such file.
        """
        file = self._file(name)
        self._begin()
        if len(data) > 0:
            file.pending.append(Write(offset, bytes(data)))
            file.length = max(file.length, offset + len(data))

    def fsync(self, name: str) -> None:
        """Makes a file's bytes durable; its name only `fsync_dir` does.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: There is no such file, or the real disk failed.
        """
        file = self._file(name)
        self._begin()
        with disk(), _opened(file.path, os.O_RDWR) as real:
            for change in file.pending:
                apply(real.fileno(), change)
            os.fsync(real.fileno())
        file.pending.clear()

    def rename(self, old: str, new: str) -> None:
        """Gives a file another name, in place of the file that had it.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: There is no such file.
        """
        file = self._file(old)
        _checked(new)
        self._begin()
        self._names[new] = self._names.pop(old)
        self._entries.append(NameChange(file, old, new))

    def remove(self, name: str) -> None:
        """Removes a file.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: There is no such file.
        """
        file = self._file(name)
        self._begin()
        del self._names[name]
        self._entries.append(NameChange(file, name, None))

    def fsync_dir(self) -> None:
        """Makes creations, renames and removals durable.

        Raises:
            PowerCut: The power goes, or is off.
            DeviceError: The real disk failed.
        """
        self._begin()
        with disk():
            for entry in self._entries:
                if entry.new is None:
                    entry.file.path.unlink()
                else:
                    entry.file.path = entry.file.path.replace(self._folder / entry.new)
            sync_folder(self._folder)
        self._entries.clear()
        self._durable = dict(self._names)

    def _powered(self) -> None:
        if self._dead:
            raise PowerCut("the device has no power", hint="open it again")

    def _begin(self) -> None:
        self._powered()
        self.operations += 1
        if self._fault is not None and self.operations == self._fault.operation:
            self._dead = True
            with disk():
                self._cut(self._fault)
            raise PowerCut(f"power cut at storage operation {self.operations}", hint="open the device again")

    def _file(self, name: str) -> File:
        self._powered()
        file = self._names.get(_checked(name))
        if file is None:
            raise DeviceError(f"the device's disk has no file {name}")
        return file

    def _cut(self, fault: Fault) -> None:
        """Lets a random part of the unsynced changes reach the disk; none and all are likely on purpose."""
        chance = random.Random(fault.seed)  # noqa: S311  a fault to repeat, not a secret
        share = chance.choice((0.0, chance.random(), 1.0)) if fault.share is None else fault.share
        files = {id(f): f for f in (*self._durable.values(), *(e.file for e in self._entries))}.values()
        changes = [(f, piece) for f in files for change in f.pending for piece in change.sectors()]
        chance.shuffle(changes)
        for file, piece in changes:
            if chance.random() < share:
                with _opened(file.path, os.O_RDWR) as real:
                    apply(real.fileno(), piece)
        landed = [entry for entry in self._entries if chance.random() < share]
        chance.shuffle(landed)
        self._relink(landed)

    def _relink(self, entries: list[NameChange]) -> None:
        """Applies directory changes in an order in which the real folder would not take them."""
        names = dict(self._durable)
        for entry in entries:
            if entry.old is not None and names.get(entry.old) is entry.file:
                del names[entry.old]
            if entry.new is not None and entry.file not in names.values():
                names[entry.new] = entry.file
        for (
            name,
            file,
        ) in self._durable.items():  # aside first: no replacement may destroy one still named
            if names.get(name) is not file:
                self._orphans += 1
                file.path = file.path.replace(self._folder / f"{_ORPHAN}{self._orphans}")
        for name, file in names.items():
            if file.path.name != name:
                file.path = file.path.replace(self._folder / name)


def _opened(path: Path, flags: int) -> FileIO:
    """A real file, never through a link, which someone with the disk could put there while the device is on."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    return FileIO(descriptor, "rb" if flags == os.O_RDONLY else "r+b")


def _is_ours(path: Path) -> bool:
    """Not a link, which would lead writes out of the folder."""
    return path.is_file() and not path.is_symlink()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise MisuseError(f"{name!r} is not a name for a file on a device")
    return name
