"""Checks a caller's frames against the manifest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.runtime.limits import LIMITS


class Frames:
    """Checks frames against one manifest.

    Attributes:
        dtype: Of a frame.
        shape: Of a frame.
        size: Numbers in a frame.
        bytes: Bytes of a frame.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.dtype = np.dtype(manifest.dtype)
        self.shape = manifest.shape
        self.size = math.prod(manifest.shape)
        self.bytes = self.size * self.dtype.itemsize
        self._float = manifest.dtype == "float32"

    def plain(self, frames: object, *, batch: bool) -> NDArray[Any]:
        """The caller's frames as a plain array (N, *shape), not copied; its values are not checked.

        A subclass may lie about itself, and a mask may hide values: both are bypassed.

        Raises:
            RefusedError: `INPUT`, when it is no array, or has another dtype, shape or number of frames.
        """
        if not isinstance(frames, np.ndarray):
            raise RefusedError(Refusal.INPUT, "frames are not a numpy array")
        plain = np.ndarray.view(frames, np.ndarray)
        if not batch:
            plain = plain[np.newaxis]
        shape = plain.shape
        if plain.dtype != self.dtype or shape[1:] != self.shape:
            raise RefusedError(
                Refusal.INPUT,
                f"frames are not {self.dtype} of shape (N, {', '.join(map(str, self.shape))})",
                hint="scale pixels to float32 in [0, 1]"
                if self._float
                else "a camera's bytes need no scaling: pass them as they come",
            )
        if not 1 <= shape[0] <= LIMITS.batch:
            raise RefusedError(Refusal.INPUT, f"a batch has 1 to {LIMITS.batch} frames")
        return plain

    def own(self, frames: object, *, batch: bool) -> NDArray[Any]:
        """A copy (N, *shape) of the caller's frames, checked in full: this copy is checked, charged and run.

        Raises:
            RefusedError: `INPUT`, as `plain`, and for floats outside of [0, 1] or not finite.
        """
        plain = self.plain(frames, batch=batch)  # before the copy, so that nothing huge is copied
        # Another thread may have resized the caller's array meanwhile.
        own = self.plain(np.array(plain, order="C"), batch=True)
        self.check_values(own)
        return own

    def check_values(self, plain: NDArray[Any]) -> None:
        """Looks at the values of plain frames.

        Raises:
            RefusedError: `INPUT`, for floats outside of [0, 1] or not finite.
        """
        # The comparison is also false for NaN.
        if self._float and not (plain.min() >= 0 and plain.max() <= 1):
            raise RefusedError(Refusal.INPUT, "frames hold values outside of [0, 1]")
