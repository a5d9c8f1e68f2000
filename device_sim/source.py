"""Sources of artefacts to flash: memory, files or a network, as a stream. All input is treated as hostile.

An envelope may come alone, if a slot of the device holds its component already.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from variegate.device_sim.at_rest import AtRest
from variegate.keys.artefact import MAGIC, Artefact
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.signing import MAX_STATEMENT_BYTES

_HEAD_BYTES = len(MAGIC) + 4


class Source(Protocol):
    """An artefact that is read piece by piece."""

    @property
    def envelope(self) -> bytes:
        """The whole envelope."""
        ...

    @property
    def length(self) -> int:
        """Bytes of the component."""
        ...

    def read(self, part: slice) -> bytes | memoryview:
        """Bytes of the component; fewer where it ends.

        Raises:
            MisuseError: The file cannot be read.
            DeviceError: The connection broke; asked again, it may come. An `OSError` is taken for that.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """An envelope that comes without its component."""

    envelope: bytes


class Counted:
    """A source, and how much came from it.

    Attributes:
        moved: Bytes read, the envelope's included.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.envelope, self.length = source.envelope, source.length
        self.moved = len(self.envelope)

    def read(self, part: slice) -> bytes | memoryview:
        """As `Source.read`."""
        try:
            data = self._source.read(part)
        except OSError as error:
            raise DeviceError("the artefact stopped coming", hint="flash again: the received part is kept") from error
        self.moved += len(data)
        return data


class Stored:
    """A component that is in a slot already, under another envelope.

    Attributes:
        moved: Bytes of the envelope, which alone came from outside.
    """

    def __init__(self, disk: AtRest, name: str, envelope: bytes) -> None:
        self._disk, self._name = disk, name
        self.envelope, self.moved = envelope, len(envelope)
        self.length = disk.size(name)

    def read(self, part: slice) -> bytes:
        """As `Source.read`."""
        return self._disk.read(self._name, part.start, part.stop - part.start)


class _Memory:
    def __init__(self, artefact: Artefact) -> None:
        self.envelope = artefact.envelope
        self._component = memoryview(artefact.component)
        self.length = len(self._component)

    def read(self, part: slice) -> memoryview:
        return self._component[part]


class _File:
    def __init__(self, path: Path, file: BinaryIO, start: int, envelope: bytes) -> None:
        self.envelope = envelope
        self._path, self._file, self._start = path, file, start
        self.length = file.seek(0, 2) - start

    def read(self, part: slice) -> bytes:
        try:
            self._file.seek(self._start + part.start)
            return self._file.read(part.stop - part.start)
        except OSError as error:
            raise _unreadable(self._path, error) from error


@contextmanager
def open_source(artefact: Artefact | Path, component: Path | None) -> Iterator[Source | Alone]:
    """Opens an artefact for reading.

    Args:
        artefact: The artefact, or its file, or the file of an envelope alone.
        component: The component's file, for an envelope.

    Raises:
        RefusedError: `MALFORMED`.
        MisuseError: A file cannot be read.
    """
    if isinstance(artefact, Artefact):
        yield _Memory(artefact)
        return
    head = _head(artefact, MAX_STATEMENT_BYTES + _HEAD_BYTES + 1)
    if component is None and not head.startswith(MAGIC):
        yield Alone(head)
        return
    if component is None:
        envelope = Artefact.from_bytes(head).envelope
        path, start = artefact, _HEAD_BYTES + len(envelope)
    else:
        path, start, envelope = component, 0, head
    with _open(path) as file:
        yield _File(path, file, start, envelope)


def _head(path: Path, most: int) -> bytes:
    with _open(path) as file:
        try:
            return file.read(most)
        except OSError as error:
            raise _unreadable(path, error) from error


def _open(path: Path) -> BinaryIO:
    """Opens a regular file: it is read twice and at any place, which a pipe does not allow."""
    if "\0" in str(path):
        raise MisuseError(f"{str(path)!r} is not a path", hint="give the path of a file")
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise MisuseError(f"{path} is not a regular file", hint="give the path of a file")
    return file


def _unreadable(path: Path, error: OSError) -> MisuseError:
    return MisuseError(f"{path} cannot be read: {error.strerror}", hint="give the path of a file")
