"""The attack "smoothed": HopSkipJump with wide probes over a smoothed oracle.

Assumes that the attacker knows the device to be rippled, and about how wide: votes over noise of `sigma` (above half a
step d) hide the attractors, and probes as wide keep the search from those that are left. What it finds is judged on
the smoothed oracle; whether the device itself is fooled is for the replay to ask, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from variegate.attack import driver
from variegate.attack.adaptive.smoothing import Smoothed
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.driver import Task
from variegate.attack.oracle import Oracle
from variegate.attack.outcome import Outcome
from variegate.keys.errors import MisuseError


@dataclass(frozen=True, kw_only=True)
class SmoothedAttack:
    """The attack's setting.

    Attributes:
        votes: Noisy frames for each answer. A device counts `votes` queries where an outcome counts one.
        sigma: Standard deviation of the noise for each pixel, scale 0..1.
        wide: First radius of HopSkipJump's probes, as a share of the distance.
        finest: Least such radius.
        seed: Of the noise.
    """

    votes: int = 7
    sigma: float = 0.02
    wide: float = 0.5
    finest: float = 0.1
    seed: int = 0
    name: ClassVar[str] = "smoothed"

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise MisuseError("a smoothed attack needs a vote")

    @property
    def attack(self) -> HopSkipJump:
        """The search.

        Raises:
            MisuseError: `wide` or `finest` out of range.
        """
        return HopSkipJump(wide=self.wide, finest=self.finest)

    def outcomes(self, tasks: Sequence[Task], device: Oracle) -> list[Outcome]:
        """Attacks images, in the order of the tasks; a task's `queries` are answers of the smoothed oracle.

        Raises:
            MisuseError, RefusedError, DeviceError, LimitError: As `driver.run`.
        """
        return driver.outcomes(self.attack, tasks, Smoothed(device, self.votes, self.sigma, self.seed))
