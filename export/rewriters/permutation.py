"""Class permutation: R = alpha * P p, with P a keyed derangement (Zhang et al. 2023, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from variegate.export.intake.contract import Contract
from variegate.export.rewriters.definition import Inputs
from variegate.export.rewriters.ops import Ops
from variegate.keys.errors import MisuseError
from variegate.keys.recipe import KeyedTensor

V = TypeVar("V")
_ORDER = "r0"


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """M = p + alpha * p[pi].

    Attributes:
        alpha: Strength in (0, 1); at 1 the top class and its partner tie.
    """

    alpha: float = 0.8
    kind = "permutation"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise MisuseError(f"alpha is {self.alpha}; it must lie between 0 and 1")

    def tensors(self, contract: Contract, dtype: str) -> tuple[KeyedTensor, ...]:  # noqa: ARG002
        """The derangement, int64 (classes,)."""
        return (KeyedTensor(name=_ORDER, generator="derangement", shape=(contract.classes,)),)

    def offset(self) -> float:
        """None."""
        return 0.0

    def scores(self, ops: Ops[V], inputs: Inputs[V], contract: Contract) -> V:  # noqa: ARG002
        """M, (N, classes)."""
        p = inputs.probabilities
        return ops.add(p, ops.scale(ops.take(p, inputs.keyed[_ORDER]), self.alpha))
