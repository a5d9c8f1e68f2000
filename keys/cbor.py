"""Deterministic CBOR (RFC 8949 section 4.2.1) with small unsigned map keys, decoded strictly.

`cbor2` does the coding. A scan first refuses hostile bytes outside the small subset that the formats use: no tags
(cbor2 would build dates, regular expressions and big numbers from them), no floats, no indefinite lengths, bounded
depth, a bounded number of items (an empty list is one byte, and 56 when it is built). After decoding, encoding again
must give the same bytes.
"""

from __future__ import annotations

from typing import Any

import cbor2

from variegate.keys.errors import Refusal, RefusedError

MAX_DEPTH = 8
"""Containers within containers. The deepest of our formats needs five."""
MAX_ITEMS = 1 << 16
"""Items of all containers together, of a format that names no bound of its own; the longest need a few thousand."""

_UINT, _NEGINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_DIRECT = 24  # additional information below this is the value itself (RFC 8949 section 3)
_LONGEST = 27  # 8-byte argument; 28 to 30 are reserved, 31 is indefinite length
_SIMPLE_ALLOWED = (20, 21, 22)  # false, true, null


def encode(value: object) -> bytes:
    """Encodes integers, bytes, text, lists, maps, booleans and None.

    Args:
        value: The value. Map keys are sorted; shortest forms are used.

    Returns:
        The deterministic encoding.
    """
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, limit: int, items: int = MAX_ITEMS) -> Any:
    """Decodes hostile bytes.

    Args:
        data: One CBOR item and nothing after it.
        limit: The most bytes accepted.
        items: The most items accepted, keys included.

    Returns:
        The value, made of int, bytes, str, list, dict, bool and None.

    Raises:
        RefusedError: `TOO_LARGE`, or `MALFORMED` for anything but our deterministic subset.
    """
    if len(data) > limit:
        raise RefusedError(Refusal.TOO_LARGE, f"structure of {len(data)} bytes exceeds {limit}")
    scan(data, items)
    try:
        value = cbor2.loads(data)
        again = encode(value)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, MemoryError, RecursionError):
        # cbor2 quotes its input; the cause is not chained, so that no log shows it.
        raise RefusedError(Refusal.MALFORMED, "structure is not valid CBOR") from None
    if again != data:
        raise RefusedError(Refusal.MALFORMED, "structure is not in deterministic CBOR")
    return value


def scan(data: bytes, items: int) -> None:
    """Looks through bytes for all but their order and their shortest forms; builds nothing.

    Raises:
        RefusedError: As `decode`.
    """
    position, announced = 0, 0
    # How many items each open container still lacks.
    open_items, maps = [1], [False]
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            maps.pop()
            continue
        is_key = maps[-1] and open_items[-1] % 2 == 0
        open_items[-1] -= 1
        major, argument, position = _head(data, position)
        if major in (_BYTES, _TEXT):
            position += argument
        elif major in (_ARRAY, _MAP):
            count = argument * (2 if major == _MAP else 1)
            if count > len(data) - position:  # an item is a byte at least
                raise RefusedError(Refusal.MALFORMED, "structure is cut short")
            announced += count
            if announced > items:
                raise RefusedError(Refusal.TOO_LARGE, f"structure has more than {items} items")
            open_items.append(count)
            maps.append(major == _MAP)
            if is_key:  # cbor2 would make a tuple or a mapping of its own of it
                raise RefusedError(Refusal.MALFORMED, "structure has a container for a key")
            if len(open_items) > MAX_DEPTH + 1:
                raise RefusedError(Refusal.MALFORMED, f"structure is nested deeper than {MAX_DEPTH}")
        elif major == _TAG or (major == _SIMPLE and argument not in _SIMPLE_ALLOWED):
            raise RefusedError(Refusal.MALFORMED, "structure holds a CBOR type that no format here uses")
        if position > len(data):
            raise RefusedError(Refusal.MALFORMED, "structure is cut short")
    if position != len(data):
        raise RefusedError(Refusal.MALFORMED, "structure has bytes after its end")


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Reads one head at `position`: major type, argument, position after it."""
    if position >= len(data):
        raise RefusedError(Refusal.MALFORMED, "structure is cut short")
    major, info = data[position] >> 5, data[position] & 31
    position += 1
    if info < _DIRECT:
        return major, info, position
    # A longer "simple" is a float or an unassigned value.
    if info > _LONGEST or major == _SIMPLE:
        raise RefusedError(Refusal.MALFORMED, "structure holds a CBOR form that no format here uses")
    width = 1 << (info - _DIRECT)
    return major, int.from_bytes(data[position : position + width], "big"), position + width
