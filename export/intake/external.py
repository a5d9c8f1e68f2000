"""External tensor data of an ONNX model: read from the model's own folder or refused.

ONNX lets a tensor name a file, an offset and a length. A hostile model can name any file of the seller's machine, and
its bytes would reach buyers inside the copies. Hence one rule: nothing outside the model's folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from onnx import TensorProto

from variegate.keys.errors import Refusal, RefusedError

_KEYS = frozenset({"location", "offset", "length", "checksum"})
_MAX_DIGITS = 18  # below 2**63


def inline_external(tensors: list[TensorProto], folder: Path | None, budget: int) -> None:
    """Replaces external data by `raw_data`, in place.

    Args:
        tensors: All tensors of the model.
        folder: The model's folder, or None where external data has no place.
        budget: Bytes that may be read altogether.

    Raises:
        RefusedError: `MALFORMED` for a location outside the folder, a missing or short file, or broken
            entries; `TOO_LARGE` past the budget.
    """
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            if folder is None:
                raise _refuse("external data is not allowed here")
            data = _read(tensor, folder, budget)
            budget -= len(data)
            for field in ("external_data", "data_location"):
                tensor.ClearField(field)
            tensor.raw_data = data
        elif tensor.external_data:
            raise _refuse("a tensor names external data that it does not use")


def _read(tensor: TensorProto, folder: Path, budget: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not entries.keys() <= _KEYS or "location" not in entries:
        raise _refuse("a tensor's external data is described wrongly")
    offset = _number(entries.get("offset", "0"))
    length = _number(entries["length"]) if "length" in entries else None
    try:
        with _open_inside(folder, entries["location"]) as file:
            size = os.fstat(file.fileno()).st_size
            if length is None:
                length = max(size - offset, 0)
            if offset + length > size:
                raise _refuse("external data is shorter than the tensor says", "copy the data file again")
            if length > budget:
                raise RefusedError(
                    Refusal.TOO_LARGE,
                    "external data passes the limit",
                    hint="raise Limits.file_bytes if it is yours",
                )
            file.seek(offset)
            data = file.read(length)
    except (OSError, ValueError) as error:
        raise _refuse("external data cannot be read", "keep the data file beside the model") from error
    if len(data) != length:
        raise _refuse("external data is shorter than the tensor says", "copy the data file again")
    return data


def _open_inside(folder: Path, location: str) -> BinaryIO:
    """Opens a regular file below the folder; symbolic links count by where they lead."""
    parts = PurePosixPath(location)
    if not location or parts.is_absolute() or ".." in parts.parts or "\\" in location or "\0" in location:
        raise _refuse("external data lies outside the model's folder", "keep the data file beside the model")
    path = (folder / parts).resolve(strict=True)
    if not path.is_relative_to(folder.resolve(strict=True)):
        raise _refuse("external data lies outside the model's folder", "keep the data file beside the model")
    # O_NOFOLLOW: the path is resolved, so a link here was put in place since. O_NONBLOCK: a pipe must not
    # hang us.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _refuse("external data is not a regular file")
    return file


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise _refuse("a tensor's external data is described wrongly")
    return int(text)


def _refuse(message: str, hint: str | None = None) -> RefusedError:
    return RefusedError(Refusal.MALFORMED, message, hint=hint)
