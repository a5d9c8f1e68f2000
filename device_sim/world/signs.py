"""Road signs: a plate and a symbol, drawn as vector shapes in the European style.

Coordinates run from -1 to 1 across the plate, x to the right and y down. The shapes are our own drawings
after the Vienna Convention on Road Signs and Signals (1968), annex 1, not a copy of a country's artwork.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from variegate.device_sim.world.drawing import Canvas, Colour, Point
from variegate.keys.errors import MisuseError

RED: Colour = (200, 20, 30)
BLUE: Colour = (0, 84, 166)
YELLOW: Colour = (250, 190, 0)
WHITE: Colour = (250, 250, 248)
BLACK: Colour = (18, 18, 20)

_MIN_SIZE, _MAX_SIZE = 16, 2048


class Plate(StrEnum):
    """The board behind the symbol; its shape and colours carry the kind of the message."""

    PROHIBITION = "prohibition"
    END = "end"
    NO_ENTRY = "no-entry"
    MANDATORY = "mandatory"
    WARNING = "warning"
    YIELD = "yield"
    STOP = "stop"
    PRIORITY = "priority"


@dataclass(frozen=True)
class Sign:
    """One class of road sign.

    Attributes:
        index: Class index; stable, equal to the position in `SIGNS`.
        name: Class name, lower case with spaces.
        plate: Shape and colours of the board.
        symbol: Draws what stands on the board.
    """

    index: int
    name: str
    plate: Plate
    symbol: Callable[[Canvas], None]


def render(sign: Sign, size: int = 256) -> NDArray[np.uint8]:
    """Draw a sign that fills its square, on a transparent ground.

    Args:
        sign: What to draw.
        size: Side of the picture in pixels, 16 to 2048.

    Returns:
        uint8 (size, size, 4), RGBA with alpha not premultiplied.

    Raises:
        MisuseError: The size is out of range.
    """
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise MisuseError(f"a sign cannot be drawn {size} pixels wide", hint=f"use {_MIN_SIZE} to {_MAX_SIZE}")
    canvas = Canvas(size)
    _PLATES[sign.plate](canvas)
    sign.symbol(canvas)
    return canvas.picture()


def _regular(sides: int, radius: float, turn: float, centre: Point = (0.0, 0.0)) -> list[Point]:
    """Corners of a regular polygon, the first at `turn` degrees clockwise from the right."""
    angles = [math.radians(turn + 360 * i / sides) for i in range(sides)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]


def _rounded(canvas: Canvas, corners: Sequence[Point], radius: float, colour: Colour) -> None:
    """Fill a polygon grown by `radius`, which rounds its corners."""
    canvas.polygon(corners, colour)
    canvas.stroke([*corners, corners[0]], 2 * radius, colour)


def _prohibition(canvas: Canvas) -> None:
    canvas.disc(0.98, RED)
    canvas.disc(0.76, WHITE)


def _end(canvas: Canvas) -> None:
    canvas.disc(0.98, BLACK)
    canvas.disc(0.93, WHITE)


def _no_entry(canvas: Canvas) -> None:
    canvas.disc(0.98, WHITE)
    canvas.disc(0.93, RED)


def _mandatory(canvas: Canvas) -> None:
    canvas.disc(0.98, WHITE)
    canvas.disc(0.92, BLUE)


def _warning(canvas: Canvas) -> None:
    middle = (0.0, 0.24)
    _rounded(canvas, _regular(3, 1.02, -90, middle), 0.1, RED)
    _rounded(canvas, _regular(3, 0.76, -90, middle), 0.03, WHITE)


def _yield(canvas: Canvas) -> None:
    middle = (0.0, -0.24)
    _rounded(canvas, _regular(3, 1.02, 90, middle), 0.1, RED)
    _rounded(canvas, _regular(3, 0.62, 90, middle), 0.03, WHITE)


def _stop(canvas: Canvas) -> None:
    canvas.polygon(_regular(8, 1.04, 22.5), WHITE)
    canvas.polygon(_regular(8, 0.98, 22.5), RED)


def _priority(canvas: Canvas) -> None:
    _rounded(canvas, _regular(4, 0.88, 0), 0.08, BLACK)
    _rounded(canvas, _regular(4, 0.86, 0), 0.07, WHITE)
    _rounded(canvas, _regular(4, 0.64, 0), 0.05, YELLOW)


_PLATES: Mapping[Plate, Callable[[Canvas], None]] = {
    Plate.PROHIBITION: _prohibition,
    Plate.END: _end,
    Plate.NO_ENTRY: _no_entry,
    Plate.MANDATORY: _mandatory,
    Plate.WARNING: _warning,
    Plate.YIELD: _yield,
    Plate.STOP: _stop,
    Plate.PRIORITY: _priority,
}


def _nothing(canvas: Canvas) -> None:  # noqa: ARG001 - the plate alone is the message
    return


def _speed(limit: int) -> Callable[[Canvas], None]:
    return lambda canvas: canvas.text(str(limit), height=0.74, width=1.12, weight=0.03, colour=BLACK)


def _stop_word(canvas: Canvas) -> None:
    canvas.text("STOP", height=0.58, width=1.5, weight=0.035, colour=WHITE)


def _bar(canvas: Canvas) -> None:
    canvas.polygon([(-0.7, -0.16), (0.7, -0.16), (0.7, 0.16), (-0.7, 0.16)], WHITE)


def _slashes(canvas: Canvas) -> None:
    for offset in (-0.26, -0.13, 0.0, 0.13, 0.26):
        reach = math.sqrt((0.86**2 - offset**2) / 2)
        shift = offset / math.sqrt(2)
        canvas.stroke([(shift - reach, shift + reach), (shift + reach, shift - reach)], 0.06, BLACK)


def _cars(canvas: Canvas) -> None:
    for x, colour in ((-0.31, RED), (0.31, BLACK)):
        canvas.polygon([(x - 0.17, -0.24), (x + 0.17, -0.24), (x + 0.24, 0.0), (x - 0.24, 0.0)], colour)
        canvas.polygon([(x - 0.12, -0.18), (x + 0.12, -0.18), (x + 0.15, -0.04), (x - 0.15, -0.04)], WHITE)
        canvas.polygon([(x - 0.27, -0.01), (x + 0.27, -0.01), (x + 0.27, 0.2), (x - 0.27, 0.2)], colour)
        for side in (-1, 1):
            wheel = x + 0.18 * side
            left, right = wheel - 0.07, wheel + 0.07
            canvas.polygon([(left, 0.2), (right, 0.2), (right, 0.31), (left, 0.31)], colour)


def _ahead(canvas: Canvas) -> None:
    canvas.polygon([(-0.12, 0.7), (-0.12, -0.2), (0.12, -0.2), (0.12, 0.7)], WHITE)
    canvas.polygon([(-0.42, -0.16), (0.0, -0.72), (0.42, -0.16)], WHITE)


def _turn(side: int) -> Callable[[Canvas], None]:
    """Bent arrow to the left (-1) or the right (1)."""

    def draw(canvas: Canvas) -> None:
        shaft = [(-0.46, 0.62), (-0.46, -0.3), (0.2, -0.3), (0.2, -0.06), (-0.22, -0.06), (-0.22, 0.62)]
        head = [(0.12, -0.58), (0.66, -0.18), (0.12, 0.22)]
        for part in (shaft, head):
            canvas.polygon([(side * x, y) for x, y in part], WHITE)

    return draw


def _roundabout(canvas: Canvas) -> None:
    radius = 0.5
    for turn in (30, 150, 270):
        canvas.arc(radius, turn, turn + 72, 0.17, WHITE)
        angle = math.radians(turn + 2)
        out, along = (math.cos(angle), math.sin(angle)), (math.sin(angle), -math.cos(angle))
        inner, outer = radius - 0.21, radius + 0.21
        tip = (radius * out[0] + 0.34 * along[0], radius * out[1] + 0.34 * along[1])
        canvas.polygon([(inner * out[0], inner * out[1]), (outer * out[0], outer * out[1]), tip], WHITE)


def _exclamation(canvas: Canvas) -> None:
    canvas.polygon([(-0.12, -0.26), (0.12, -0.26), (0.06, 0.22), (-0.06, 0.22)], BLACK)
    canvas.disc(0.12, BLACK, (0.0, -0.26))
    canvas.disc(0.06, BLACK, (0.0, 0.22))
    canvas.disc(0.105, BLACK, (0.0, 0.42))


def _walker(canvas: Canvas) -> None:
    canvas.disc(0.085, BLACK, (0.03, -0.27))
    canvas.polygon([(-0.08, -0.17), (0.1, -0.17), (0.09, 0.12), (-0.07, 0.12)], BLACK)
    for limb, width in (
        ([(0.05, 0.1), (0.11, 0.28), (0.07, 0.48)], 0.1),
        ([(-0.03, 0.1), (-0.09, 0.29), (-0.25, 0.47)], 0.1),
        ([(0.06, -0.13), (0.21, 0.0), (0.28, 0.12)], 0.075),
        ([(-0.04, -0.13), (-0.17, 0.0), (-0.17, 0.13)], 0.075),
    ):
        canvas.stroke(limb, width, BLACK)
    for x in (-0.46, -0.23, 0.0, 0.23):
        canvas.polygon([(x + 0.06, 0.54), (x + 0.17, 0.54), (x + 0.2, 0.62), (x + 0.05, 0.62)], BLACK)


def _digger(canvas: Canvas) -> None:
    canvas.disc(0.085, BLACK, (0.02, -0.22))
    canvas.stroke([(-0.07, -0.09), (-0.18, 0.16)], 0.17, BLACK)
    canvas.stroke([(-0.18, 0.18), (-0.08, 0.36), (-0.14, 0.56)], 0.11, BLACK)
    canvas.stroke([(-0.22, 0.18), (-0.3, 0.38), (-0.42, 0.56)], 0.11, BLACK)
    canvas.stroke([(-0.05, -0.07), (0.06, 0.08), (0.14, 0.17)], 0.08, BLACK)
    canvas.stroke([(-0.08, 0.04), (0.27, 0.3)], 0.055, BLACK)
    canvas.polygon([(0.06, 0.61), (0.17, 0.44), (0.31, 0.33), (0.43, 0.42), (0.56, 0.61)], BLACK)


_CLASSES: tuple[tuple[str, Plate, Callable[[Canvas], None]], ...] = (
    ("speed limit 30", Plate.PROHIBITION, _speed(30)),
    ("speed limit 50", Plate.PROHIBITION, _speed(50)),
    ("speed limit 80", Plate.PROHIBITION, _speed(80)),
    ("end of limits", Plate.END, _slashes),
    ("no overtaking", Plate.PROHIBITION, _cars),
    ("no entry", Plate.NO_ENTRY, _bar),
    ("stop", Plate.STOP, _stop_word),
    ("yield", Plate.YIELD, _nothing),
    ("priority road", Plate.PRIORITY, _nothing),
    ("ahead only", Plate.MANDATORY, _ahead),
    ("turn left", Plate.MANDATORY, _turn(-1)),
    ("turn right", Plate.MANDATORY, _turn(1)),
    ("roundabout", Plate.MANDATORY, _roundabout),
    ("caution", Plate.WARNING, _exclamation),
    ("pedestrians", Plate.WARNING, _walker),
    ("road works", Plate.WARNING, _digger),
)

SIGNS: tuple[Sign, ...] = tuple(Sign(i, *row) for i, row in enumerate(_CLASSES))
"""Every class, in the order of the network's outputs. New ones go to the end: copies hold indices."""
