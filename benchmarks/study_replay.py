"""Frames of any number shown to devices, and what came of them as rows of one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study_rows import ReplicationRow
from variegate.attack.oracle import Oracle, ask_all, to_points
from variegate.keys.errors import MisuseError


def replayed(
    *,
    fleet: str,
    method: str,
    colluders: Sequence[int],
    devices: Sequence[Oracle],
    images: Sequence[int],
    classes: NDArray[np.int64],
    clean: NDArray[Any],
    samples: NDArray[Any],
    victims: Sequence[int] | None = None,
) -> list[ReplicationRow]:
    """Shows samples to devices that are not a colluder's.

    Args:
        fleet: Name of the copies' kind.
        method: How the samples were made.
        colluders: Indices of the attackers' own devices; may be empty (a clone of another device).
        devices: The whole fleet.
        images: Indices of the images in the data, N.
        classes: Their true classes, int64 (N,).
        clean: Clean frames, (N, *shape).
        samples: Frames shown, likewise.
        victims: Who is shown them; None for all devices but the colluders'.

    Returns:
        A row for each image and victim.

    Raises:
        MisuseError: Numbers of images differ.
        LimitError, RefusedError, DeviceError: A device's.
    """
    if not len(images) == len(classes) == len(clean) == len(samples):
        raise MisuseError("as many images, classes, clean frames and samples are needed")
    if not len(images):
        return []
    away = (to_points(samples) - to_points(clean)).reshape(len(samples), -1).astype(np.float64)
    lengths = np.linalg.norm(away, axis=1)
    own_right = np.ones(len(images), np.bool_)
    for i in colluders:
        own_right &= ask_all(devices[i], clean) == classes
    rows = []
    for victim in range(len(devices)) if victims is None else victims:
        if victim in colluders:
            continue
        device = devices[victim]
        right = own_right & (ask_all(device, clean) == classes)
        fooled = ask_all(device, samples) != classes
        rows += [
            ReplicationRow(
                fleet=fleet,
                method=method,
                colluders=len(colluders),
                image=int(image),
                victim=victim,
                fooled=bool(fooled[n]),
                clean_right=bool(right[n]),
                l2=float(lengths[n]),
            )
            for n, image in enumerate(images)
        ]
    return rows
