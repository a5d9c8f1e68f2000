"""The result of the attack for each sign."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.attack.outcome import Outcome

OVERSHOOTS = (1.0, 1.25, 1.5, 2.0, 3.0)
"""Factors s by which a perturbation is stretched."""


@dataclass(frozen=True)
class Attacked:
    """One sign, and the sample found on car A.

    Attributes:
        clean: uint8 (3, 32, 32); every car and the base read it rightly.
        truth: Its class.
        outcome: The outcome of the search.
        read: The label of each car and of "base" for the sample, by name; empty without one.
    """

    clean: NDArray[np.uint8]
    truth: int
    outcome: Outcome
    read: dict[str, int]

    @property
    def sample(self) -> NDArray[np.uint8] | None:
        """The picture that car A misreads, or None."""
        return self.outcome.sample
