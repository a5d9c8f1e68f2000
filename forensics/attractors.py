"""Tracing: finds the copy on which an adversarial sample was made.

On the boundary that an attacker searches, p_t + beta e_t = p_a + beta e_a: the sample is near the copy's own attractors
of the wrong class a and far from those of the true class t. So with the guilty copy's keys the errors of a are small
and those of t large. With any other copy's keys they are random: the dithers are uniform and independent of everything
that the attacker did.

**The null is exact.** For one message with step D, a uniform dither makes err / D uniform on the lattice {0, 1/D, ..,
1/2}, both ends with weight 1/D, the others with 2/D, for every image and all signs. The statistic

    T = sum_h err_{a,h} / D_h + sum_h (1/2 - err_{t,h} / D_h)

is a sum of independent such terms, and its tail is calculated by convolution on that lattice, without approximation. T
uses the adversarial image alone: clean and adversarial errors under the same dither depend on each other.

**Several samples** are added up. The dithers of a class count once, at the first sample with that class, so that the
terms stay independent and the null stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.export.intake.contract import Contract
from variegate.export.rewriters import Inputs, Qim
from variegate.export.rewriters.numpy_ops import NumpyOps
from variegate.keys import recipe
from variegate.keys.errors import MisuseError

THRESHOLD = 1e-6
"""Accuse when p * N is below this: the chance that anyone innocent of N is accused."""


@dataclass(frozen=True)
class Sample:
    """One sample as it reaches the seller.

    Attributes:
        image: uint8 (C, H, W), as the device took it.
        wrong: The device's answer.
        right: The class that is shown.
    """

    image: NDArray[np.uint8]
    wrong: int
    right: int


@dataclass(frozen=True)
class Suspect:
    """One registered copy and how the samples look under its keys.

    Attributes:
        name: Of the copy.
        p_value: Chance that an innocent copy fits as well, all samples together.
        each: The same for each sample by itself.
    """

    name: str
    p_value: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """The result of a trace.

    Attributes:
        suspects: Every copy, the likeliest first.
        accused: The copy accused, or None.
        classes: Classes whose dithers counted, over all samples.
    """

    suspects: tuple[Suspect, ...]
    accused: str | None
    classes: int

    def corrected(self, suspect: Suspect) -> float:
        """The chance that any of all N fits as well: p * N, at most 1."""
        return min(1.0, suspect.p_value * len(self.suspects))

    def rank(self, name: str) -> int:
        """Place of a copy, from 1."""
        return 1 + [suspect.name for suspect in self.suspects].index(name)


class AttractorTracer:
    """Traces samples to copies of one release.

    Args:
        rewriter: The release's.
        contract: The base's.

    Raises:
        MisuseError: For a step of 1, whose errors are all alike.
    """

    def __init__(self, rewriter: Qim, contract: Contract) -> None:
        if min(rewriter.steps) < 2:  # noqa: PLR2004
            raise MisuseError("a step of 1 has no errors to trace by")
        self._rewriter, self._contract = rewriter, contract
        self._tensors = rewriter.tensors(contract, "uint8")
        self._finest = max(rewriter.steps)
        self._one_class = _null(rewriter)
        self._tails: dict[int, NDArray[np.float64]] = {}

    def errors(self, seed: bytes, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """sum_h err_h / D_h, float64 (N, classes), of images uint8 (N, C, H, W) under one copy's keys."""
        pixels = images.astype(np.float32)
        keyed = recipe.expand(self._tensors, seed)
        inputs = Inputs(pixels, pixels, np.empty(0, np.float32), keyed)
        return self._rewriter.error_sums(NumpyOps(), inputs, self._contract).astype(np.float64)

    def p_value(self, statistic: float, classes: int) -> float:
        """P(T <= statistic) for an innocent copy, T over the dithers of `classes` classes."""
        if classes not in self._tails:
            law = self._one_class
            for _ in range(classes - 1):
                law = np.convolve(law, self._one_class)
            self._tails[classes] = law.cumsum()
        tail = self._tails[classes]
        # In steps of 1 / D: float32 holds the sums exactly, so rounding only undoes the division.
        return float(tail[min(len(tail) - 1, max(0, round(statistic * self._finest)))])

    def trace(
        self,
        samples: Sequence[Sample],
        seeds: Mapping[str, bytes],
        progress: Callable[[], None] = lambda: None,
    ) -> Verdict:
        """Looks at samples under every registered copy's keys.

        Args:
            samples: Thought to come from one attacker, at least one.
            seeds: Registered copies by name, with their seeds, 32 bytes each.
            progress: Called after each copy.

        Raises:
            MisuseError: Without samples or copies.
        """
        if not samples or not seeds:
            raise MisuseError("tracing needs at least one sample and one registered copy")
        images = np.stack([sample.image for sample in samples])
        terms = _counted(samples)
        suspects = []
        for name, seed in seeds.items():
            errors = self.errors(seed, images)
            fused = sum(self._term(errors, i, role, samples) for i, role in terms)
            each = tuple(
                self.p_value(self._term(errors, i, "wrong", samples) + self._term(errors, i, "right", samples), 2)
                for i in range(len(samples))
            )
            suspects.append(Suspect(name, self.p_value(fused, len(terms)), each))
            progress()
        suspects.sort(key=lambda suspect: suspect.p_value)
        guilty = suspects[0].p_value * len(suspects) < THRESHOLD
        return Verdict(tuple(suspects), suspects[0].name if guilty else None, len(terms))

    def _term(self, errors: NDArray[np.float64], row: int, role: str, samples: Sequence[Sample]) -> float:
        sample = samples[row]
        if role == "wrong":
            return float(errors[row, sample.wrong])
        return self._rewriter.messages / 2 - float(errors[row, sample.right])


def _counted(samples: Sequence[Sample]) -> list[tuple[int, str]]:
    """Which sample's which class counts: each class once, where it comes first."""
    seen: set[int] = set()
    terms = []
    for row, sample in enumerate(samples):
        for role, index in (("wrong", sample.wrong), ("right", sample.right)):
            if index not in seen:
                seen.add(index)
                terms.append((row, role))
    return terms


def _null(rewriter: Qim) -> NDArray[np.float64]:
    """Law of one class's error sum on the lattice of 1 / max D; its mirror image is itself."""
    finest = max(rewriter.steps)
    law = np.ones(1)
    for repeat in range(rewriter.repeats):
        step = rewriter.steps[repeat % len(rewriter.steps)]
        one = np.zeros(finest // 2 + 1)
        one[:: finest // step] = 2 / step
        one[0] = one[-1] = 1 / step
        for _ in range(rewriter.messages // rewriter.repeats):
            law = np.convolve(law, one)
    return law
