"""Calibration: the strongest rewriter that costs no more accuracy than the seller allows.

Candidates are tried from strong to weak on a validation set, each with several copies under keys of their own. The
first one is taken whose mean loss plus its standard error is within the allowance. The base runs once on the validation
set; for each copy only the rewriter runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.export.fuse import Template, fuse
from variegate.export.intake.base import Base
from variegate.export.intake.contract import Contract
from variegate.export.parity import CopyJudge, ParitySet, measure
from variegate.export.rewriters import Permutation, Qim, Rewriter, SpreadSpectrum, to_parameters
from variegate.keys.errors import MisuseError
from variegate.keys.primitives import sha256

STEP, FINE_STEP = 0.05, 0.025
"""Target steps d on the 0..1 scale: attractors are near, but above a camera's 8-bit rounding. The fine one is for bases
whose own boundary is near: coarse lattices are found no sooner than this boundary, and a sample that is pushed beyond
an attractor is then beyond the base's boundary as well."""
_NOISE, _TURNED, _SHOWN = 8 / 255, 0.1, 2_000
"""A boundary is near if noise of this deviation changes this share of the labels of so many images."""
_STRENGTHS = (
    (32, 15.0), (64, 27.0), (32, 13.0), (64, 25.0), (64, 23.0), (64, 21.0), (64, 19.0), (64, 17.0), (64, 15.0),
    (64, 13.0), (128, 20.0), (128, 15.0), (256, 20.0),
)  # fmt: skip
"""(B, beta) of the squared form, by falling beta / B: both the loss of accuracy and how near attractors are go by
that."""
_ALPHAS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_AMPLITUDES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Tried:
    """One candidate and its cost.

    Attributes:
        parameters: The rewriter's.
        accuracy: Mean over copies, in 0..1.
        deviation: Standard deviation over copies.
        loss_points: Mean loss against the base, in percentage points.
        error_points: Standard error of that mean, over copies and over images.
        agreement: Mean share of images on which copy and base agree.
    """

    parameters: dict[str, object]
    accuracy: float
    deviation: float
    loss_points: float
    error_points: float
    agreement: float


@dataclass(frozen=True)
class Calibration:
    """The choice of a calibration, and all candidates tried.

    Attributes:
        rewriter: The choice.
        base_accuracy: Of the base on the validation set, in 0..1.
        images: Size of the validation set.
        copies: Copies for each candidate.
        allowed_points: The allowance.
        tried: Every candidate in order; the last one is the choice.
        turned: Share of the base's labels that noise turns, which decides the step of QIM.
    """

    rewriter: Rewriter
    base_accuracy: float
    images: int
    copies: int
    allowed_points: float
    tried: tuple[Tried, ...]
    turned: float


def candidates(kind: str, contract: Contract, step: float = STEP) -> Iterator[Rewriter]:
    """Rewriters of a kind from strong to weak.

    Args:
        kind: Kind of rewriter.
        contract: The base's.
        step: Aimed at by QIM, pixels in 0..1.

    Raises:
        MisuseError: For an unknown kind.
    """
    if kind == Permutation.kind:
        yield from (Permutation(alpha=alpha) for alpha in _ALPHAS)
    elif kind == SpreadSpectrum.kind:
        yield from (SpreadSpectrum(amplitude=amplitude) for amplitude in _AMPLITUDES)
    elif kind == Qim.kind:
        yield from (qim_near(contract, messages, beta, step) for messages, beta in _STRENGTHS)
    else:
        raise MisuseError(f"rewriter {kind!r} is unknown", hint="known are qim, permutation, spread")


