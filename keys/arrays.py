"""Arrays from .npz and .npy files that may be damaged or hostile; without pickles, and with a limit on their size.

Sizes in an archive's directory and in an array's header are only claims: no memory is reserved beyond the data that is
there, and no more is read than was claimed.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError

_MAX_HEADER = 4096
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The methods that numpy writes; LZMA may ask for gigabytes before it has unpacked anything."""
_FAULTS = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error,
           NotImplementedError, tokenize.TokenError, SyntaxError, RuntimeError, OverflowError)  # fmt: skip
"""The errors of zipfile and numpy for damaged files."""


def read_npz(data: bytes, names: Sequence[str], what: str, *, limit: int) -> dict[str, NDArray[Any]]:
    """Named arrays of an .npz; no pickles, and no memory for more than is there.

    Args:
        data: The file.
        names: Arrays that are wanted; others are left alone.
        what: Name of the file for messages.
        limit: The most bytes that they may unpack to.

    Raises:
        RefusedError: `MALFORMED`, or `TOO_LARGE`.
    """
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
    if dtype.hasobject or dtype.kind not in "buif":
        raise ValueError("not plain numbers")
    length = math.prod(shape) * dtype.itemsize
    if length > size:
        raise ValueError("header promises more than there is")
    data = file.read(length + 1)
    if len(data) != length:
        raise ValueError("header and content differ")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_npy(data: bytes, what: str) -> NDArray[Any]:
    """The array of an .npy.

    Raises:
        RefusedError: `INPUT`.
    """
    try:
        return _array(io.BytesIO(data), len(data))
    except _FAULTS as error:
        raise RefusedError(Refusal.INPUT, f"{what} is not a numpy array of numbers") from error
