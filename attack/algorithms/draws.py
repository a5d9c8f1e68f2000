"""Random probes, float32, in a time that is small beside a forward pass.

numpy's normals for 3,072 pixels take a tenth of a ResNet-20's forward pass. A table of 65,536 quantiles, read at random
16-bit indices, is several times faster. Its moments, and its tails up to 4.3 standard deviations, are so close to the
normal's that a mean over probes does not show a difference.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_QUANTILES = 1 << 16
_BITS = 8


@cache
def _quantiles() -> NDArray[np.float32]:
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)], np.float32)


@cache
def _signs() -> NDArray[np.float32]:
    every = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return 2 * np.unpackbits(every, axis=1).astype(np.float32) - 1


def normals(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Standard normals, float32 (rows, columns)."""
    indices = np.frombuffer(rng.bytes(2 * rows * columns), np.uint16)
    # An index of 16 bits is always in range; this mode says so to numpy, which then does not look.
    return _quantiles().take(indices, mode="clip").reshape(rows, columns)


def spheres(rng: np.random.Generator, rows: int, columns: int, radius: float) -> NDArray[np.float32]:
    """Points uniform on the sphere of this radius, float32 (rows, columns)."""
    drawn = normals(rng, rows, columns)
    lengths = np.sqrt(np.einsum("ij,ij->i", drawn, drawn))
    drawn *= (np.float32(radius) / lengths)[:, np.newaxis]
    return drawn


def bits(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Fair bits, uint8 (rows, columns)."""
    width = -(-columns // _BITS)
    drawn = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(rows, width)
    return np.unpackbits(drawn, axis=1, count=columns)


def signs(rng: np.random.Generator, rows: int, columns: int, size: float, sparser: int = 0) -> NDArray[np.float32]:
    """Fair signs times `size`, float32 (rows, columns).

    Args:
        rng: Randomness.
        rows: Of the result.
        columns: Of the result.
        size: Absolute value.
        sparser: A share of 2^-sparser of all entries is kept, the others are 0.
    """
    width = -(-columns // _BITS)
    words = np.frombuffer(rng.bytes(rows * width), np.uint8)
    # Eight signs at a time, from a table by bytes: a third of the time of turning bits into floats.
    drawn = np.ascontiguousarray(
        (_signs() * np.float32(size)).take(words, axis=0, mode="clip").reshape(rows, -1)[:, :columns]
    )
    if sparser:
        mask = bits(rng, rows, columns)
        for _ in range(sparser - 1):
            mask &= bits(rng, rows, columns)
        drawn *= mask
    return drawn
