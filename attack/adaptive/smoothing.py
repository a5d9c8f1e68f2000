"""Majority votes over noise: an attacker's way to see a base through the ripples that a rewriter lays over it.

A copy's attractors repeat with a period d along each message. Noise that is wide beside d/2 meets both sides of every
ripple, so that votes average them out, and what is left is the base's own boundary, a little rounded. Randomised
smoothing (Cohen, Rosenfeld, Kolter, ICML 2019, section 3.2.1), turned against a defence; the price is `votes` labels
for each answer.
"""

from __future__ import annotations

import hashlib
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle, to_frames, to_points
from variegate.attack.oracles.frames import check_frames
from variegate.keys.errors import MisuseError


class Smoothed:
    """A device as the attacker sees it through noise (`attack.oracle.Oracle`). Thread-safe.

    A frame's noise follows from the seed and the frame alone: an answer depends neither on batches nor on order, and
    asking again gives the same.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames of one call.
        votes: Labels asked for each answer.
        queries: Labels asked for so far: what the device counts.
    """

    def __init__(self, oracle: Oracle, votes: int, sigma: float, seed: int = 0) -> None:
        """Wraps a device.

        Args:
            oracle: The device.
            votes: Noisy frames for each answer; an odd number makes ties rare.
            sigma: Standard deviation of the noise in each pixel, scale 0..1. A projection on a unit message gets the
                same, so it should be above d/2.
            seed: Of the noise.

        Raises:
            MisuseError: `votes` below 1, or a negative or infinite `sigma` or `seed`.
        """
        if votes < 1 or seed < 0 or not 0 <= sigma < math.inf:
            raise MisuseError("smoothing needs at least one vote, and neither sigma nor seed below 0")
        self.shape, self.dtype, self.classes = oracle.shape, oracle.dtype, oracle.classes
        self.batch = max(1, oracle.batch // votes)
        self.votes, self.queries = votes, 0
        self._oracle, self._sigma, self._seed = oracle, np.float32(sigma), seed
        self._lock = threading.Lock()

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Majorities, int64 (N,), over noisy copies of frames (N, *shape) of `dtype`; of a tie the lowest class.

        Raises:
            LimitError, RefusedError, DeviceError: The device's.
        """
        check_frames(frames, self)
        asked = np.concatenate([self._noisy(frame) for frame in frames])
        size = self._oracle.batch
        labels = np.concatenate([self._answered(asked[i : i + size]) for i in range(0, len(asked), size)])
        counts = np.zeros((len(frames), self.classes), np.int32)
        np.add.at(counts, (np.repeat(np.arange(len(frames)), self.votes), labels), 1)
        out: NDArray[np.int64] = counts.argmax(axis=1).astype(np.int64, copy=False)
        return out

    def _answered(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        labels = self._oracle.labels(frames)
        with self._lock:
            self.queries += len(frames)
        return labels

    def _noisy(self, frame: NDArray[Any]) -> NDArray[Any]:
        """(votes, *shape)."""
        content = hashlib.sha256(f"{self._seed}\0".encode() + frame.tobytes()).digest()
        rng = np.random.default_rng(np.frombuffer(content, np.uint32))
        noise = rng.standard_normal((self.votes, *self.shape), np.float32)
        return to_frames(to_points(frame) + self._sigma * noise, self.dtype)
