"""The images of a campaign: from an .npz that may be hostile, or from the data folder.

Colour sets of the data folder are stored as differences (planes G, R-G, B-G, each along rows and columns, modulo 256).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys import arrays
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import read_capped

FOLDER_VARIABLE = "VARIEGATE_DATA"
MAX_BYTES = 1 << 30
"""Of the file, and of all that it unpacks to."""
_RANK = 4


def read_npz(data: bytes, names: Sequence[str], what: str, *, limit: int | None = None) -> dict[str, NDArray[Any]]:
    """As `keys.arrays.read_npz`; without a limit to `MAX_BYTES`.

    Raises:
        RefusedError: `MALFORMED`, or `TOO_LARGE`.
    """
    return arrays.read_npz(data, names, what, limit=MAX_BYTES if limit is None else limit)


def read_images(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images x, uint8 (N, C, H, W), and classes y, int64 (N,), of an .npz.

    Raises:
        MisuseError: There is no such file.
        RefusedError: `MALFORMED`, or `TOO_LARGE`.
    """
    return checked(read_npz(read_capped(path, limit=MAX_BYTES), ("x", "y"), str(path)), str(path))


def checked(given: Mapping[str, NDArray[Any]], what: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and classes, when they are images and their classes.

    Raises:
        RefusedError: `MALFORMED`.
    """
    x, y = given["x"], given["y"]
    if x.dtype != np.uint8 or x.ndim != _RANK or not x.size:
        raise RefusedError(Refusal.MALFORMED, f"x of {what} is {x.dtype} {x.shape}, not uint8 (N, C, H, W)")
    if y.shape != x.shape[:1] or y.dtype.kind not in "ui" or y.min() < 0 or y.max() > np.iinfo(np.int32).max:
        raise RefusedError(Refusal.MALFORMED, f"y of {what} is not one class for each image")
    return np.ascontiguousarray(x), y.astype(np.int64)


def read_set(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A set of the data folder, by the name of its file: uint8 (N, 3, 32, 32) and int64 (N,).

    Raises:
        MisuseError: The folder is not named, or lacks the file.
        RefusedError: `MALFORMED`.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise MisuseError(f"the set {name} is not at hand", hint=f"set {FOLDER_VARIABLE} to the folder of {name}.npz")
    path = Path(folder) / f"{name}.npz"
    stored = read_npz(read_capped(path, limit=MAX_BYTES), ("delta", "y"), str(path))
    delta = stored["delta"]
    if delta.dtype != np.uint8 or delta.ndim != _RANK or len(delta) != 3:  # noqa: PLR2004  colours
        raise RefusedError(Refusal.MALFORMED, f"{path} does not hold differences of three planes")
    planes = delta.cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
    green = planes[0]
    x = np.stack([planes[1] + green, green, planes[2] + green], axis=1)
    return checked({"x": x, "y": stored["y"]}, str(path))
