"""A seller's arrays from `.npz` files that may be damaged or hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from variegate.keys.arrays import read_npz
from variegate.keys.files import read_capped

MAX_BYTES = 4 << 30
"""Of the file, and of all that is wanted of it when unpacked."""


def read_arrays(path: Path, names: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    """Reads named arrays.

    Raises:
        MisuseError: When the file is missing.
        RefusedError: `TOO_LARGE`, or `MALFORMED` when it is no `.npz` with these arrays.
        DeviceError: Storage failed.
    """
    arrays = read_npz(read_capped(path, limit=MAX_BYTES), names, str(path), limit=MAX_BYTES)
    return tuple(arrays[name] for name in names)
