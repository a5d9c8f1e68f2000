"""A device in a car: it has a frame rate, and a camera between the attacker and the label.

For each query a print is placed before the camera and photographed, so the label is that of the photograph and not of
the print. All random numbers depend on the seed and the query's number.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle, to_frames, to_points
from variegate.attack.oracles.frames import check_frames
from variegate.device_sim.world.camera import CROP, Pose, rephotograph
from variegate.keys.errors import MisuseError

FRAME_RATE = 30.0
"""Frames a second of a usual camera on a windscreen."""
_SHAPE = (3, CROP, CROP)
_SEEDS = 1 << 53

Stand = Callable[[np.random.Generator], Pose]
"""How one photograph is taken, drawn for each query."""


@dataclass(frozen=True)
class Still:
    """A camera that stands still before the print (`Stand`).

    Attributes:
        pose: Where it stands.
        noisy: Whether each photograph has a background and sensor noise of its own; else all are alike to the bit.
    """

    pose: Pose = Pose()  # noqa: RUF009 - frozen
    noisy: bool = True

    def __call__(self, rng: np.random.Generator) -> Pose:
        """The pose of one photograph."""
        return replace(self.pose, seed=int(rng.integers(_SEEDS))) if self.noisy else self.pose


driving: Stand = Pose.draw
"""A car that drives past: each photograph from another place, in another light (`Stand`)."""


class VehicleOracle:
    """A device behind a camera (`attack.oracle.Oracle`). Thread-safe; a frame's photograph depends on its number.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames of one call.
        shown: Frames shown so far: the next query's number.
        frame_rate: Frames a second.
    """

    def __init__(
        self, device: Oracle, *, stand: Stand | None = None, frame_rate: float = FRAME_RATE, seed: int = 0
    ) -> None:
        """Puts a device into a car.

        Args:
            device: What reads the camera's pictures.
            stand: How a print is photographed; None feeds frames in on the wire, which changes nothing.
            frame_rate: Frames a second: every query takes one.
            seed: Of all photographs.

        Raises:
            MisuseError: A rate that is not positive, a negative seed, or a camera before a device that does not take
                its pictures, (3, 32, 32).
        """
        if not 0 < frame_rate < math.inf:
            raise MisuseError("the frame rate is a positive number of frames a second")
        if seed < 0:
            raise MisuseError("a seed cannot be negative")
        if stand is not None and device.shape != _SHAPE:
            raise MisuseError(f"the camera gives pictures of {_SHAPE}, and the device takes {device.shape}")
        self.shape, self.dtype, self.classes = device.shape, device.dtype, device.classes
        self.batch, self.frame_rate, self.shown = device.batch, frame_rate, 0
        self._device, self._stand, self._seed = device, stand, seed
        self._lock = threading.Lock()

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of the camera's photographs of frames (N, *shape) of `dtype`.

        Raises:
            LimitError, RefusedError, DeviceError: As the device's.
        """
        check_frames(frames, self)
        with self._lock:
            first = self.shown
            self.shown += len(frames)
        if self._stand is None:
            return self._device.labels(frames)
        poses = [self._stand(np.random.default_rng([self._seed, first + i])) for i in range(len(frames))]
        return self._device.labels(seen(frames, poses))

    def replayed(self, frames: NDArray[Any], poses: Sequence[Pose]) -> NDArray[np.int64]:
        """The labels of this car when it passes prints.

        Args:
            frames: (N, *shape) of `dtype`, N at least 1.
            poses: How each of them is seen, P of them, at least 1.

        Returns:
            Labels, int64 (N, P).

        Raises:
            MisuseError: Without a pose, or with a device that does not take a camera's pictures.
            LimitError, RefusedError, DeviceError: As the device's.
        """
        if not poses or self.shape != _SHAPE:
            raise MisuseError("a replay needs poses, and a device that takes a camera's pictures")
        out = np.empty((len(frames), len(poses)), np.int64)
        for start in range(0, len(frames), self.batch):
            part = frames[start : start + self.batch]
            check_frames(part, self)
            for at, pose in enumerate(poses):
                out[start : start + self.batch, at] = self._device.labels(seen(part, [pose] * len(part)))
        return out

    def seconds_beside(self, queries: int) -> float:
        """Seconds that so many queries take beside the car, at its frame rate."""
        return queries / self.frame_rate


def seen(frames: NDArray[Any], poses: Sequence[Pose]) -> NDArray[Any]:
    """Photographs of prints.

    Args:
        frames: (N, 3, 32, 32), uint8 or float32 in [0, 1]; printed in 8 bits either way.
        poses: N of them.

    Returns:
        The camera's photographs, in the frames' shape and dtype.
    """
    printed = to_frames(to_points(frames), "uint8").transpose(0, 2, 3, 1)
    pictures = [rephotograph(np.ascontiguousarray(p), pose) for p, pose in zip(printed, poses, strict=True)]
    stacked = np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))
    return stacked if frames.dtype == np.uint8 else to_points(stacked)