def calibrate(
    base: Base,
    kind: str,
    validation: ParitySet,
    truth: NDArray[np.int64],
    *,
    dtype: str,
    allowed_points: float,
    copies: int = 10,
    progress: Callable[[Tried], None] = lambda tried: None,  # noqa: ARG005
) -> Calibration:
    """Chooses the parameters of a rewriter.

    Args:
        base: The base.
        kind: Kind of rewriter.
        validation: Images that the base was not trained on, and its probabilities for them.
        truth: Their classes, int64 (N,).
        dtype: Of a frame.
        allowed_points: Most loss of accuracy allowed, in percentage points.
        copies: Copies for each candidate.
        progress: Called after each candidate.

    Returns:
        The choice and the curve of all candidates tried.

    Raises:
        MisuseError: When no candidate is within the allowance.
    """
    own = validation.probabilities.argmax(axis=1)
    base_accuracy = float((own == truth).mean())
    tried: list[Tried] = []
    turned = noise_turns(base, validation.head(_SHOWN))
    for rewriter in candidates(kind, base.contract, FINE_STEP if turned > _TURNED else STEP):
        tried.append(_try(fuse(base, rewriter, dtype), validation, truth, own, copies))
        progress(tried[-1])
        if tried[-1].loss_points + tried[-1].error_points <= allowed_points:
            return Calibration(rewriter, base_accuracy, len(truth), copies, allowed_points, tuple(tried), turned)
    raise MisuseError(
        f"no {kind} rewriter keeps within {allowed_points} points; the weakest tried lost {tried[-1].loss_points:.2f}",
        hint="allow a larger loss, or give a larger validation set",
    )


def _try(
    template: Template,
    validation: ParitySet,
    truth: NDArray[np.int64],
    own: NDArray[np.int64],
    copies: int,
) -> Tried:
    judge = CopyJudge(template)
    labels = np.stack([judge.labels(sha256(b"calibration", bytes([i])), validation) for i in range(copies)])
    right = labels == truth
    accuracies = right.mean(axis=1)
    deviation = float(accuracies.std(ddof=1)) if copies > 1 else 0.0
    # Copies meet the same images, so these are an error of their own, however many copies there are.
    lost = (own == truth) - right.mean(axis=0)
    error = math.hypot(deviation / math.sqrt(copies), float(lost.std()) / math.sqrt(len(truth)))
    return Tried(
        parameters=to_parameters(template.rewriter),
        accuracy=float(accuracies.mean()),
        deviation=deviation,
        loss_points=100 * float((own == truth).mean() - accuracies.mean()),
        error_points=100 * error,
        agreement=float((labels == own).mean()),
    )


def noise_turns(base: Base, shown: ParitySet) -> float:
    """Share of the base's labels that Gaussian noise of 8 grey levels turns: large where its boundary is near."""
    noise = np.random.default_rng(0).normal(0, _NOISE, shown.images.shape)
    if shown.images.dtype == np.uint8:
        noisy = np.clip(np.rint(shown.images + 255 * noise), 0, 255).astype(np.uint8)
    else:
        noisy = np.clip(shown.images + noise, 0, 1).astype(shown.images.dtype)
    labels = measure(base, noisy).probabilities.argmax(axis=1)
    return float((labels != shown.probabilities.argmax(axis=1)).mean())


def qim_near(contract: Contract, messages: int, beta: float, step: float = STEP) -> Qim:
    """Squared QIM with B = `messages`, on the grid whose power-of-two step D comes nearest to `step`.

    Of grids that come as near (within a tenth, in logarithm), the finest is taken: it is the cheapest.
    """

    def rank(qim: Qim) -> tuple[float, int, int]:
        off = abs(math.log(qim.real_steps(contract)[0] / step))
        return round(off, 1), qim.repeats, abs(qim.grid[0] - qim.grid[1])

    grids = [(h, w) for h in _divisors(contract.height) for w in _divisors(contract.width)]
    pixels = contract.channels * contract.height * contract.width
    fitting = []
    for grid in grids:
        positions = math.prod(grid)
        if messages % positions == 0:
            grey = 2 ** max(1, round(math.log2(step * 255 * math.sqrt(pixels / positions))))
            repeats = messages // positions
            fitting.append(Qim(grid=grid, repeats=repeats, steps=(grey,), beta=beta, squared=True))
    return min(fitting, key=rank)


def _divisors(side: int) -> list[int]:
    return [d for d in range(1, side + 1) if side % d == 0]
