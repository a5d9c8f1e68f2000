"""The label socket's messages, byte by byte; `docs/label-socket.md` describes them for other languages. No I/O.

Everything is little-endian. A test compares the C header `examples/c/variegate_label.h` with this.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError
from variegate.serve.answers import Fault
from variegate.serve.limits import Spec

HELLO_MAGIC, QUERY_MAGIC, ANSWER_MAGIC = b"VGH1", b"VGQ1", b"VGA1"
VERSION = 1
OK = 0
NO_RETRY = 0xFFFFFFFF
_DTYPES = {"uint8": 1, "float32": 2}
_RANK = 3
_HELLO = struct.Struct("<4sHBB3IIII")
_QUERY = struct.Struct("<4sIII")
_ANSWER = struct.Struct("<4sIIIII")
HELLO_BYTES, QUERY_BYTES, ANSWER_BYTES = _HELLO.size, _QUERY.size, _ANSWER.size


@dataclass(frozen=True, slots=True)
class QueryHead:
    """The head of a query; `count` frames follow it.

    Attributes:
        id: Chosen by the client, repeated in the answer.
        count: Frames, at least 1.
    """

    id: int
    count: int


class HeadError(RefusedError):
    """A query's head is wrong, so that where the next one begins is not known.

    Attributes:
        id: The bytes in the place of the id.
    """

    def __init__(self, refusal: Refusal, message: str, query: int) -> None:
        super().__init__(refusal, message)
        self.id = query


def hello(spec: Spec) -> bytes:
    """The server's first message: the format of a frame and the most frames of a query."""
    return _HELLO.pack(
        HELLO_MAGIC,
        VERSION,
        _DTYPES[spec.dtype],
        _RANK,
        *spec.shape,
        spec.classes,
        spec.batch,
        spec.frame_bytes,
    )


def query_head(data: bytes | bytearray, spec: Spec) -> QueryHead:
    """Reads a query's head.

    Args:
        data: `QUERY_BYTES` hostile bytes.
        spec: Bounds the count.

    Raises:
        HeadError: `INPUT`, or `TOO_LARGE` for too many frames.
    """
    magic, number, count, reserved = _QUERY.unpack(data)
    if magic != QUERY_MAGIC or reserved != 0 or count < 1:
        raise HeadError(Refusal.INPUT, "query head is malformed", number)
    if count > spec.batch:
        raise HeadError(Refusal.TOO_LARGE, f"a query has at most {spec.batch} frames", number)
    return QueryHead(number, count)


def answer(query: int, labels: NDArray[np.int64]) -> bytes:
    """Labels, int64 (N,), as an answer."""
    return _ANSWER.pack(ANSWER_MAGIC, query, OK, NO_RETRY, len(labels), 0) + labels.astype("<u4").tobytes()


def refusal(query: int, fault: Fault) -> bytes:
    """An answer without labels."""
    wait = fault.retry_after_s
    # Rounded up: a client that waits exactly that long must not be early.
    retry = NO_RETRY if wait is None else min(NO_RETRY - 1, int(wait * 1000) + 1)
    return _ANSWER.pack(ANSWER_MAGIC, query, fault.code, retry, 0, 0)
