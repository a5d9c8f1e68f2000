"""The pictures: clean, adversarial, difference, the sign that a car reads, and a sheet of all."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from variegate.demo.results import Attacked
from variegate.device_sim.world.signs import SIGNS, render

SCALE = 6
"""Pixels of a saved picture for one pixel of the camera."""
_SIDE = 32 * SCALE
_GAP, _LINE, _ICON = 12, 26, 128
_HALF = 127
_INK, _GROUND, _RIGHT, _WRONG = (26, 29, 33), (255, 255, 255), (27, 110, 60), (179, 38, 30)


def names(number: int) -> dict[str, str]:
    """File names of the pictures of one sign."""
    return {key: f"sign-{number:02}-{key}.png" for key in ("clean", "adversarial", "difference")}


def pictures(attacked: Sequence[Attacked]) -> dict[str, bytes]:
    """PNG files by name.

    `sign-NN-*.png` for each sign with a result, `reads-CC.png` for each class that a car reads, `cars.png` with all.
    """
    out: dict[str, bytes] = {}
    numbered = [(i, a) for i, a in enumerate(attacked, 1) if a.read]
    for i, a in numbered:
        out.update({name: _png(image) for name, image in zip(names(i).values(), _three(a), strict=True)})
    for label in sorted({label for _, a in numbered for label in a.read.values()}):
        out[f"reads-{label:02}.png"] = _png(Image.fromarray(render(SIGNS[label], _ICON)))
    if numbered:
        out["cars.png"] = _png(_sheet(numbered))
    return out


def amplification(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8]) -> int:
    """The largest whole factor by which the difference can be raised and stay within 127 grey levels."""
    largest = int(np.abs(adversarial.astype(np.int32) - clean).max())
    return max(1, _HALF // max(1, largest))


def difference(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mid-grey plus the amplified difference, clipped, uint8 of the same shape."""
    raised: NDArray[np.int32] = _HALF + amplification(clean, adversarial) * (adversarial.astype(np.int32) - clean)
    return np.clip(raised, 0, 255).astype(np.uint8)


def _three(attacked: Attacked) -> list[Image.Image]:
    adversarial = attacked.sample
    if adversarial is None:
        return []
    return [_enlarged(x) for x in (attacked.clean, adversarial, difference(attacked.clean, adversarial))]


def _enlarged(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(
        (_SIDE, _SIDE), Image.Resampling.NEAREST
    )


def _sheet(numbered: Sequence[tuple[int, Attacked]]) -> Image.Image:
    """One row for each sign: the three pictures, then what each car reads."""
    cars = [name for name in numbered[0][1].read if name != "base"]
    columns = ["clean", "shown", "change", *(f"car {name} reads" for name in cars)]
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (_GAP + len(columns) * step, _GAP + _LINE + len(numbered) * (step + _LINE)), _GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for i, title in enumerate(columns):
        draw.text((_GAP + i * step, _GAP), title, _INK, font)
    for row, (_, a) in enumerate(numbered):
        top = _GAP + _LINE + row * (step + _LINE)
        for i, image in enumerate(_three(a)):
            sheet.paste(image, (_GAP + i * step, top))
        if a.sample is not None:
            factor = f"x {amplification(a.clean, a.sample)}"
            draw.text((_GAP + 2 * step, top + _SIDE + 3), factor, _INK, font)
        for i, name in enumerate(cars, 3):
            sheet.paste(_reads(a.read[name], a.truth), (_GAP + i * step, top))
    return sheet


def _reads(label: int, truth: int) -> Image.Image:
    """The sign that a car reads, and whether it is the one that is there."""
    panel = Image.new("RGB", (_SIDE, _SIDE), _GROUND)
    icon = Image.fromarray(render(SIGNS[label], _ICON))
    panel.paste(icon, ((_SIDE - _ICON) // 2, (_SIDE - _LINE - _ICON) // 2), icon)
    verdict, colour = ("right", _RIGHT) if label == truth else ("WRONG", _WRONG)
    text = f"{verdict}: {SIGNS[label].name}"
    ImageDraw.Draw(panel).text((_SIDE // 2, _SIDE - _LINE), text, colour, ImageFont.load_default(15), anchor="ma")
    return panel


def _png(image: Image.Image) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "PNG", optimize=True)
    return packed.getvalue()
