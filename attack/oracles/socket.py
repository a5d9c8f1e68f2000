"""The label socket as an oracle; `docs/label-socket.md` has the protocol.

It is written from that document and not from the server's code, so that each tests the other.
"""

from __future__ import annotations

import math
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracles.frames import MAX_CLASSES, check_frames, check_labels
from variegate.attack.oracles.patience import NONE, Patience
from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError, VariegateError

TIMEOUT_S = 30.0
"""Most seconds of one exchange, and of connecting before it."""
_HELLO, _QUERY, _ANSWER = struct.Struct("<4sHBB3IIII"), struct.Struct("<4sIII"), struct.Struct("<4sIIIII")
_VERSION, _SIDES, _NEVER = 1, 3, 0xFFFFFFFF
_DTYPES = {1: "uint8", 2: "float32"}
_MAX_FRAME_BYTES = 1 << 28
_MAX_BATCH = 1 << 16
_OK, _WRONG, _TOO_MANY, _RATE, _SPENT, _NOT_CURRENT, _, _BUSY = range(8)
_FREE = {_WRONG, _TOO_MANY, _RATE, _SPENT, _NOT_CURRENT, _BUSY}
"""The statuses that cost no budget."""


@dataclass(frozen=True)
class _Hello:
    """The format of the device's frames."""

    dtype: str
    shape: tuple[int, int, int]
    classes: int
    batch: int


