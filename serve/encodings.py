"""Compressed request bodies, opened within a bound. No I/O."""

from __future__ import annotations

import zlib

from variegate.keys.errors import Refusal, RefusedError

_WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Of zlib: RFC 1952 for gzip, RFC 1950 for deflate, as RFC 9110 section 8.4.1 names them."""


def known(encoding: bytes) -> bool:
    """Whether a content encoding can be opened."""
    return encoding == b"identity" or encoding in _WINDOW_BITS


def decoded(body: bytes | bytearray, encoding: bytes, limit: int) -> bytes | bytearray:
    """Opens a body.

    Args:
        body: Hostile bytes.
        encoding: "identity", "gzip" or "deflate".
        limit: Most bytes to make of it; no more than that and one is ever allocated.

    Returns:
        The plain body.

    Raises:
        RefusedError: `TOO_LARGE`, or `INPUT` when it is damaged, cut short or followed by something else.
    """
    if encoding == b"identity":
        return body
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error:
        raise RefusedError(Refusal.INPUT, "body is not compressed as its header says") from None
    if len(plain) > limit:
        raise RefusedError(Refusal.TOO_LARGE, f"body of more than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise RefusedError(Refusal.INPUT, "compressed body is cut short or has bytes after its end")
    return plain
