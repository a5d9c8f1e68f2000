"""The definition of a rewriter: parameters, the keyed tensors it needs, and one formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from variegate.export.intake.contract import Contract
from variegate.export.rewriters.ops import Ops
from variegate.keys.recipe import KeyedTensor

V = TypeVar("V")


@dataclass(frozen=True)
class Inputs(Generic[V]):
    """The inputs of the formula, as values of one backend.

    Attributes:
        pixels: (N, C, H, W) float32, 0..255 in whole steps for uint8 frames, else 0..1.
        unit: (N, C, H, W) float32 in 0..1.
        probabilities: (N, classes) float32.
        keyed: The keyed tensors by name.
    """

    pixels: V
    unit: V
    probabilities: V
    keyed: Mapping[str, V]


class Rewriter(Protocol):
    """A rewriter R with its parameters; the copy is M(x) = p + R(x).

    Attributes:
        kind: Its name in files and on the command line.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102

    def tensors(self, contract: Contract, dtype: str) -> tuple[KeyedTensor, ...]:
        """The keyed tensors of a copy for frames of `dtype`.

        Raises:
            MisuseError: When the parameters do not fit the contract.
        """
        ...

    def offset(self) -> float:
        """The constant by which `scores` is below M; equal for all classes, so no label depends on it."""
        ...

    def scores(self, ops: Ops[V], inputs: Inputs[V], contract: Contract) -> V:
        """M(x) less `offset`, (N, classes)."""
        ...
