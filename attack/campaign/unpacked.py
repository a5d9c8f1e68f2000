"""What a Parquet file unpacks to, told from its own headers before anything is unpacked.

Sizes in the footer are claims that no reader holds a file to: what a reader reserves is what the header of each page
says, and a dictionary of one long value and a run of indices make a page of a few bytes as large as anybody likes. So
every page's header is read here, and only encodings whose size follows from it are taken. The footer is read here,
too: pyarrow ends the process at some that are damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from variegate.attack.campaign.thrift import BINARY, I32, I64, STRUCT, Reader, Struct
from variegate.keys.errors import Refusal, RefusedError

_FLOOR, _TIMES, _MOST = 256 << 20, 8, 4 << 30
MOST_TOGETHER = 2 << 30
"""Of a campaign whose shards are held in memory together."""
_MAX_PAGES = 100_000
"""Of a file: reading the headers must end, too."""
_MAX_ITEMS, _MAX_ITEMS_OF_PAGE = 1_000_000, 1_000
"""Of the footer, and of a page's header."""
_BESIDE, _BESIDE_IN_LISTS = 1, 8
"""Bytes for each value beside it: whether it is null, and where its list begins."""
MEMORY_LIMIT = "4GiB"
"""Of DuckDB's own work; a query that needs more ends."""

# Of parquet.thrift: physical types and their bytes, compressions, types of pages with the number of their own header
# and of the encoding in it, encodings.
_BYTE_ARRAY, _FIXED = 6, 7
_WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, _BYTE_ARRAY: 4}
_REPEATED = 2
_CODECS = {0: None, 1: "snappy", 6: "zstd"}
_DICTIONARY = 2
_HEADERS = {0: (5, 2), _DICTIONARY: (7, 2), 3: (8, 4)}
_BY_INDEX = (2, 8)
_ENCODINGS = (0, 3, *_BY_INDEX)
"""Plain, runs, and indices into a dictionary. Prefixes of the value before (DELTA_BYTE_ARRAY) grow without end."""
_MAGIC, _LENGTH_BYTES, _TRAILER = b"PAR1", 4, 8


def limit_of(size: int) -> int:
    """The most bytes that a file of so many may unpack to.

    Replays repeat themselves, and shrink to a hundredth; what is large without that is frames, which hardly shrink.
    """
    return min(_FLOOR + _TIMES * size, _MOST)


def together(sizes: Iterable[int], what: Path) -> None:
    """Refuses shards that unpack to more than `MOST_TOGETHER`; before any of them is.

    Args:
        sizes: Of each, as `unpacked` gives them.
        what: The campaign's folder, for messages.

    Raises:
        RefusedError: `TOO_LARGE`.
    """
    total = 0
    for size in sizes:
        total += size
        if total > MOST_TOGETHER:
            message = f"the shards of {what} unpack to more than {MOST_TOGETHER} bytes"
            hint = "variegate attack verify goes through one after the other"
            raise RefusedError(Refusal.TOO_LARGE, message, hint=hint)