class SocketOracle:
    """A device behind a label socket (`attack.oracle.Oracle`). Thread-safe: queries take turns.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames of one call.
        asked: Frames that the device was charged for, or may have been.
    """

    def __init__(self, path: Path, *, patience: Patience = NONE, timeout_s: float = TIMEOUT_S) -> None:
        """Connects and reads the format of a frame.

        Args:
            path: Of the socket.
            patience: How long a rate or a full queue is waited for.
            timeout_s: Most seconds of one exchange.

        Raises:
            MisuseError: The path cannot be one of a socket, or the time is not positive.
            DeviceError: Nobody serves there, or it takes no more connections.
            RefusedError: `MALFORMED`, when it is no label socket.
        """
        if not 0 < timeout_s < math.inf:
            raise MisuseError("the time of an exchange is a positive number of seconds")
        self._path, self._patience, self._timeout_s = path, patience, timeout_s
        self._lock = threading.Lock()
        self._line: _Line | None = None
        self._number = self.asked = 0
        self._line, self._hello = self._connect()
        hello = self._hello
        self.shape, self.dtype, self.classes, self.batch = hello.shape, hello.dtype, hello.classes, hello.batch

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames (N, *shape) of `dtype`.

        Raises:
            LimitError: The budget is spent, or the rate or a full queue allows it later than patience does.
            RefusedError: Frames that the device refuses; `MALFORMED` for an answer that is none.
            DeviceError: No answer. The query may have been charged, and is not asked again.
        """
        check_frames(frames, self)
        kind = np.dtype(self.dtype).newbyteorder("<")
        raw = np.ascontiguousarray(frames, kind).tobytes()
        return self._patience.asked(lambda: self._once(raw, len(frames)))

    def close(self) -> None:
        """Leaves; a later query connects again."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _once(self, raw: bytes, count: int) -> NDArray[np.int64]:
        with self._lock:
            if self._line is not None and self._line.over:
                self._drop()
            if self._line is None:
                self._line, hello = self._connect()
                if hello != self._hello:
                    self._drop()
                    raise RefusedError(Refusal.MALFORMED, "the device behind the socket is another one now")
            self._line.ends = time.monotonic() + self._timeout_s
            try:
                return self._query(self._line, raw, count)
            except LimitError:
                raise
            except BaseException:
                self._drop()  # the next bytes would be another query's answer
                raise

    def _query(self, line: _Line, raw: bytes, count: int) -> NDArray[np.int64]:
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        self.asked += count
        line.send(_QUERY.pack(b"VGQ1", number, count, 0) + raw)
        magic, told, status, wait, labels, reserved = _ANSWER.unpack(line.receive(_ANSWER.size))
        if (magic, told, reserved) != (b"VGA1", number, 0) or labels != (count if status == _OK else 0):
            raise RefusedError(Refusal.MALFORMED, "the device does not answer as the label socket does")
        if status == _OK:
            found = np.frombuffer(line.receive(4 * count), "<u4").astype(np.int64)
            return check_labels(found, count, self.classes)
        if status in _FREE:
            self.asked -= count
        raise _error(status, None if wait == _NEVER else wait / 1000)

    def _connect(self) -> tuple[_Line, _Hello]:
        line = _Line(self._path, time.monotonic() + self._timeout_s)
        try:
            return line, _hello(line.receive(_HELLO.size))
        except BaseException:
            line.close()
            raise

    def _drop(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


class _Line:
    """A connection whose sending and receiving end at one time, however slowly bytes come.

    Attributes:
        ends: When, by the monotonic clock.
    """

    def __init__(self, path: Path, ends: float) -> None:
        self.ends = ends
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(self._left())
            self._sock.connect(str(path))
        except (OSError, ValueError) as error:
            self._sock.close()
            if not isinstance(error, TimeoutError) and getattr(error, "errno", None) is None:
                raise MisuseError(
                    "the path cannot be one of a socket", hint="it is too long, or holds a zero"
                ) from None
            reason = str(getattr(error, "strerror", None) or "no answer in time").lower()
            raise DeviceError(f"cannot connect to {path}: {reason}", hint="is the device served there?") from None

    @property
    def over(self) -> bool:
        """Whether the other side has left, or speaks without being asked; seen before anything is sent to it."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, data: bytes) -> None:
        """Sends all of it, or raises `DeviceError`."""
        try:
            self._sock.settimeout(self._left())
            self._sock.sendall(data)
        except OSError:
            raise _lost() from None

    def receive(self, count: int) -> bytes:
        """Exactly so many bytes, or `DeviceError`."""
        out = bytearray()
        try:
            while len(out) < count:
                self._sock.settimeout(self._left())
                part = self._sock.recv(count - len(out))
                if not part:
                    raise _lost()
                out += part
        except OSError:
            raise _lost() from None
        return bytes(out)

    def close(self) -> None:
        """Ends it."""
        self._sock.close()

    def _left(self) -> float:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _hello(data: bytes) -> _Hello:
    magic, version, kind, rank, channels, height, width, classes, batch, size = _HELLO.unpack(data)
    if (magic, version, rank) != (b"VGH1", _VERSION, _SIDES) or kind not in _DTYPES:
        raise RefusedError(Refusal.MALFORMED, "this is not a label socket of version 1")
    dtype = _DTYPES[kind]
    values = channels * height * width
    if size != values * np.dtype(dtype).itemsize or not 0 < size <= _MAX_FRAME_BYTES or batch < 1:
        raise RefusedError(Refusal.MALFORMED, "the device announces frames that are not valid")
    if not 1 <= classes <= MAX_CLASSES:
        raise RefusedError(Refusal.MALFORMED, f"the device announces {classes} classes")
    return _Hello(dtype, (channels, height, width), classes, min(batch, _MAX_BATCH))


def _error(status: int, wait_s: float | None) -> VariegateError:  # noqa: PLR0911 - a table
    """What a status means to the attacker."""
    match status:
        case 1:
            return RefusedError(Refusal.INPUT, "the device refuses these frames")
        case 2:
            return RefusedError(Refusal.TOO_LARGE, "the device refuses so many frames")
        case 3:
            return LimitError("the device's query rate is exceeded", retry_after_s=wait_s)
        case 4:
            return LimitError("the device's query budget is spent")
        case 5:
            return DeviceError("the copy has expired or was replaced", hint="boot the device anew")
        case 7 if wait_s is not None:
            return LimitError("too many queries wait at the device", retry_after_s=wait_s)
        case 8:
            return DeviceError("the device is closed")
        case _:
            return DeviceError("the device gave no answer; the query may have been charged")


def _lost() -> DeviceError:
    return DeviceError("the device's answer did not come; the query may have been charged")
