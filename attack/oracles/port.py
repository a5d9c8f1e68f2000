"""A device's label port as an oracle, for an enclave in this process or an isolated one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracles.frames import check_frames, check_labels
from variegate.attack.oracles.patience import NONE, Patience
from variegate.keys.errors import DeviceError, MisuseError
from variegate.runtime.limits import LIMITS
from variegate.runtime.port import LabelPort

BATCH = 1024
"""Most frames of one call, unless the signed rate allows fewer at once."""
_RANK = 3


class PortOracle:
    """A device beside the attacker (`attack.oracle.Oracle`). Thread-safe.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames of one call.
        asked: Frames that the device was charged for, or may have been.
    """

    def __init__(self, port: LabelPort, *, patience: Patience = NONE, batch: int = BATCH) -> None:
        """Takes an opened copy; closing it stays the caller's.

        Args:
            port: The opened copy.
            patience: How long a signed rate is waited for.
            batch: Most frames of one call.

        Raises:
            MisuseError: A batch below 1, or a copy whose frames are no pictures (C, H, W).
        """
        if batch < 1:
            raise MisuseError("batch must be at least 1")
        manifest = port.manifest
        if len(manifest.shape) != _RANK:
            raise MisuseError("the copy's frames are not pictures of channels, height and width")
        channels, height, width = manifest.shape
        self.shape = (channels, height, width)
        self.dtype, self.classes = manifest.dtype, manifest.classes
        policy = manifest.policy
        at_once = LIMITS.batch if policy.rate_per_hour is None else policy.burst
        self.batch = max(1, min(batch, LIMITS.batch, at_once))
        self.asked = 0
        self._port, self._patience, self._lock = port, patience, threading.Lock()

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames (N, *shape) of `dtype`.

        Raises:
            LimitError: The budget is spent, or the rate allows it later than patience does.
            RefusedError: Frames that the device refuses; a copy that is not current any more.
            DeviceError: The device stopped. The query may have been charged, and is not asked again.
            MisuseError: The port is closed.
        """
        check_frames(frames, self)
        return check_labels(self._patience.asked(lambda: self._once(frames)), len(frames), self.classes)

    def _once(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        try:
            labels = self._port.classify_batch(frames)
        except DeviceError:
            self._count(len(frames))
            raise
        self._count(len(frames))
        return labels

    def _count(self, frames: int) -> None:
        with self._lock:
            self.asked += frames