def unpacked(data: bytes, what: str) -> int:
    """The most bytes that a Parquet file takes in memory. Nothing of that size is made to tell it.

    Args:
        data: The file, which may be hostile.
        what: Its name, for messages.

    Raises:
        RefusedError: `TOO_LARGE`: more than `limit_of` its size; `MALFORMED`.
    """
    try:
        return _Walk(data, what).total()
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise RefusedError(Refusal.MALFORMED, f"{what} is no Parquet file of a campaign") from error


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column in a row group.

    Attributes:
        kind: Physical type.
        width: Bytes of a value in memory, with what lies beside it; of texts and bytes without their content.
        codec: Name of the compression, for pyarrow; None without.
        values: In it, nulls among them.
        start: Where its pages begin.
        end: Where they end.
    """

    kind: int
    width: int
    codec: str | None
    values: int
    start: int
    end: int


class _Walk:
    """Goes through the pages of a file."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what = memoryview(data), what
        self._limit, self._sum, self._pages = limit_of(len(data)), 0, 0

    def total(self) -> int:
        """Bytes of all columns."""
        for column in self._columns():
            self._column(column)
        return self._sum

    def _columns(self) -> Iterator[_Column]:
        ends = len(self._data) - _TRAILER
        begins = ends - int.from_bytes(self._data[ends : ends + _LENGTH_BYTES], "little")
        if begins < len(_MAGIC) or self._data[: len(_MAGIC)] != _MAGIC or self._data[-len(_MAGIC) :] != _MAGIC:
            raise ValueError("no footer")
        footer = Reader(self._data[:ends], begins, items=_MAX_ITEMS).struct()
        leaves = list(_leaves(footer.structs(2)))
        for group in footer.structs(4):
            rows, chunks = group.need(3, I64), group.structs(1)
            for chunk, (kind, width, repeated) in zip(chunks, leaves, strict=True):
                about: Struct = chunk.need(3, STRUCT)
                values = about.need(5, I64)
                # A file of its own, or another number of values than rows, is nothing that a shard has.
                if chunk.get(1, BINARY) is not None or about.need(1, I32) != kind or not 0 <= values <= _MOST:
                    raise ValueError("a column that cannot be")
                if not repeated and values != rows:
                    raise ValueError("a column of other rows")
                start, first = about.need(9, I64), about.get(11, I64)
                start = first if first is not None and 0 < first < start else start
                end = start + about.need(7, I64)
                if values and not 0 < start <= end <= begins:
                    raise ValueError("a column outside of the file")
                beside = _BESIDE_IN_LISTS if repeated else _BESIDE
                codec = _CODECS[about.need(4, I32)]
                yield _Column(kind=kind, width=width + beside, codec=codec, values=values, start=start, end=end)

    def _column(self, column: _Column) -> None:
        left, longest, at = column.values, 0, column.start
        if not left:
            return  # no page of it is read, and there may be none
        while at < column.end:
            self._pages += 1
            if self._pages > _MAX_PAGES:
                raise RefusedError(Refusal.TOO_LARGE, f"{self._what} has more than {_MAX_PAGES} pages")
            reader = Reader(self._data[: column.end], at, items=_MAX_ITEMS_OF_PAGE)
            header = reader.struct()
            kind, unpacked_, packed = (header.need(number, I32) for number in (1, 2, 3))
            number, encoding_at = _HEADERS[kind]
            own: Struct = header.need(number, STRUCT)
            values, encoding = own.need(1, I32), own.need(encoding_at, I32)
            begins, at = reader.at, reader.at + packed
            if encoding not in _ENCODINGS or min(unpacked_, packed, values) < 0 or at > column.end:
                raise ValueError("a page that cannot be")
            self._take(unpacked_)
            if kind == _DICTIONARY:
                self._take(values * column.width)
                if column.kind == _BYTE_ARRAY:
                    longest = max(longest, _longest(self._data[begins:at], unpacked_, column.codec))
            else:
                left -= values
                self._take(values * (column.width + (longest if encoding in _BY_INDEX else 0)))
        if left:
            # A reader goes on until it has them.
            raise ValueError("pages of other values")

    def _take(self, size: int) -> None:
        self._sum += size
        if self._sum > self._limit:
            message = f"{self._what} unpacks to more than the {self._limit} bytes that a file of its size may"
            raise RefusedError(Refusal.TOO_LARGE, message)


def _leaves(schema: list[Struct]) -> Iterator[tuple[int, int, bool]]:
    """Of each column of a schema: physical type, bytes of a value, and whether it is in a list."""
    # Groups that are open: members still to come, and whether they are in a list. The first is the file itself.
    groups = [[1, False]]
    for element in schema:
        while groups and not groups[-1][0]:
            groups.pop()
        groups[-1][0] -= 1
        repeated = bool(groups[-1][1]) or element.get(3, I32) == _REPEATED
        members = element.get(5, I32)
        if members:
            groups.append([members, repeated])
        elif len(groups) > 1:
            kind = element.need(1, I32)
            width = element.need(2, I32) if kind == _FIXED else _WIDTHS[kind]
            if width < 0:
                raise ValueError("a width that cannot be")
            yield kind, width, repeated


def _longest(content: memoryview, size: int, codec: str | None) -> int:
    """Bytes of the longest value of a dictionary of texts or bytes.

    Args:
        content: As it lies in the file.
        size: What it unpacks to, which was found to be little enough.
        codec: Its compression.
    """
    if not size:
        return 0
    raw = content if codec is None else memoryview(pa.decompress(content, size, codec))
    longest = at = 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + _LENGTH_BYTES], "little")
        longest, at = max(longest, length), at + _LENGTH_BYTES + length
    return longest
