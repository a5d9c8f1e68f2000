"""Keyed streams: permutations, messages and dithers from a buyer's seed, equal in every implementation.

A stream is named by a label. Its bytes are the ChaCha20 keystream (zero nonce, counter from 0) under
HKDF-Expand-SHA256(seed, "variegate/1/stream/" || label, 32). The folder's README gives each generator byte
by byte; `tests/vectors/streams.json` holds what a second implementation must reproduce.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from variegate.keys.primitives import hkdf_expand, keystream

_CONTEXT = b"variegate/1/stream/"
_WORD = 1 << 32
MAX_MODULUS = 1 << 16


def is_modulus(value: int) -> bool:
    """Whether `value` is a power of two up to 65,536."""
    return 1 <= value <= MAX_MODULUS and value & (value - 1) == 0


class Stream:
    """The bytes of one label, read from the front."""

    def __init__(self, seed: bytes, label: str) -> None:
        self._key = hkdf_expand(seed, _CONTEXT + label.encode())
        self._bytes = b""
        self._position = 0

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self._position + count
        if end > len(self._bytes):
            # Doubling keeps a long run of small reads linear: the keystream restarts from zero each time.
            self._bytes = keystream(self._key, max(end, 2 * len(self._bytes), 1024))
        out = self._bytes[self._position : end]
        self._position = end
        return out

    def below(self, bound: int) -> int:
        """Uniform in [0, bound): little-endian 32-bit words, those past the last multiple dropped."""
        last = _WORD - _WORD % bound
        while (word := int.from_bytes(self.read(4), "little")) >= last:
            pass
        return word % bound


def signs(seed: bytes, label: str, count: int) -> NDArray[np.int8]:
    """Signs +1 or -1, int8 (count,): bit i is bit i % 8 of byte i // 8, and 1 means +1."""
    packed = np.frombuffer(Stream(seed, label).read((count + 7) // 8), np.uint8)
    bits = np.unpackbits(packed, count=count, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def dithers(seed: bytes, label: str, count: int, modulus: int) -> NDArray[np.uint16]:
    """Uniform integers in [0, modulus), uint16 (count,); `modulus` is a power of two up to 65,536.

    Each is a little-endian 16-bit word, its low bits kept.
    """
    words = np.frombuffer(Stream(seed, label).read(2 * count), "<u2")
    return (words & np.uint16(modulus - 1)).astype(np.uint16)


def uniform(seed: bytes, label: str, count: int) -> NDArray[np.float32]:
    """Reals in (-1, 1), float32 (count,): (2 w + 1 - 65536) / 65536 of little-endian 16-bit words w."""
    words = np.frombuffer(Stream(seed, label).read(2 * count), "<u2").astype(np.int32)
    return ((2 * words + 1 - 65536) / 65536).astype(np.float32)


def derangement(seed: bytes, label: str, count: int) -> NDArray[np.int64]:
    """A uniform permutation without fixed point, int64 (count,); count >= 2.

    Fisher and Yates from the last index down, `j = below(i + 1)`; one with a fixed point is discarded and the next is
    drawn at the stream's current position (1 in e survives).
    """
    stream = Stream(seed, label)
    while True:
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = stream.below(i + 1)
            order[i], order[j] = order[j], order[i]
        if all(value != index for index, value in enumerate(order)):
            return np.array(order, np.int64)
