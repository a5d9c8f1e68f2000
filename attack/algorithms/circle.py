"""The semicircle on which CGBA and SurFree look for a nearer point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Circle:
    """Points p with a right angle between p - image and p - point: every one is nearer to the image than `point`.

    Angles are seen from the image, in radians: 0 is the point, pi / 2 the image.

    Attributes:
        clean: The image, (l,).
        radius: From the image to the point: the circle's diameter, and an arc's length by its angle.
        along: Unit vector (l,) from the image to the point.
        across: Unit vector (l,) at right angles to it, to the direction's side.
        angle: Between `along` and the direction.
    """

    clean: NDArray[np.float32]
    radius: float
    along: NDArray[np.float32]
    across: NDArray[np.float32]
    angle: float

    @classmethod
    def through(
        cls, clean: NDArray[np.float32], point: NDArray[np.float32], direction: NDArray[np.float32]
    ) -> Circle | None:
        """The circle in the plane of a point and a unit direction, all (l,); None where they span none."""
        along = point - clean
        radius = math.sqrt(along @ along)
        if radius == 0:
            return None
        along /= np.float32(radius)
        cosine = along @ direction
        across = direction - cosine * along
        sine = math.sqrt(across @ across)
        if sine == 0:
            return None
        across /= np.float32(sine)
        return cls(clean, radius, along, across, math.atan2(sine, float(cosine)))

    def at(self, angle: float) -> NDArray[np.float32]:
        """The point (l,) at an angle; it may lie outside [0, 1]."""
        length = self.radius * math.cos(angle)
        out = self.along * np.float32(length * math.cos(angle))
        out += self.across * np.float32(length * math.sin(angle))
        out += self.clean
        return out
