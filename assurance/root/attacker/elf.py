"""Functions of a shared library, from its file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_DYNSYM, _FUNCTION, _INDIRECT = 11, 2, 10


@dataclass(frozen=True)
class Function:
    """The place of a function: offset in memory from the library's start, and bytes."""

    value: int
    size: int


def functions(path: Path) -> dict[str, Function]:
    """Every function that a 64-bit little-endian library exports.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such library.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path.name} is no 64-bit library")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    out = {}
    for section in sections:
        if section[1] != _DYNSYM:
            continue
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, info, _, index, value, length = struct.unpack_from("<IBBHQQ", data, at)
            if index and info & 15 in (_FUNCTION, _INDIRECT):
                start = names + name
                out[data[start : data.index(b"\0", start)].decode()] = Function(value, length)
    return out
