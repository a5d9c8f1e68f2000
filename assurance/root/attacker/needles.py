"""Finds windows of secret bytes at any position in memory.

At any position a window contains whole words at multiples of eight. So memory is read word by word, and each word is
looked up in a set of words. For each window and each of its possible alignments the set has the rarest word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

_WORD = 8
_LEAST = 2 * _WORD
_CHUNK = 1 << 16


class Needles:
    """Windows of at least 16 bytes."""

    def __init__(self, windows: Iterable[bytes]) -> None:
        self._windows = [window for window in windows if len(window) >= _LEAST]
        self._places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, window in enumerate(self._windows):
            for first in range(_WORD):
                places = range(first, len(window) - _WORD + 1, _WORD)
                offset = max(places, key=lambda at, window=window: len(set(window[at : at + _WORD])))  # type: ignore[misc]
                self._places[int.from_bytes(window[offset : offset + _WORD], "little")].append((number, offset))
        self._words = frozenset(self._places)

    def __len__(self) -> int:
        return len(self._windows)

    def found(self, memory: bytes | bytearray) -> set[int]:
        """Numbers of the windows that stand in `memory`, which begins at a multiple of eight."""
        out: set[int] = set()
        words = memoryview(memory)[: len(memory) // _WORD * _WORD].cast("Q")
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK]
            if not self._words.isdisjoint(part):
                out |= self._among(part, start, memory)
        return out

    def _among(self, part: Sequence[int], start: int, memory: bytes | bytearray) -> set[int]:
        out = set()
        for i, word in enumerate(part, start):
            for number, offset in self._places.get(word, ()):
                at = _WORD * i - offset
                window = self._windows[number]
                if at >= 0 and memory[at : at + len(window)] == window:
                    out.add(number)
        return out
