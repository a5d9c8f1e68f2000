"""The camera that photographs a sign: pinhole, a detector's crop, light, blur, noise and 8 bits.

The chain for one frame: board and background on the sensor inside the detector's box, lens blur, light and its colour,
sensor noise, rounding to 8 bits, then the box scaled to the network's 32 x 32 pixels. A distant sign covers few sensor
pixels, so it loses detail but not size. The photograph depends on the board and the pose alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from variegate.device_sim.world.background import background
from variegate.device_sim.world.optics import REFERENCE_K, blurred, light
from variegate.keys.errors import MisuseError

CROP = 32
"""Side of the network's input in pixels."""
FOCAL_PX = 1000.0
"""Focal length of the camera, in sensor pixels."""
SIGN_SIDE_M = 0.6
"""Side of the square that a sign fills, in metres."""
CROP_MARGIN = 1.25
"""Side of the detector's box over side of the sign."""
FRONTAL_DISTANCE_M = FOCAL_PX * SIGN_SIDE_M * CROP_MARGIN / CROP
"""Distance at which one sensor pixel is one pixel of the crop, in metres."""

_PRINT_SCALE = 4  # a printed pixel is a block of this many texture cells, so that it keeps its edges
_MAX_BOARD = 1024
_RGBA, _RGB = 4, 3

