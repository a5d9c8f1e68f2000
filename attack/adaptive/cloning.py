"""The strategy "clone": extract a student by labels, attack it as a white box, and try the samples on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from variegate.attack.adaptive.collusion import firmest
from variegate.attack.algorithms.table import CORRECTED
from variegate.attack.lane import Task
from variegate.attack.oracle import Oracle, ask_all, to_frames, to_points
from variegate.attack.outcome import Outcome
from variegate.attack.overshoot import OVERSHOOTS
from variegate.attack.search import Norm
from variegate.attack.strategy import charged, clean_frames, judged, own_labels
from variegate.keys.errors import MisuseError


@dataclass(frozen=True, kw_only=True)
class Cloning:
    """Spends nearly all labels on a clone (`strategy.Strategy`), profile `corrected`.

    The device is asked about the pictures at hand; where the budget allows for more, about mixtures of two of them.
    A sample on the clone is stretched just as far as it needs to fool the attacker's own device.

    Attributes:
        attack: On the clone: DeepFool, or PGD in L2.
        epsilon: PGD's radius.
        epochs: Passes over what was asked.
        width: Channels of the student's first layer.
    """

    attack: Literal["deepfool", "pgd"] = "deepfool"
    epsilon: float = 1.0
    epochs: int = 10
    width: int = 16
    name: ClassVar[str] = "clone"
    profile: ClassVar[str] = CORRECTED
    norm: ClassVar[Norm] = "l2"
    devices: ClassVar[int] = 1
    targets: ClassVar[bool] = False
    pooled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.epochs, self.width) < 1 or not 0 < self.epsilon < np.inf:
            raise MisuseError("epochs and width must be at least 1, and epsilon a number above 0")

    def outcomes(self, tasks: Sequence[Task], own: Sequence[Oracle], pictures: NDArray[Any]) -> Iterator[Outcome]:
        """See `strategy.Strategy`."""
        # Torch takes seconds to import.
        from variegate.attack.adaptive.clone import Extraction, extract, one_thread, samples  # noqa: PLC0415
        from variegate.attack.whitebox.deepfool import DeepFool  # noqa: PLC0415
        from variegate.attack.whitebox.pgd import Pgd  # noqa: PLC0415

        if not tasks:
            return
        device, rng = own[0], tasks[0].problem.rng
        trials = len(OVERSHOOTS) + 1
        queries = sum(task.problem.queries for task in tasks) - len(tasks) * trials
        if queries < 1:
            raise MisuseError(f"a clone needs more than {trials} queries for each image")
        how = Extraction(queries=queries, epochs=self.epochs, width=self.width, seed=int(rng.integers(1 << 31)))
        clean = clean_frames(tasks, device.dtype)
        with one_thread():
            clone = extract(device, mixtures(pictures, queries, rng), how)
            attack = Pgd(epsilon=self.epsilon) if self.attack == "pgd" else DeepFool()
            near = samples(clone, attack, clean, device.dtype)
        _, shares = charged(tasks, clone.queries)
        frames = firmest(clean, near, own_labels(tasks), own)
        for task, frame, label, share in zip(tasks, frames, ask_all(device, frames), shares, strict=True):
            yield judged(task, frame, int(label), share + trials, self.norm)


def mixtures(pictures: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Pictures, and mixtures of two where there are fewer than `count` (mixup: Zhang, Cisse, Dauphin, Lopez-Paz, 2018).

    Args:
        pictures: Frames (M, *shape).
        count: How many are wanted.
        rng: Of the choice.

    Returns:
        Frames, (`count`, *shape) of the same dtype.

    Raises:
        MisuseError: There are no pictures.
    """
    if not len(pictures):
        raise MisuseError("a clone needs pictures to ask about")
    out = np.empty((count, *pictures.shape[1:]), pictures.dtype)
    there = min(count, len(pictures))
    out[:there] = pictures[rng.permutation(len(pictures))[:there]]
    for i in range(there, count):
        one, other = to_points(pictures[rng.integers(len(pictures), size=2)])
        share = rng.uniform()
        out[i] = to_frames(share * one + (1 - share) * other, str(pictures.dtype))
    return out
