"""The images of a campaign: from an .npz that may be hostile, or from the data folder.

Colour sets of the data folder are stored as differences (planes G, R-G, B-G, each along rows and columns, modulo 256).
"""

from __future__ import annotations

import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import read_capped

FOLDER_VARIABLE = "VARIEGATE_DATA"
MAX_BYTES = 1 << 30
"""Of the file, and of all that it unpacks to."""
_MAX_HEADER = 4096
_RANK = 4
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes; LZMA may ask for gigabytes before it has unpacked anything."""
_FAULTS = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error,
           NotImplementedError, tokenize.TokenError, SyntaxError, RuntimeError, OverflowError)  # fmt: skip
"""What zipfile and numpy raise at damaged files."""


def read_npz(data: bytes, names: Sequence[str], what: str, *, limit: int | None = None) -> dict[str, NDArray[Any]]:
    """Named arrays of an .npz; no pickles, and no memory for more than is there.

    Args:
        data: The file.
        names: Arrays that are wanted; others are left alone.
        what: Name of the file for messages.
        limit: The most bytes that they may unpack to; None for `MAX_BYTES`.

    Raises:
        RefusedError: `MALFORMED`, or `TOO_LARGE`.
    """
    limit = MAX_BYTES if limit is None else limit
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [archive.getinfo(f"{name}.npy") for name in names]
            if sum(member.file_size for member in members) > limit:
                raise RefusedError(Refusal.TOO_LARGE, f"{what} unpacks to more than {limit} bytes")
            if any(member.compress_type not in _METHODS for member in members):
                raise ValueError("packed as numpy does not")
            out = {}
            for name, member in zip(names, members, strict=True):
                with archive.open(member) as file:
                    out[name] = _array(file, member.file_size)
    except _FAULTS as error:
        message = f"{what} is not an .npz file with {' and '.join(names)}"
        raise RefusedError(Refusal.MALFORMED, message, hint="numpy.savez(path, x=..., y=...)") from error
    return out


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """One .npy whose header does not promise more than its bytes hold."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError("only version 1.0 of .npy is read")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.kind not in "uif":
        raise ValueError("not plain numbers")
    length = math.prod(shape) * dtype.itemsize
    if length > size:
        raise ValueError("header promises more than there is")
    data = file.read(length + 1)
    if len(data) != length:
        raise ValueError("header and content differ")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_images(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images x, uint8 (N, C, H, W), and classes y, int64 (N,), of an .npz.

    Raises:
        MisuseError: There is no such file.
        RefusedError: `MALFORMED`, or `TOO_LARGE`.
    """
    arrays = read_npz(read_capped(path, limit=MAX_BYTES), ("x", "y"), str(path))
    return checked(arrays, str(path))


def checked(arrays: Mapping[str, NDArray[Any]], what: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and classes, when they are images and their classes.

    Raises:
        RefusedError: `MALFORMED`.
    """
    x, y = arrays["x"], arrays["y"]
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
