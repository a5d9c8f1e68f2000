"""The operations in numpy: the reference for copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class NumpyOps:
    """`Ops` over arrays."""

    def convolve(self, image: Array, weight: Array, dilation: tuple[int, int]) -> Array:
        """See `Ops`."""
        (down, across), (count, _, h, w) = dilation, weight.shape
        windows = np.lib.stride_tricks.sliding_window_view(
            image, ((h - 1) * down + 1, (w - 1) * across + 1), axis=(2, 3)
        )[..., ::down, ::across]
        batch, _, rows, columns = windows.shape[:4]
        patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * rows * columns, -1)
        out: Array = (patches @ weight.reshape(count, -1).T).reshape(batch, rows, columns, count)
        return out.transpose(0, 3, 1, 2)

    def add(self, left: Array, right: Array) -> Array:
        """See `Ops`."""
        return left + right

    def subtract(self, left: Array, right: Array) -> Array:
        """See `Ops`."""
        return left - right

    def scale(self, value: Array, factor: float) -> Array:
        """See `Ops`."""
        return value * np.float32(factor)

    def shift(self, value: Array, by: float) -> Array:
        """See `Ops`."""
        return value + np.float32(by)

    def signed_square(self, value: Array) -> Array:
        """See `Ops`."""
        out: Array = value * np.abs(value)
        return out

    def round(self, value: Array) -> Array:
        """See `Ops`."""
        return np.rint(value)

    def sum_abs(self, value: Array, classes: int) -> Array:
        """See `Ops`."""
        out: Array = np.abs(value).reshape(len(value), classes, -1).sum(axis=2, dtype=np.float32)
        return out

    def take(self, value: Array, indices: Array) -> Array:
        """See `Ops`."""
        return value[:, indices]

    def project(self, image: Array, weight: Array) -> Array:
        """See `Ops`."""
        out: Array = image.reshape(len(image), -1) @ weight
        return out
