"""A small vector canvas over Pillow's drawing, in the coordinates of a plate: -1 to 1, x right and y down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
Point = tuple[float, float]

_OVERSAMPLING = 4  # drawn this much larger, then averaged: ImageDraw's edges are hard


class Canvas:
    """A transparent square that takes shapes in plate coordinates.

    Args:
        size: Side of the finished picture in pixels.
    """

    def __init__(self, size: int) -> None:
        side = size * _OVERSAMPLING
        self._image = Image.new("RGBA", (side, side))
        self._draw = ImageDraw.Draw(self._image)
        self._half = side / 2

    def disc(self, radius: float, colour: Colour, centre: Point = (0.0, 0.0)) -> None:
        """Fill a disc."""
        x, y = centre
        self._draw.ellipse([*self._at((x - radius, y - radius)), *self._at((x + radius, y + radius))], colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._at(point) for point in points], colour)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a polyline with round ends and joints."""
        path = [self._at(point) for point in points]
        self._draw.line(path, colour, width=max(1, round(width * self._half)))
        for point in points:
            self.disc(width / 2, colour, point)

    def arc(self, radius: float, start: float, end: float, width: float, colour: Colour) -> None:
        """Draw an arc about the middle, clockwise from `start` to `end` degrees; `radius` is mid-stroke."""
        outer = radius + width / 2
        box = [*self._at((-outer, -outer)), *self._at((outer, outer))]
        self._draw.arc(box, start, end, colour, width=round(width * self._half))

    def text(self, text: str, *, height: float, width: float, weight: float, colour: Colour) -> None:
        """Write `text` in the middle, `height` tall, squeezed to `width` where it would be wider."""
        font = ImageFont.load_default(size=self._half)
        stroke = round(weight * self._half)
        sheet = Image.new("L", (2 * len(text) * round(self._half), 2 * round(self._half)))
        x = float(stroke)
        for character in text:  # one by one: thickened glyphs need wider gaps than the font leaves
            ImageDraw.Draw(sheet).text((x, stroke), character, 255, font, stroke_width=stroke)
            x += font.getlength(character) + 1.8 * stroke
        glyphs = sheet.crop(sheet.getbbox())
        scale = height * self._half / glyphs.height
        target = (round(min(glyphs.width * scale, width * self._half)), round(height * self._half))
        mask = glyphs.resize(target, Image.Resampling.LANCZOS)
        corner = (round(self._half - mask.width / 2), round(self._half - mask.height / 2))
        self._image.paste(colour, corner, mask)

    def picture(self) -> NDArray[np.uint8]:
        """Return the drawing, uint8 (size, size, 4), RGBA with alpha not premultiplied."""
        reduced = self._image.convert("RGBa").reduce(_OVERSAMPLING)  # premultiplied: edges keep their colour
        return np.asarray(reduced.convert("RGBA"), dtype=np.uint8)

    def _at(self, point: Point) -> Point:
        return (self._half * (1 + point[0]), self._half * (1 + point[1]))
