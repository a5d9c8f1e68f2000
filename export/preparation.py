"""From a classifier to a release, in one call: base, rewriter by calibration, fused graph, parity."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from variegate.export.calibrate import Tried, calibrate, candidates
from variegate.export.fuse import frame_shape
from variegate.export.intake.base import Base, from_torch, load_base
from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.parity import measure
from variegate.export.release import CANARIES, Release, make_release
from variegate.export.rewriters import Qim, Rewriter
from variegate.keys.errors import MisuseError

if TYPE_CHECKING:
    import torch

_PLAIN = InputSpec()
_NOISE_IMAGES = 256

Validation = tuple[NDArray[Any], NDArray[np.integer[Any]]]
"""Frames, (N, C, H, W), uint8 or float32 in 0..1 for every layout of the base, and their classes, (N,)."""


def prepare(
    model: torch.nn.Module | Base | Path | str,
    *,
    validation: Validation | None = None,
    loss: float = 0.5,
    name: str = "model",
    shape: tuple[int, int, int] | None = None,
    spec: InputSpec = _PLAIN,
    dtype: str = "uint8",
    rewriter: str | Rewriter = Qim.kind,
    progress: Callable[[Tried], None] = lambda _: None,
) -> Release:
    """Makes a release of a classifier.

    Args:
        model: A torch module, an `.onnx` or `.pt2` file, or a base.
        validation: Images that the classifier was not trained on; without it the strongest rewriter is taken untested.
        loss: Most accuracy that a copy may cost, in percentage points.
        name: Of the release, 1 to 60 printable characters.
        shape: Of one image in the layout of `spec`, for a torch module.
        spec: The seller's statements about the model's input.
        dtype: Of the frames that devices will pass, where there is no validation set.
        rewriter: A kind, whose parameters calibration chooses, or a rewriter with its parameters.
        progress: Called with each candidate that calibration tried.

    Raises:
        MisuseError: Arguments that do not fit, or no candidate is within the loss.
        RefusedError: The model is refused, or a copy does not answer as its reference.
    """
    if not (math.isfinite(loss) and loss >= 0):
        raise MisuseError("the loss must be a number of points from 0")
    base = base_of(model, shape, spec)
    images, truth = _noise(base.contract, dtype), None
    if validation is not None:
        images, truth = _checked(*validation, base.contract)
    calibration = None
    if not isinstance(rewriter, str):
        chosen = rewriter
    elif truth is None:
        chosen = next(candidates(rewriter, base.contract))
    else:
        dtype = str(images.dtype)
        answers = measure(base, images)
        calibration = calibrate(base, rewriter, answers, truth, dtype=dtype, allowed_points=loss, progress=progress)
        chosen = calibration.rewriter
    return make_release(name, base, chosen, images, calibration)


def base_of(
    model: torch.nn.Module | Base | Path | str, shape: tuple[int, int, int] | None = None, spec: InputSpec = _PLAIN
) -> Base:
    """The checked base of a classifier, as `prepare` takes it.

    Raises:
        MisuseError: A torch module without a shape, or a shape with a file.
        RefusedError: The model is refused.
    """
    if isinstance(model, Base):
        return model
    if isinstance(model, Path | str):
        return load_base(Path(model), spec)
    if shape is None:
        raise MisuseError("a torch module needs the shape of one image, as in (3, 32, 32)")
    return from_torch(model, shape, spec)


def _noise(contract: Contract, dtype: str) -> NDArray[Any]:
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_IMAGES, *frame_shape(contract)), dtype=np.uint8)
    return noise if dtype == "uint8" else noise / np.float32(255)


def _checked(
    images: NDArray[Any], truth: NDArray[np.integer[Any]], contract: Contract
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    shape = frame_shape(contract)
    if images.shape[1:] != shape or truth.shape != images.shape[:1] or truth.dtype.kind not in "iu":
        words = ", ".join(map(str, shape))
        hint = "images are (N, C, H, W), whatever the layout of the model" if contract.layout == "NHWC" else None
        raise MisuseError(f"validation images must be (N, {words}) with N whole classes", hint=hint)
    if len(images) < CANARIES:
        words = f"{len(images)} images" if len(images) else "no images"
        raise MisuseError(f"the validation set holds {words}", hint=f"give {CANARIES} at least, better a thousand")
    if truth.min() < 0 or truth.max() >= contract.classes:
        raise MisuseError(f"validation classes must lie in 0..{contract.classes - 1}")
    if str(images.dtype) not in {"uint8", "float32"}:
        raise MisuseError(f"validation images are {images.dtype}", hint="give uint8, or float32 in 0..1")
    # As one condition: NaN is in no range.
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise MisuseError("validation images must be finite and lie in 0..1", hint="divide bytes by 255")
    return images, truth.astype(np.int64)
