"""Runs torch's exporter without its output, and checks the contract."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from variegate.export.intake.canonical import OPSET
from variegate.export.intake.probe import refusing
from variegate.keys.errors import Refusal, RefusedError

_NOISY = (
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch._export",
    "torch._subclasses",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
)


def traced(module: torch.nn.Module, shape: tuple[int, int, int]) -> bytes:
    """Exports a module with a free batch axis.

    Args:
        module: Takes one float32 tensor (batch, *shape); its modes are left as they were.
        shape: One image.

    Returns:
        A serialised ONNX model at `OPSET`.

    Raises:
        RefusedError: `MODEL` when torch cannot export it.
    """
    # Two images: torch treats a size of 1 as fixed.
    example = torch.zeros((2, *shape), device=_device(module))
    with (
        _evaluating(module),
        quiet(),
        refusing("torch cannot export the module", "torch.export.export with a dynamic batch axis says why"),
    ):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
        return serialised(program)


def serialised(program: torch.onnx.ONNXProgram | None) -> bytes:
    """Returns the bytes of torch's export.

    Raises:
        RefusedError: `MODEL` when it made nothing.
    """
    if program is None:
        raise RefusedError(Refusal.MODEL, "torch exported nothing", hint="export the module to ONNX yourself")
    data: bytes = program.model_proto.SerializeToString()
    return data


def scores_of(module: torch.nn.Module, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answers images with the module in eval mode.

    Args:
        module: Takes one float32 tensor, returns one.
        pixels: float32, (n, ...), as the module expects them.

    Raises:
        RefusedError: `MODEL` when the module fails, `CONTRACT` when it returns no single tensor.
    """
    with _evaluating(module):
        return answered(module, pixels)


def answered(module: torch.nn.Module, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Answers images with a module in the mode it is in, as modules of exported programs have only one.

    Args:
        module: Takes one float32 tensor, returns one.
        pixels: float32, (n, ...), as the module expects them.

    Raises:
        RefusedError: As `scores_of`.
    """
    hint = "call it on a batch of float32 images in eval mode to see why"
    with torch.no_grad(), refusing("the module does not run", hint):
        result = module(torch.from_numpy(pixels).to(_device(module)))
    if not isinstance(result, torch.Tensor):
        raise RefusedError(
            Refusal.CONTRACT, "the module returns no single tensor", hint="wrap it to return the scores alone"
        )
    scores: NDArray[np.float32] = result.float().cpu().numpy()
    return scores


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter's loggers and warnings inside, and leaves both as they were."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    before = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in before:
            part.training = training


def _device(module: torch.nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
