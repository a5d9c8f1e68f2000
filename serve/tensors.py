"""Tensor data of the Open Inference Protocol as numpy arrays: JSON numbers, and raw bytes. No I/O."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
"""Names of the protocol for the dtypes of a manifest."""


def from_json(data: object, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """An array from JSON numbers, flat in row-major order or nested as the shape.

    Args:
        data: The JSON decoder's output.
        shape: Of the array, none of its sides zero.
        dtype: "uint8" takes integers of 0..255, "float32" any number.

    Returns:
        A C-ordered array of that shape and dtype; floats that are too large for float32 are infinite.

    Raises:
        RefusedError: `INPUT`.
    """
    flat = _flat(data, shape)
    kinds = set(map(type, flat))
    try:
        if dtype == "uint8":
            if kinds != {int}:  # bool is an int to Python, not to JSON
                raise _wrong("data of UINT8 are not all integers")
            return np.frombuffer(bytes(flat), np.uint8).reshape(shape)
        if not kinds <= {int, float}:
            raise _wrong("data of FP32 are not all numbers")
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(np.float32).reshape(shape)
    except (ValueError, OverflowError):
        raise _wrong("data are out of range") from None


def from_bytes(data: memoryview, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A view of raw little-endian values, row-major.

    Raises:
        RefusedError: `INPUT`, when the length is not that of the shape.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    if len(data) != math.prod(shape) * kind.itemsize:
        raise _wrong("binary data have another length than their shape asks for")
    return np.frombuffer(data, kind).reshape(shape)


def _flat(data: object, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong("data are not an array")
    if len(data) != shape[0] or not isinstance(data[0], list):
        if len(data) != math.prod(shape):
            raise _wrong("data have another number of values than their shape asks for")
        return data
    level: list[Any] = data
    for side in shape[1:]:
        if not all(type(item) is list and len(item) == side for item in level):
            raise _wrong("data are not nested like their shape")
        level = list(chain.from_iterable(level))
    return level


def _wrong(text: str) -> RefusedError:
    return RefusedError(Refusal.INPUT, text)
