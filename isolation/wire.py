"""The socket between supervisor and enclave: one message, one packet.

A packet is a kind (1 byte) and its body. Queries and their labels have fixed layouts, everything else is
deterministic CBOR. Frames do not pass here: they lie in a memory file that both map, from its first byte.

    host to enclave                              enclave to host
    START     settings, with descriptors         LOADED   the code runs; nothing was opened
                                                 READY    manifest, protections
    QUERY     QUERY_LAYOUT                       LABELS   LABELS_LAYOUT, labels (int64), receipt
    TEST  PING  EVIDENCE                         DONE     nothing, or evidence
    ANSWER    result of a call                   CALL     [name, arguments]: asks the platform
                                                 FAILED   [class, refusal, message, hint, nanoseconds]
"""

from __future__ import annotations

import socket
import struct
import threading
from enum import IntEnum
from typing import Any, cast

from variegate.keys import cbor
from variegate.keys.errors import (
    DeviceError,
    LimitError,
    MisuseError,
    Refusal,
    RefusedError,
    VariegateError,
)

MAX_PACKET = 304 * 1024
"""The labels of the largest batch (128 KiB) with their receipt (160 KiB), and some."""
QUERY_LAYOUT = struct.Struct("<BQdQIB")
"""Kind, number of the query, Unix time, security counter, frames, whether a receipt is wanted."""
LABELS_LAYOUT = struct.Struct("<BQI")
"""Kind, number of the query, frames."""


NS = 1_000_000_000
_MAX_TEXT = 2000
"""Characters of an error's message or hint."""


class Kind(IntEnum):
    """First byte of a packet."""

    START = 1
    QUERY = 2
    TEST = 3
    PING = 4
    EVIDENCE = 5
    ANSWER = 6
    LOADED = 16
    READY = 17
    LABELS = 18
    DONE = 19
    CALL = 20
    FAILED = 21


_local = threading.local()


class Lost(Exception):  # noqa: N818  the event, not a mistake
    """The other side is gone, or speaks another language."""


def pack(kind: Kind, *values: object) -> bytes:
    """A packet with CBOR inside."""
    return bytes([kind]) + cbor.encode(list(values))


def unpack(packet: bytes | memoryview) -> tuple[int, list[Any]]:
    """Kind and values of a packet of CBOR.

    Raises:
        Lost: It is none.
    """
    try:
        values = cbor.decode(bytes(packet[1:]), limit=MAX_PACKET)
    except RefusedError:
        values = None
    if not isinstance(values, list):
        raise Lost("packet is not a list")
    return packet[0], values


def send(channel: socket.socket, packet: bytes) -> None:
    """Sends a packet whole.

    Raises:
        Lost: The other side is gone.
    """
    try:
        channel.send(packet)
    except OSError as error:
        raise Lost("cannot send") from error


def receive(channel: socket.socket) -> bytes:
    """The next packet, at least one byte.

    Raises:
        Lost: The other side is gone, or the packet is too long.
        TimeoutError: None came in the socket's time.
    """
    buffer = _buffer()
    try:
        size, _, flags, _ = channel.recvmsg_into([buffer])
    except TimeoutError:
        raise
    except OSError as error:
        raise Lost("cannot receive") from error
    if not size or flags & socket.MSG_TRUNC:
        raise Lost("connection closed")
    return bytes(buffer[:size])


def _buffer() -> memoryview:
    """Room for the largest packet, the same for all of a thread's: new room would be mapped each time."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(MAX_PACKET))
    buffer: memoryview = _local.buffer
    return buffer


def failure(error: VariegateError) -> bytes:
    """An error as a packet."""
    refusal = str(error.refusal) if isinstance(error, RefusedError) else None
    wait = error.retry_after_s if isinstance(error, LimitError) else None
    nanoseconds = None if wait is None else round(wait * NS)
    known = next(kind for kind in _ERRORS.values() if isinstance(error, kind))
    return pack(Kind.FAILED, known.__name__, refusal, error.message, error.hint, nanoseconds)


def error_of(values: list[Any]) -> VariegateError:
    """The error in a packet.

    Raises:
        Lost: There is none.
    """
    if not all(text.isprintable() and len(text) <= _MAX_TEXT for text in values if isinstance(text, str)):
        raise Lost("packet holds an error that cannot be shown")
    match values:
        case ["RefusedError", str(refusal), str(message), None | str() as hint, None] if refusal in list(Refusal):
            return RefusedError(Refusal(refusal), message, hint=hint)
        case ["LimitError", None, str(message), None, None | int() as wait] if wait is None or wait >= 0:
            return LimitError(message, retry_after_s=None if wait is None else wait / NS)
        case ["MisuseError" | "DeviceError" | "VariegateError" as name, None, str(message), None | str() as hint, None]:
            return cast("VariegateError", _ERRORS[name](message, hint=hint))
    raise Lost("packet is not an error")


_ERRORS: dict[str, Any] = {
    kind.__name__: kind for kind in (RefusedError, LimitError, MisuseError, DeviceError, VariegateError)
}
