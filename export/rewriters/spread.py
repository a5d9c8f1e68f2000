"""Spread spectrum: R_j = A * (x . m_j), real messages (Zhang et al. 2023, section 4).

It is linear in x and averages out over copies, so it is for analysis, not for protection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from variegate.export.intake.contract import Contract
from variegate.export.rewriters.definition import Inputs
from variegate.export.rewriters.ops import Ops
from variegate.keys.errors import MisuseError
from variegate.keys.recipe import MAX_DIVISOR, KeyedTensor

V = TypeVar("V")
_MESSAGES = "r0"


@dataclass(frozen=True, kw_only=True)
class SpreadSpectrum:
    """M_j = p_j + A * (x . m_j).

    Attributes:
        amplitude: A, in (0, 100].

    The entries of m_j are uniform in (-1, 1) * sqrt(3 / l), l pixels: unit length in the mean.
    """

    amplitude: float = 0.1
    kind = "spread"

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 100:  # noqa: PLR2004
            raise MisuseError(f"amplitude is {self.amplitude}; it must lie between 0 and 100")

    def tensors(self, contract: Contract, dtype: str) -> tuple[KeyedTensor, ...]:  # noqa: ARG002
        """The messages, float32 (l, classes), the amplitude multiplied in."""
        pixels = contract.channels * contract.height * contract.width
        numerator = max(1, round(self.amplitude * math.sqrt(3 / pixels) * MAX_DIVISOR))
        if numerator > MAX_DIVISOR:
            raise MisuseError("amplitude is too large for an image of this size")
        return (
            KeyedTensor(
                name=_MESSAGES,
                generator="uniform",
                shape=(pixels, contract.classes),
                numerator=numerator,
                steps=(MAX_DIVISOR,),
            ),
        )

    def offset(self) -> float:
        """None."""
        return 0.0

    def scores(self, ops: Ops[V], inputs: Inputs[V], contract: Contract) -> V:  # noqa: ARG002
        """M, (N, classes)."""
        return ops.add(inputs.probabilities, ops.project(inputs.unit, inputs.keyed[_MESSAGES]))
