"""Looks for pieces of tensors in the memory of another process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)")
_STEP = 1 << 24
_WHOLE, _FEW, _SOME, _MANY = 0, 16, 256, 1 << 32
_RUNS = {_WHOLE: 6, _FEW: 16, _SOME: 3, _MANY: 3}
_TABLE_BITS = 26


class Windows:
    """All windows of some tensors, at any offset of a byte.

    A window of 32 bytes holds three aligned words wherever it lies, so three aligned words of memory that stand in a
    row in a tensor count as a find: fewer bytes than a window, so nothing is missed. Of a tensor of few values (signs)
    128 bytes must match, or any activation would; of integers 48, or any counters would.
    """

    def __init__(self, tensors: Iterable[NDArray[Any]]) -> None:
        kinds: dict[int, list[bytes]] = {}
        for tensor in tensors:
            if tensor.nbytes >= 32:
                # Those of few values apart: they match by chance, and are then looked up in fewer bytes.
                kinds.setdefault(_kind(tensor), []).append(np.ascontiguousarray(tensor).tobytes())
        self._kinds = [(_Words(parts, whole=kind == _WHOLE), _RUNS[kind]) for kind, parts in kinds.items()]

    def found_in(self, pid: int, leave_out: tuple[int, int] = (0, 0)) -> list[str]:
        """The maps of a process that hold a window, by name; `leave_out` is a range of addresses not looked at."""
        out = []
        for name, data in _memory(pid, leave_out):
            words = np.frombuffer(data, np.uint64, len(data) // 8)
            if any(kind.found(words, run) for kind, run in self._kinds):
                out.append(name)
        return out


def _kind(tensor: NDArray[Any]) -> int:
    """By its type, and by how many different values it has."""
    if tensor.dtype.kind in "iu":
        return _WHOLE
    different = len(np.unique(tensor))
    return _FEW if different <= _FEW else _SOME if different <= _SOME else _MANY


class _Words:
    def __init__(self, parts: list[bytes], *, whole: bool) -> None:
        self._whole = b"".join(parts)
        self._table = np.zeros(1 << _TABLE_BITS, bool)
        for part in parts:
            for i in range(8):
                words = np.frombuffer(part[i:], np.uint64, (len(part) - i) // 8)
                high = words >> np.uint64(32)
                # Zeros and repeated halves are everywhere and tell nothing.
                telling = (high != words & np.uint64(0xFFFFFFFF)) & ((high != 0) | whole) & (words != 0)
                self._table[self._slots(words[telling])] = True

    def found(self, words: NDArray[np.uint64], run: int) -> bool:
        hit = self._table[self._slots(words)]
        if np.count_nonzero(hit) < run:
            return False
        starts = hit[: len(hit) - run + 1].copy()
        for i in range(1, run):
            starts &= hit[i : len(hit) - run + 1 + i]
        pieces = {words[i : i + run].tobytes() for i in np.flatnonzero(starts)}
        return any(piece in self._whole for piece in pieces)

    @staticmethod
    def _slots(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _TABLE_BITS)


def _memory(pid: int, leave_out: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """Every readable byte of a process that it may have written, as the kernel shows it to whoever may trace it."""
    lines = Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines()
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for line in lines:
            match = _MAP.match(line)
            if match is None or "r" not in match[3] or match[4].startswith("[v"):
                continue
            if "w" not in match[3] and match[4].startswith("/"):
                continue  # what a file on disk holds
            at, end = int(match[1], 16), int(match[2], 16)
            if leave_out[0] < end and at < leave_out[1]:
                continue
            while at < end:
                try:
                    data = os.pread(memory, min(_STEP, end - at), at)
                except OSError:  # secret pages, and the end of a mapped file
                    break
                if not data:
                    break
                yield match[4] or "anonymous", data
                at += len(data)
    finally:
        os.close(memory)
