"""Shows samples to the copies of a fleet, the attacker's own among them, at every budget and overshoot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle, ask_all, to_frames, to_points
from variegate.attack.overshoot import stretched
from variegate.attack.search import distance


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One sample as it is shown to every victim.

    Attributes:
        image: Place of its image in the unit.
        budget: Queries after which it was taken; 0 is the end.
        overshoot: s.
        frame: What is shown, (C, H, W).
        l2: Distance to the clean frame, pixels in 0..1.
        linf: Likewise.
    """

    image: int
    budget: int
    overshoot: float
    frame: NDArray[Any] = field(repr=False)
    l2: float
    linf: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A victim's answers.

    Attributes:
        shown: The sample.
        victim: Number of the copy.
        label: Of the frame shown.
        clean_label: Of the clean frame.
    """

    shown: Shown
    victim: int
    label: int
    clean_label: int


def frames_of(
    clean: NDArray[np.uint8], samples: Sequence[tuple[int, int, NDArray[Any]]], overshoots: Sequence[float], dtype: str
) -> list[Shown]:
    """What is shown of samples.

    Args:
        clean: Images of the unit, uint8 (n, C, H, W).
        samples: Place of the image, budget, and the sample (C, H, W) of `dtype`.
        overshoots: Factors.
        dtype: Of frames.
    """
    out = []
    frames = to_frames(to_points(clean), dtype)
    for image, budget, sample in samples:
        flat = to_points(frames[image]).reshape(-1)
        for s in overshoots:
            frame = stretched(frames[image], sample, s, dtype)
            points = to_points(frame).reshape(1, -1)
            l2, linf = (float(distance(points, flat, norm)[0]) for norm in ("l2", "linf"))
            out.append(Shown(image=image, budget=budget, overshoot=s, frame=frame, l2=l2, linf=linf))
    return out


def answers(
    clean: NDArray[Any], shown: Sequence[Shown], victims: Sequence[int], opened: Callable[[int], Oracle]
) -> list[Answer]:
    """Asks every victim; in the order of samples, then of victims.

    Args:
        clean: Clean frames of the unit, as the fleet takes them.
        shown: What is shown.
        victims: Numbers of the copies.
        opened: Opens a copy.

    Raises:
        LimitError, RefusedError, DeviceError: As the copies.
    """
    frames = np.stack([one.frame for one in shown]) if shown else clean[:0]
    labels, clean_labels = [], []
    for victim in victims:
        oracle = opened(victim)
        labels.append(ask_all(oracle, frames))
        clean_labels.append(ask_all(oracle, clean))
    return [
        Answer(shown=one, victim=victim, label=int(labels[v][i]), clean_label=int(clean_labels[v][one.image]))
        for i, one in enumerate(shown)
        for v, victim in enumerate(victims)
    ]
