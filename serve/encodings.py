"""Decompresses request bodies up to a limit. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from variegate.keys.errors import Refusal, RefusedError

_WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Of zlib: RFC 1952 for gzip, RFC 1950 for deflate, as RFC 9110 section 8.4.1 names them."""
MAX_RATIO = 100
"""Times its own size that a body may unfold to. Deflate reaches 1032; photographs stay below 10."""
FREE_BYTES = 1 << 20
"""Up to here the ratio is not looked at: a small frame of one colour is honest, and costs little."""
_INPUT_STEP, _OUTPUT_STEP = 64 << 10, 256 << 10


def known(encoding: bytes) -> bool:
    """Whether a content encoding can be opened."""
    return encoding == b"identity" or encoding in _WINDOW_BITS


def decoded(
    body: bytes | bytearray, encoding: bytes, limit: int, take: Callable[[int], None] = lambda _: None
) -> bytes | bytearray:
    """Opens a body.

    Args:
        body: Hostile bytes.
        encoding: "identity", "gzip" or "deflate".
        limit: Most bytes to make of it.
        take: Called with every piece of the plain body before it is kept; an exception ends this.

    Returns:
        The plain body.

    Raises:
        RefusedError: `TOO_LARGE`, also for more than `MAX_RATIO` times the size of the body (beyond `FREE_BYTES`), or
            `INPUT` when it is damaged, cut short or followed by something else.
    """
    if encoding == b"identity":
        return body
    allowed = max(FREE_BYTES, MAX_RATIO * len(body))
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    plain = bytearray()
    # In steps, because the rest after a step is copied: a whole body would be copied once for every piece of it.
    at = 0
    for at in range(0, len(body), _INPUT_STEP):
        rest: bytes | bytearray = body[at : at + _INPUT_STEP]
        while True:
            try:
                piece = stream.decompress(rest, _OUTPUT_STEP)
            except zlib.error:
                raise RefusedError(Refusal.INPUT, "body is not compressed as its header says") from None
            if len(plain) + len(piece) > limit:
                raise RefusedError(Refusal.TOO_LARGE, f"body of more than {limit} bytes")
            if len(plain) + len(piece) > allowed:
                raise RefusedError(Refusal.TOO_LARGE, f"body expands to more than {MAX_RATIO} times its size")
            take(len(piece))
            plain += piece
            rest = stream.unconsumed_tail
            if not rest and len(piece) < _OUTPUT_STEP:
                break
        if stream.eof:
            break
    if not stream.eof or stream.unused_data or at + _INPUT_STEP < len(body):
        raise RefusedError(Refusal.INPUT, "compressed body is cut short or has bytes after its end")
    return plain
