"""The images of one campaign, with the pool of pictures that attacks start from: one .npz in its folder."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.campaign.data import read_npz
from variegate.keys.errors import Refusal, RefusedError

_NAMES = ("x", "y", "index", "pool_x", "pool_y")


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is attacked.

    Attributes:
        x: uint8 (n, C, H, W).
        y: Classes, int64 (n,).
        index: Their places in the data, int64 (n,).
        pool_x: Pictures to start from, uint8 (m, C, H, W).
        pool_y: Their classes, int64 (m,).
    """

    x: NDArray[np.uint8] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    index: NDArray[np.int64] = field(repr=False)
    pool_x: NDArray[np.uint8] = field(repr=False)
    pool_y: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)


def to_bytes(images: Images) -> bytes:
    """The .npz; one for one content."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: getattr(images, name) for name in _NAMES}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Images:
    """Reads `to_bytes`.

    Raises:
        RefusedError: `MALFORMED`, or `TOO_LARGE`.
    """
    # Stored as they are, so they unpack to less than the file. With the pool they may be more than a user's file is.
    arrays = read_npz(data, _NAMES, "the campaign's images", limit=len(data))
    x, pool = arrays["x"], arrays["pool_x"]
    good = (
        x.dtype == pool.dtype == np.uint8
        and x.shape[1:] == pool.shape[1:]
        and arrays["y"].shape == arrays["index"].shape == x.shape[:1]
        and arrays["pool_y"].shape == pool.shape[:1]
        and all(arrays[name].dtype == np.int64 for name in ("y", "index", "pool_y"))
    )
    if not good:
        raise RefusedError(Refusal.MALFORMED, "the campaign's images are damaged")
    return Images(x=x, y=arrays["y"], index=arrays["index"], pool_x=pool, pool_y=arrays["pool_y"])
