"""Reads the part after the question mark of a vehicle's address: its camera and frame rate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from variegate.attack.oracle import Oracle
from variegate.attack.oracles.vehicle import FRAME_RATE, Stand, Still, VehicleOracle, driving
from variegate.device_sim.world.camera import Pose
from variegate.keys.errors import MisuseError

_POSE = {
    "yaw": "yaw_deg",
    "pitch": "pitch_deg",
    "roll": "roll_deg",
    "distance": "distance_m",
    "light": "light_gain",
    "blur": "blur_px",
    "noise": "noise_sigma",
}
_CAMERAS = ("still", "driving", "none")
_OPTIONS = ("camera", "fps", "seed", *_POSE)
_MOST_DIGITS = 9


def vehicle(device: Oracle, query: str) -> VehicleOracle:
    """A device in a car, by the options after the question mark of its address.

    Args:
        device: What reads the camera's pictures.
        query: `NAME=VALUE` joined by `&`. `camera`: "still" (the default), "driving" (each photograph from somewhere
            else, in another light) or "none" (frames are fed in on the wire); `fps`: frames a second; `seed`: of all
            photographs. Of a camera that stands still: `yaw`, `pitch`, `roll` (degrees), `distance` (metres), `light`
            (gain), `blur` (pixels), `noise` (grey levels).

    Raises:
        MisuseError: There is no such option, or its value makes no sense.
    """
    values: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name in values or name not in _OPTIONS:
            raise MisuseError(f"a vehicle has no option {name[:20]!r}", hint=f"it has {', '.join(_OPTIONS)}, once each")
        values[name] = value
    camera = values.pop("camera", "still")
    fps, seed = _real("fps", values.pop("fps", str(FRAME_RATE))), values.pop("seed", "0")
    if camera not in _CAMERAS or not (seed.isdecimal() and len(seed) <= _MOST_DIGITS):
        raise MisuseError("a vehicle's camera is still, driving or none, and its seed a whole number from 0")
    pose: dict[str, Any] = {_POSE[name]: _real(name, value) for name, value in values.items()}
    if pose and camera != "still":
        raise MisuseError(f"{next(iter(values))} is for a camera that stands still")
    stands: dict[str, Stand | None] = {"still": Still(replace(Pose(), **pose)), "driving": driving, "none": None}
    return VehicleOracle(device, stand=stands[camera], frame_rate=fps, seed=int(seed))


def _real(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise MisuseError(f"{name} of a vehicle is a number")
    return value
