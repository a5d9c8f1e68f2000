"""Checks before an attack whether a device answers as attacks suppose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle
from variegate.attack.oracles.frames import check_labels
from variegate.keys.errors import MisuseError, Refusal, RefusedError


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of a check.

    Attributes:
        labels: First answers, int64 (N,).
        queries: Labels asked for.
        again: Frames that were answered otherwise when the same batches came again.
        alone: Frames that were answered otherwise when each came by itself.
    """

    labels: NDArray[np.int64] = field(repr=False)
    queries: int
    again: int
    alone: int

    @property
    def steady(self) -> bool:
        """Whether a frame's label is a function of the frame; it is not behind a camera."""
        return self.again == self.alone == 0

    def require(self) -> None:
        """Refuses a device that does not answer a frame always alike.

        Raises:
            RefusedError: `CONTRACT`.
        """
        if not self.steady:
            raise RefusedError(
                Refusal.CONTRACT,
                f"of {len(self.labels)} frames, {self.again} got another label when asked again "
                f"and {self.alone} when asked alone",
                hint="smooth the oracle by votes, or attack without the camera",
            )


def check_oracle(oracle: Oracle, frames: NDArray[Any]) -> Check:
    """Asks frames in batches, in batches again, and one by one.

    Args:
        oracle: The device.
        frames: (N, *shape) of its dtype, N at least 1; 3 N labels are asked for.

    Raises:
        MisuseError: Frames that the device does not take by its own account, or an account that cannot be.
        RefusedError: Frames that it refuses nevertheless; `MALFORMED` for labels that are none.
        LimitError, DeviceError: As `Oracle.labels`.
    """
    if oracle.dtype not in ("uint8", "float32") or min(*oracle.shape, oracle.classes, oracle.batch) < 1:
        raise MisuseError("the oracle announces frames, classes or a batch that are not valid")
    if not len(frames) or frames.dtype != oracle.dtype or frames.shape[1:] != oracle.shape:
        sides = ", ".join(map(str, oracle.shape))
        raise MisuseError(f"frames to check with are {oracle.dtype} of shape (N, {sides})")
    first, again = _asked(oracle, frames, oracle.batch), _asked(oracle, frames, oracle.batch)
    alone = _asked(oracle, frames, 1)
    return Check(
        labels=first,
        queries=3 * len(frames),
        again=int((again != first).sum()),
        alone=int((alone != first).sum()),
    )


def _asked(oracle: Oracle, frames: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Labels in calls of `size`."""
    starts = range(0, len(frames), size)
    parts = [(len(part), oracle.labels(part)) for part in (frames[i : i + size] for i in starts)]
    return np.concatenate([check_labels(labels, count, oracle.classes) for count, labels in parts])
