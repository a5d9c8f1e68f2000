"""QIM attractors: R = beta * e, where e_j in [0, 1] grows as x's keyed projections get nearer to keyed lattices.

For class j and h = 1..B, with a keyed sign message m_{j,h}, a keyed dither t_{j,h} and a step D on the scale
of pixels 0..255 (Zhang et al. 2023, section 4; integer form):

    u = (m . x + t) / D - 1/2,   err = |u - round(u)| * D,   e_j = 1 - (2 / B) * sum_h err / D

For uint8 frames every term is a multiple of 1/D below 2^24, so float32 is exact in any order of summation, and torch,
numpy and onnxruntime agree to the bit.

**Supports.** A dense message reads l pixels, and classes * B such messages cost more than a small network. Here the
image is divided into a grid of gh x gw interleaved sub-images, and each message covers one of them. One dilated
convolution computes all: its gh * gw output positions are the sub-images, its output channels the classes (times
`repeats`). Messages on different sub-images are orthogonal and of unit length, so the laws of dense messages hold, at 1
/ (gh * gw) of the cost. Each sub-image still covers the whole picture, so no region of it is free of attractors. The
sub-images share one sign pattern for a class, each with a dither of its own. `grid=(1, 1)` gives dense messages.

**Squared.** e_j lies near 1/2 for most images. The squared form is R = beta * (1 + w |w|) / 2 with w = 2 e - 1: usual
values of e_j count for less and rare ones for more. At the same loss of accuracy attractors are steeper and deeper, so
that a search reaches them sooner. beta is then larger: for the same loss it is about 0.6 sqrt(B) times that of the
linear form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from variegate.export.intake.contract import Contract
from variegate.export.rewriters.definition import Inputs
from variegate.export.rewriters.ops import Ops
from variegate.keys.errors import MisuseError
from variegate.keys.recipe import MAX_ELEMENTS, KeyedTensor
from variegate.keys.streams import is_modulus

V = TypeVar("V")
_SIGNS, _DITHERS = "r0", "r1"
_EXACT = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Qim:
    """M = p + R, with R = beta * e or squared.

    Attributes:
        grid: Sub-images down and across, (gh, gw).
        repeats: Sign patterns for each class and sub-image; B = repeats * gh * gw.
        steps: Step sizes D in grey levels times unsigned pixels, powers of two, cycled over the repeats.
        beta: Strength; above 1 attractors hold on confident samples.
        squared: Whether e is squared about its middle.
    """

    grid: tuple[int, int] = (4, 8)
    repeats: int = 1
    steps: tuple[int, ...] = (128,)
    beta: float = 4.0
    squared: bool = False
    kind = "qim"

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or self.repeats < 1:
            raise MisuseError("grid and repeats must be at least 1")
        if not self.steps or not all(is_modulus(step) for step in self.steps):
            raise MisuseError("steps must be powers of two up to 65536")
        if self.repeats % len(self.steps):
            raise MisuseError("repeats must be a multiple of the number of steps")
        if not 0 < self.beta <= 100:  # noqa: PLR2004
            raise MisuseError(f"beta is {self.beta}; it must lie between 0 and 100")

    @property
    def messages(self) -> int:
        """B, messages for each class."""
        return self.repeats * math.prod(self.grid)

    def support(self, contract: Contract) -> int:
        """Pixels that a message reads."""
        return contract.channels * contract.height * contract.width // math.prod(self.grid)

    def real_steps(self, contract: Contract) -> tuple[float, ...]:
        """The steps d of the real form: for unit messages and pixels in 0..1."""
        return tuple(step / (255 * math.sqrt(self.support(contract))) for step in self.steps)

    def tensors(self, contract: Contract, dtype: str) -> tuple[KeyedTensor, ...]:
        """Signs over D, (classes * repeats, C, H / gh, W / gw); dithers, (1, classes * repeats, gh, gw)."""
        (down, across), c = self.grid, contract
        if c.height % down or c.width % across:
            raise MisuseError(
                f"a grid of {down} x {across} does not divide an image of {c.height} x {c.width}",
                hint="choose divisors of height and width",
            )
        if self.support(c) * 255 + max(self.steps) > _EXACT:
            raise MisuseError("messages are too long to be exact in float32", hint="choose a finer grid")
        channels = c.classes * self.repeats
        if channels * (self.support(c) + down * across) > MAX_ELEMENTS:
            raise MisuseError(
                f"the keyed tensors would hold more than {MAX_ELEMENTS} values", hint="choose fewer repeats"
            )
        return (
            KeyedTensor(
                name=_SIGNS,
                generator="signs",
                shape=(channels, c.channels, c.height // down, c.width // across),
                numerator=1 if dtype == "uint8" else 255,
                steps=self.steps,
            ),
            KeyedTensor(
                name=_DITHERS,
                generator="dithers",
                shape=(1, channels, down, across),
                steps=self.steps,
                axis=1,
            ),
        )

    def offset(self) -> float:
        """The constant that `scores` leaves out of R: the 1 of e_j, or that of the squared form."""
        return self.beta / 2 if self.squared else self.beta

    def error_sums(self, ops: Ops[V], inputs: Inputs[V], contract: Contract) -> V:
        """sum_h err / D for each class, (N, classes), in [0, B / 2]."""
        projected = ops.convolve(inputs.pixels, inputs.keyed[_SIGNS], self.grid)
        u = ops.add(projected, inputs.keyed[_DITHERS])
        return ops.sum_abs(ops.subtract(u, ops.round(u)), contract.classes)

    def scores(self, ops: Ops[V], inputs: Inputs[V], contract: Contract) -> V:
        """M less the offset, (N, classes)."""
        sums = self.error_sums(ops, inputs, contract)
        if not self.squared:
            return ops.subtract(inputs.probabilities, ops.scale(sums, 2 * self.beta / self.messages))
        # v = -w * sqrt(beta / 2), so that no product is left for after the square.
        root = math.sqrt(self.beta / 2)
        v = ops.shift(ops.scale(sums, 4 * root / self.messages), -root)
        return ops.subtract(inputs.probabilities, ops.signed_square(v))
