"""A recipe: the keyed tensors that a copy needs, and the expansion of each from the sealed seed.

The shared component holds the graph without these tensors. Seller and device expand the same recipe from the same seed,
so the results cannot differ. A new rewriter needs no new code on a device if it uses these generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys import streams
from variegate.keys.errors import Refusal, RefusedError

MAX_ELEMENTS = 1 << 28
"""Elements of all keyed tensors of a copy together: 1 GiB of float32."""

MAX_DIVISOR = 1 << 24
"""Largest numerator and step: float32 holds every integer up to here."""

GENERATORS = ("signs", "dithers", "uniform", "derangement")
_MAX_RANK = 6
_MAX_TENSORS = 64


@dataclass(frozen=True, kw_only=True)
class KeyedTensor:
    """One tensor, left out of the graph.

    Attributes:
        name: Name of the initialiser in the graph; also the label of its stream.
        generator: One of `GENERATORS`.
        shape: Dimensions of the tensor.
        numerator: `signs`, `uniform`: the drawn values are multiplied by this integer.
        steps: `signs`, `dithers`, `uniform`: then divided by these integers, cycled along `axis`. For
            `dithers` they are also the moduli D, powers of two, and the value is t / D - 1/2.
        axis: The dimension along which `steps` are cycled.

    The result is float32 (int64 for `derangement`). With steps that are powers of two every value is exact.
    """

    name: str
    generator: str
    shape: tuple[int, ...]
    numerator: int = 1
    steps: tuple[int, ...] = (1,)
    axis: int = 0

    def to_cbor(self) -> list[object]:
        """The six fields in order."""
        return [self.name, self.generator, list(self.shape), self.numerator, list(self.steps), self.axis]

    @classmethod
    def from_cbor(cls, value: Any) -> KeyedTensor:
        """Reads the six fields.

        Raises:
            RefusedError: `MALFORMED`, when any is out of its range.
        """
        match value:
            case [str(name), str(generator), [*shape], numerator, [*steps], axis] if (
                generator in GENERATORS
                and 1 <= len(shape) <= _MAX_RANK
                and all(type(d) is int and 1 <= d <= MAX_ELEMENTS for d in shape)
                and math.prod(shape) <= MAX_ELEMENTS
                and (generator != "derangement" or (len(shape) == 1 and shape[0] > 1))
                and type(numerator) is type(axis) is int
                and 1 <= numerator <= MAX_DIVISOR
                and 1 <= len(steps) <= _MAX_TENSORS
                and all(type(s) is int and 1 <= s <= MAX_DIVISOR for s in steps)
                and (generator != "dithers" or all(streams.is_modulus(s) for s in steps))
                and 0 <= axis < len(shape)
            ):
                return cls(
                    name=name,
                    generator=generator,
                    shape=tuple(shape),
                    numerator=numerator,
                    steps=tuple(steps),
                    axis=axis,
                )
        raise RefusedError(Refusal.MALFORMED, "recipe of the keyed tensors is not valid")

    def expand(self, seed: bytes) -> NDArray[Any]:
        """The tensor for one buyer's seed (32 bytes)."""
        count = math.prod(self.shape)
        if self.generator == "derangement":
            return streams.derangement(seed, self.name, count)
        along = np.resize(np.array(self.steps, np.float32), self.shape[self.axis])
        step = along.reshape((-1,) + (1,) * (len(self.shape) - 1 - self.axis))
        if self.generator == "dithers":
            words = streams.dithers(seed, self.name, count, streams.MAX_MODULUS)
            return (words.reshape(self.shape).astype(np.float32) % step) / step - np.float32(0.5)
        draw = streams.signs if self.generator == "signs" else streams.uniform
        values = draw(seed, self.name, count).reshape(self.shape).astype(np.float32)
        return values * np.float32(self.numerator) / step


def to_cbor(tensors: tuple[KeyedTensor, ...]) -> list[object]:
    """The recipe as plain values."""
    return [tensor.to_cbor() for tensor in tensors]


def from_cbor(value: Any) -> tuple[KeyedTensor, ...]:
    """Reads a recipe.

    Raises:
        RefusedError: `MALFORMED` or `TOO_LARGE`.
    """
    if not isinstance(value, list) or len(value) > _MAX_TENSORS:
        raise RefusedError(Refusal.MALFORMED, "recipe of the keyed tensors is not a list")
    tensors = tuple(KeyedTensor.from_cbor(item) for item in value)
    if sum(math.prod(tensor.shape) for tensor in tensors) > MAX_ELEMENTS:
        raise RefusedError(Refusal.TOO_LARGE, "keyed tensors exceed the memory allowed for them")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise RefusedError(Refusal.MALFORMED, "recipe names a keyed tensor twice")
    return tensors


def expand(tensors: tuple[KeyedTensor, ...], seed: bytes) -> dict[str, NDArray[Any]]:
    """All keyed tensors of a copy by name, C-contiguous."""
    return {tensor.name: np.ascontiguousarray(tensor.expand(seed)) for tensor in tensors}
