"""What was found, and who is fooled by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.demo.attack import Found

OVERSHOOTS = (1.0, 1.25, 1.5, 2.0, 3.0)
"""Factors s by which a found perturbation is stretched."""


@dataclass(frozen=True)
class Attacked:
    """One sign, and what was found on car A.

    Attributes:
        clean: uint8 (3, 32, 32); every car and the base read it rightly.
        truth: Its class.
        found: What the search came to.
        read: What each car and "base" say of the found picture, by name; empty when nothing was found.
    """

    clean: NDArray[np.uint8]
    truth: int
    found: Found
    read: dict[str, int]


@dataclass(frozen=True)
class Curve:
    """Who is fooled when a perturbation is stretched by s.

    Attributes:
        samples: How many perturbations.
        fooled: Reader -> samples that fool it, for each of `OVERSHOOTS`.
    """

    samples: int
    fooled: dict[str, tuple[int, ...]]


def overshoot(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], s: float) -> NDArray[np.uint8]:
    """The clean image plus s times the perturbation, rounded and clipped to bytes."""
    stretched = clean + s * (adversarial.astype(np.float64) - clean)
    return np.rint(np.clip(stretched, 0, 255)).astype(np.uint8)