# The sizes a pose may take; the drawn ones lie well inside.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "yaw_deg": (-75, 75),
    "pitch_deg": (-75, 75),
    "roll_deg": (-180, 180),
    "distance_m": (3, 150),
    "light_gain": (0.01, 10),
    "colour_temperature_k": (1500, 20000),
    "blur_px": (0, 8),
    "noise_sigma": (0, 128),
    "box_x": (-1, 1),
    "box_y": (-1, 1),
    "box_scale": (0.5, 2),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class Pose:
    """Everything about one photograph except the board.

    Attributes:
        yaw_deg: Turn of the board about its upright axis, in degrees; above 0 its right edge comes nearer.
        pitch_deg: Tilt of the board about its level axis, in degrees; above 0 its upper edge comes nearer.
        roll_deg: Turn of the board in its own plane, in degrees, clockwise.
        distance_m: From the camera to the middle of the board, in metres.
        light_gain: Exposure in linear light; 1 keeps the board's own values.
        colour_temperature_k: Of the light, in kelvin, to a camera balanced for 6500 K.
        blur_px: Standard deviation of the lens blur, in sensor pixels.
        noise_sigma: Standard deviation of the sensor noise, in grey levels of 0 to 255.
        box_x: Error of the detector's box to the right, as a part of its side.
        box_y: Error of the detector's box downwards, as a part of its side.
        box_scale: Side of the detector's box over the right one.
        seed: Fixes the background and the noise.
    """

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    distance_m: float = FRONTAL_DISTANCE_M
    light_gain: float = 1.0
    colour_temperature_k: float = REFERENCE_K
    blur_px: float = 0.0
    noise_sigma: float = 0.0
    box_x: float = 0.0
    box_y: float = 0.0
    box_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = _BOUNDS[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:  # also false for NaN
                raise MisuseError(f"pose: {field.name} is {value}", hint=f"use {low} to {high}")

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a pose that a car may meet: mostly fair, sometimes far, dark, oblique or blurred.

        Args:
            rng: Where the chance comes from; advanced by a fixed number of draws.
        """
        uniform = rng.random(8)
        normal = np.clip(rng.standard_normal(4), -3, 3)
        return cls(
            yaw_deg=float(-50 + 100 * uniform[0]),
            pitch_deg=float(-15 + 30 * uniform[1]),
            roll_deg=float(5 * normal[0]),
            distance_m=float(17 * (60 / 17) ** uniform[2]),
            light_gain=float(0.12 * (2.2 / 0.12) ** uniform[3]),
            colour_temperature_k=float(3000 * (10000 / 3000) ** uniform[4]),
            blur_px=float(1.6 * uniform[5] ** 2),
            noise_sigma=float(2 + 16 * uniform[6] ** 2),
            box_x=float(0.035 * normal[1]),
            box_y=float(0.035 * normal[2]),
            box_scale=float(1 + 0.06 * normal[3]),
            seed=int(uniform[7] * 2**53),
        )


@dataclass(frozen=True)
class Board:
    """A flat thing to photograph: its texture in halving sizes, and its side in metres.

    Build it once with `of_sign` or `of_picture` where the same board is seen many times.
    """

    levels: tuple[Image.Image, ...]
    side_m: float

    @classmethod
    def of_sign(cls, sign_rgba: NDArray[np.uint8]) -> Self:
        """Take a drawn sign, uint8 (H, H, 4).

        Raises:
            MisuseError: Wrong type or shape.
        """
        return cls(_levels(Image.fromarray(_checked(sign_rgba, _RGBA))), SIGN_SIDE_M)

    @classmethod
    def of_picture(cls, picture: NDArray[np.uint8]) -> Self:
        """Take a flat picture, uint8 (H, H, 3), printed so large that it fills the detector's box.

        Raises:
            MisuseError: Wrong type or shape.
        """
        printed = Image.fromarray(_checked(picture, _RGB)).convert("RGBA")
        printed = printed.resize((printed.width * _PRINT_SCALE,) * 2, Image.Resampling.NEAREST)
        return cls(_levels(printed), SIGN_SIDE_M * CROP_MARGIN)


def photograph(sign: NDArray[np.uint8] | Board, pose: Pose) -> NDArray[np.uint8]:
    """See a sign.

    Args:
        sign: uint8 (H, H, 4) as `signs.render` returns it, or a `Board` of it.
        pose: How it is seen.

    Returns:
        uint8 (32, 32, 3), RGB.

    Raises:
        MisuseError: Wrong type or shape.
    """
    board = sign if isinstance(sign, Board) else Board.of_sign(sign)
    side = max(4, round(FOCAL_PX * SIGN_SIDE_M * CROP_MARGIN * pose.box_scale / pose.distance_m))
    rng = np.random.Generator(np.random.Philox(pose.seed))
    scene = background(rng, side, pole_x=0.5 - pose.box_x)
    seen = _project(board, pose, side)
    scene *= 1 - seen[3] / 255
    scene += seen[:3]
    scene = blurred(scene, pose.blur_px)
    scene *= light(pose.light_gain, pose.colour_temperature_k)[:, None, None]
    scene += pose.noise_sigma * rng.standard_normal(scene.shape, dtype=np.float32)
    sensor = np.clip(np.rint(scene), 0, 255).astype(np.uint8)
    crop = Image.fromarray(np.ascontiguousarray(sensor.transpose(1, 2, 0)))
    return np.array(crop.resize((CROP, CROP), Image.Resampling.BILINEAR), dtype=np.uint8)


def rephotograph(picture: NDArray[np.uint8], pose: Pose) -> NDArray[np.uint8]:
    """See a picture that somebody printed and put up, for example an adversarial sign.

    The print fills the detector's box, so the frontal pose `Pose()` gives a 32 x 32 picture back unchanged.

    Args:
        picture: uint8 (H, H, 3), RGB, H at least 32.
        pose: How it is seen.

    Returns:
        uint8 (32, 32, 3), RGB.

    Raises:
        MisuseError: Wrong type or shape.
    """
    return photograph(Board.of_picture(picture), pose)


def _checked(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    side = pixels.shape[0] if pixels.ndim else 0
    if pixels.dtype != np.uint8 or pixels.shape != (side, side, channels) or not CROP <= side <= _MAX_BOARD:
        raise MisuseError(
            f"a board of {pixels.dtype} {pixels.shape} cannot be photographed",
            hint=f"give uint8 (H, H, {channels}) with H from {CROP} to {_MAX_BOARD}",
        )
    return pixels


def _levels(rgba: Image.Image) -> tuple[Image.Image, ...]:
    """Halve the texture down to 16 pixels; premultiplied, so that averages at the edge keep their colour."""
    levels = [rgba.convert("RGBa")]
    while levels[-1].width > CROP // 2:
        levels.append(levels[-1].reduce(2))
    return tuple(levels)


def _project(board: Board, pose: Pose, side: int) -> NDArray[np.float32]:
    """Map the board into the box, 2 x 2 samples to a sensor pixel.

    Returns:
        float32 (4, side, side), RGBA, premultiplied, 0 to 255.
    """
    rotation = _rotation(pose)
    right, down = rotation[:, 0], rotation[:, 1]  # the board's axes in the camera's space (x right, y down)
    centre = np.array([0.0, 0.0, pose.distance_m])
    sensor_px = board.side_m * FOCAL_PX / pose.distance_m
    texture = next((t for t in reversed(board.levels) if t.width >= 2 * sensor_px), board.levels[0])

    cell = board.side_m / texture.width
    corner = centre - (right + down) * board.side_m / 2
    to_camera = np.stack([right * cell, down * cell, corner], axis=1)  # texture (u, v, 1) -> camera space
    middle_x, middle_y = side * (0.5 - pose.box_x), side * (0.5 - pose.box_y)
    lens = np.array([[FOCAL_PX, 0, middle_x], [0, FOCAL_PX, middle_y], [0, 0, 1]])
    inverse = np.linalg.inv(lens @ to_camera) @ np.diag([0.5, 0.5, 1.0])  # half pixels of the sensor -> texture
    inverse /= inverse[2, 2]
    seen = texture.transform(
        (2 * side, 2 * side),
        Image.Transform.PERSPECTIVE,
        inverse.ravel()[:8].tolist(),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(seen.reduce(2)).transpose(2, 0, 1).astype(np.float32)


def _rotation(pose: Pose) -> NDArray[np.float64]:
    """Rotate the board: first in its plane, then about its level axis, then about its upright axis."""
    cy, cp, cr = (math.cos(math.radians(v)) for v in (pose.yaw_deg, pose.pitch_deg, pose.roll_deg))
    sy, sp, sr = (math.sin(math.radians(v)) for v in (pose.yaw_deg, pose.pitch_deg, pose.roll_deg))
    upright = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    level = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    plane = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    rotation: NDArray[np.float64] = upright @ level @ plane
    return rotation
