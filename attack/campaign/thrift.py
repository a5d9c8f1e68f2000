"""As much of Thrift's compact protocol as Parquet's headers have, read strictly.

Of a field that is there twice, or is of another type than is wanted, readers differ in what they take. Here it is an
error. The format: thrift/doc/specs/thrift-compact-protocol.md of Apache Thrift. Faults are `ValueError`, and
`LookupError` where bytes or fields are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_MAX_DEPTH = 16
_SHORT = 15
"""Lists of fewer items have their number in the first byte."""


@dataclass(frozen=True)
class Struct:
    """Fields by number, each with its type."""

    fields: dict[int, tuple[int, Any]]

    def get(self, number: int, kind: int) -> Any:
        """A field of a type: integers, bytes, lists of them or of structs; None where it is not there."""
        item = self.fields.get(number)
        if item is not None and item[0] != kind:
            raise ValueError("a field of another type")
        return None if item is None else item[1]

    def need(self, number: int, kind: int) -> Any:
        """As `get`, of a field that must be there."""
        value = self.get(number, kind)
        if value is None:
            raise LookupError(number)
        return value

    def structs(self, number: int) -> list[Struct]:
        """A list of structs, which must be there."""
        items: list[Struct] = self.need(number, LIST)
        if not all(isinstance(item, Struct) for item in items):
            raise ValueError("a list of something else")
        return items


class Reader:
    """Reads structs one after the other.

    Attributes:
        at: Where the next one begins.
    """

    def __init__(self, data: memoryview, at: int, *, items: int) -> None:
        """Reads nothing yet.

        Args:
            data: The bytes.
            at: Where to begin.
            items: Most fields and items of lists, all together.
        """
        self._data, self.at, self._items = data, at, items

    def struct(self, depth: int = 0) -> Struct:
        """The next one."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        out: dict[int, tuple[int, Any]] = {}
        number = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            number = number + step if step else self._zigzag()
            if number in out:
                raise ValueError("a field twice")
            out[number] = kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
        return Struct(out)

    def _value(self, kind: int, depth: int) -> Any:
        self._items -= 1
        if self._items < 0:
            raise ValueError("too many items")
        if kind in (I16, I32, I64):
            return self._zigzag()
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (LIST, SET):
            head = self._byte()
            count = self._varint() if head >> 4 == _SHORT else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind in (TRUE, FALSE, BYTE):  # a truth in a list
            return self._byte()
        if kind == DOUBLE:
            return self._bytes(8)
        raise ValueError("no header has this type")

    def _bytes(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self._data):
            raise LookupError(count)
        return bytes(self._data[self.at - count : self.at])

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004  the last has no high bit
                return value
            shift += 7
            if shift > 63:  # noqa: PLR2004
                raise ValueError("a number too long")
