"""The interface of an attack to a device: labels of frames, and nothing else."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import LimitError, MisuseError, Refusal, RefusedError

LEVELS = 255
_AT_ONCE = 256
_UNASKED = (Refusal.INPUT, Refusal.TOO_LARGE)
"""Refusals of frames, which no device answers."""


class Oracle(Protocol):
    """A device under attack.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" (0..255) or "float32" (0..1).
        classes: Number of classes.
        batch: Most frames of one call.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> int: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames (N, *shape) of `dtype`.

        The frames are the caller's: they may be overwritten as soon as this returns.

        Raises:
            LimitError: The device's budget or rate does not allow it.
            RefusedError: Frames that the device refuses.
            DeviceError: The device stopped, or cannot be reached.
        """
        ...


class Wrapper:
    """What stands before an oracle and takes the same frames (`Oracle` less its labels)."""

    def __init__(self, oracle: Oracle) -> None:
        self.shape, self.dtype, self.classes, self.batch = oracle.shape, oracle.dtype, oracle.classes, oracle.batch
        self._oracle = oracle


class Counted(Wrapper):
    """An oracle that counts queries and stops at a budget (`Oracle`). Thread-safe in its count.

    Attributes:
        queries: Frames labelled so far, or that may have been; refused frames are not among them.
        calls: Calls so far.
    """

    def __init__(self, oracle: Oracle, budget: int | None = None) -> None:
        """Wraps an oracle.

        Args:
            oracle: The device.
            budget: Most frames ever labelled; None for no bound of its own.

        Raises:
            MisuseError: The budget is negative.
        """
        if budget is not None and budget < 0:
            raise MisuseError("a budget cannot be negative")
        super().__init__(oracle)
        self._budget = budget
        self._lock = threading.Lock()
        self.queries = self.calls = 0

    @property
    def left(self) -> int | None:
        """Frames that may still be labelled; None without a budget."""
        return None if self._budget is None else self._budget - self.queries

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """As `Oracle.labels`; a call that would exceed the budget is refused whole and asks nothing.

        Raises:
            LimitError: The budget is spent.
        """
        with self._lock:
            if self._budget is not None and self.queries + len(frames) > self._budget:
                raise LimitError(f"the attack's budget of {self._budget} queries is spent")
            self.queries += len(frames)
            self.calls += 1
        try:
            return self._oracle.labels(frames)
        except (LimitError, RefusedError) as error:
            if isinstance(error, LimitError) or error.refusal in _UNASKED:
                with self._lock:
                    self.queries -= len(frames)
            raise


def ask_all(oracle: Oracle, frames: NDArray[Any]) -> NDArray[np.int64]:
    """Labels, int64 (N,), of any number of frames (N, *shape), in calls as large as the oracle takes, up to 256.

    Raises:
        LimitError, RefusedError, DeviceError: The oracle's.
    """
    size = min(oracle.batch, _AT_ONCE)
    parts = [oracle.labels(frames[i : i + size]) for i in range(0, len(frames), size)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def to_frames(points: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Points in [0, 1] as frames of a device of this dtype; values outside are clipped.

    Args:
        points: Floats of any shape, scale 0..1.
        dtype: "uint8" rounds to the nearest of 256 levels (a camera's bytes); "float32" keeps them.

    Returns:
        An array of the same shape and of `dtype`.
    """
    clipped: NDArray[Any] = np.clip(points, 0, 1)
    scaled = np.rint(clipped * LEVELS) if dtype == "uint8" else clipped
    return scaled.astype(dtype, copy=False)


def fill_frames(points: NDArray[np.float32], frames: NDArray[Any]) -> None:
    """As `to_frames`, into an array that is there, without another one.

    Args:
        points: float32 of any shape, scale 0..1; overwritten.
        frames: Of the same shape, uint8 or float32: filled. It may be `points` itself.
    """
    np.clip(points, 0, 1, out=points)
    if frames.dtype == np.uint8:
        points *= LEVELS
        np.rint(points, out=points)
    if frames is not points:
        np.copyto(frames, points, casting="unsafe")


def to_points(frames: NDArray[Any]) -> NDArray[np.float32]:
    """Frames of either dtype as float32 in [0, 1]; the inverse of `to_frames` up to rounding."""
    floats = frames.astype(np.float32, copy=False)
    return floats / np.float32(LEVELS) if frames.dtype == np.uint8 else floats
