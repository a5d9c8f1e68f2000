"""Arrays from `.npz` files that may be damaged or hostile; nothing is unpickled."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.files import read_capped

MAX_BYTES = 4 << 30
"""Cap on the file; what it unpacks to is the seller's own validation set."""


def read_arrays(path: Path, names: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    """Reads named arrays.

    Raises:
        MisuseError: When the file is missing.
        RefusedError: `TOO_LARGE`, or `MALFORMED` when it is no `.npz` with these arrays.
    """
    data = io.BytesIO(read_capped(path, limit=MAX_BYTES))
    try:
        with np.load(data, allow_pickle=False) as arrays:
            return tuple(np.asarray(arrays[name]) for name in names)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise RefusedError(
            Refusal.MALFORMED,
            f"{path} is not an .npz file with {' and '.join(names)}",
            hint="numpy.savez(path, " + ", ".join(f"{name}=..." for name in names) + ")",
        ) from error
