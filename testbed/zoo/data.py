"""The image sets of the data folder, with numpy alone.

The folder is the one that VARIEGATE_DATA names, by default ``../shared/data`` seen from the repository.
Colour images are stored there as differences (planes G, R-G, B-G, each along rows and columns, modulo 256);
reading restores the exact pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import MisuseError

_REPOSITORY: Final = Path(__file__).resolve().parents[2]

_FILES: Final = (
    "cifar10-test.npz",
    "cifar10-train20k.npz",
    "gtsrb-test.npz",
    "gtsrb-train26k.npz",
    "mnist.npz",
)

CIFAR10_CLASSES: Final = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

GTSRB_CLASSES: Final = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no passing",
    "no passing over 3.5 t",
    "right of way at next crossing",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no vehicles over 3.5 t",
    "no entry",
    "general caution",
    "curve left",
    "curve right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows right",
    "road work",
    "traffic signals",
    "pedestrians",
    "children",
    "bicycles",
    "ice or snow",
    "wild animals",
    "end of all limits",
    "turn right",
    "turn left",
    "ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end of no passing over 3.5 t",
)


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Labelled images.

    Attributes:
        x: Pixels, uint8 (N, C, H, W): (N, 3, 32, 32) RGB for CIFAR-10 and GTSRB, (N, 1, 28, 28) for MNIST.
        y: Classes, int64 (N,).
        track: Number of the track within the class, int64 (N,), for the GTSRB training set; else None.
            Frames of a track are near copies: hold out whole tracks, pairs of `y` and `track`.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    track: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def select(self, index: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Images:
        """The images at `index` (a slice, a mask or numbers), in that order."""
        return Images(self.x[index], self.y[index], None if self.track is None else self.track[index])

    def unit(self) -> NDArray[np.float32]:
        """The pixels as float32 in [0, 1], same shape."""
        return self.x.astype(np.float32) / np.float32(255)


def data_root() -> Path:
    """The data folder: VARIEGATE_DATA, or ``../shared/data`` relative to the repository root."""
    configured = os.environ.get("VARIEGATE_DATA")
    return Path(configured) if configured else _REPOSITORY.parent / "shared" / "data"


def available() -> bool:
    """Whether the data folder holds every image set and the folder of weights."""
    root = data_root()
    return all((root / name).is_file() for name in _FILES) and (root / "weights").is_dir()


def data_file(name: str) -> Path:
    """Path of one file of the data folder.

    Raises:
        MisuseError: The file is not there.
    """
    path = data_root() / name
    if not path.is_file():
        raise MisuseError(
            f"the data file {name} was not found",
            hint="set VARIEGATE_DATA to the folder that holds the image sets and weights/",
        )
    return path


def require_data() -> None:
    """For tests: skip the running test where the data is missing, but fail it where CI is set."""
    if available():
        return
    import pytest  # noqa: PLC0415  benchmarks run without pytest

    message = "the image sets are missing: set VARIEGATE_DATA"
    if os.environ.get("CI"):
        pytest.fail(f"{message} (CI must have them)", pytrace=False)
    pytest.skip(message)


def cifar10_test() -> Images:
    """The 10,000 test images of CIFAR-10; image i has class i % 10, so every prefix is balanced.

    Raises:
        MisuseError: The data folder lacks the file; so for every reader below.
    """
    return _colour("cifar10-test.npz")


def cifar10_train() -> Images:
    """20,000 training images of CIFAR-10, 2,000 of each class."""
    return _colour("cifar10-train20k.npz")


def gtsrb_test() -> Images:
    """The 12,630 test images of GTSRB in the official order."""
    return _colour("gtsrb-test.npz")


def gtsrb_train() -> Images:
    """26,140 training images of GTSRB (20 frames of each track), with `Images.track`."""
    return _colour("gtsrb-train26k.npz")


def mnist_test() -> Images:
    """The 10,000 test images of MNIST in the original order."""
    return _mnist("test")


def mnist_train() -> Images:
    """The 60,000 training images of MNIST in the original order."""
    return _mnist("train")


def _read(name: str, *arrays: str) -> dict[str, NDArray[Any]]:
    with np.load(data_file(name), allow_pickle=False) as archive:
        return {array: archive[array] for array in arrays if array in archive.files}


def _colour(name: str) -> Images:
    stored = _read(name, "delta", "y", "track")
    planes = stored["delta"].cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    green = planes[0]
    x = np.stack([planes[1] + green, green, planes[2] + green], axis=1)
    track = stored.get("track")
    return Images(x, stored["y"].astype(np.int64), None if track is None else track.astype(np.int64))


def _mnist(part: str) -> Images:
    stored = _read("mnist.npz", f"x_{part}", f"y_{part}")
    return Images(stored[f"x_{part}"][:, None], stored[f"y_{part}"].astype(np.int64))
