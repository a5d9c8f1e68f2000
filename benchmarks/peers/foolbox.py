"""Foolbox's HopSkipJump, many images in step, over its PyTorchModel: it has no model for ONNX."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Final

import numpy as np
import torch
from eagerpy.astensor import astensor
from foolbox.attacks.hop_skip_jump import HopSkipJumpAttack
from foolbox.criteria import Misclassification
from foolbox.models.pytorch import PyTorchModel
from numpy.typing import NDArray
from torch import nn

from benchmarks.peers.meter import Meter, SpentError

_ENDLESS: Final = 100_000


class Metered(nn.Module):
    """A module whose outputs are one-hot labels, so that the meter stands between Foolbox and the network."""

    def __init__(self, meter: Meter, classes: int) -> None:
        super().__init__()
        self._meter = meter
        self._eye = torch.eye(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to float32 (N, classes)."""
        return self._eye[torch.from_numpy(self._meter.labels(x))]


def torch_network(module: nn.Module) -> Any:
    """A torch module as the meter's network."""

    def labels(x: torch.Tensor) -> NDArray[np.int64]:
        with torch.no_grad():
            out: NDArray[np.int64] = module(x).argmax(1).numpy()
        return out

    return labels


def search(
    meter: Meter,
    *,
    clean: NDArray[np.float32],
    truth: NDArray[np.int64],
    starts: NDArray[np.float32],
    classes: int,
) -> list[float]:
    """Attacks all images at once, at Foolbox's defaults, until the budget ends them.

    Args:
        meter: Counts and judges.
        clean: Images, float32 (N, C, H, W) in 0..1.
        truth: The network's labels of them, (N,).
        starts: A picture of another class for each, as `clean`.
        classes: Number of classes.

    Returns:
        L2 of the nearest fooling frame asked, for each image.
    """
    model = PyTorchModel(Metered(meter, classes).eval(), bounds=(0, 1), device="cpu")
    attack = HopSkipJumpAttack(steps=_ENDLESS)
    torch.manual_seed(0)
    meter.begin(clean, truth)
    criterion = Misclassification(astensor(torch.from_numpy(truth)))
    with contextlib.suppress(SpentError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attack.run(model, torch.from_numpy(clean), criterion, starting_points=torch.from_numpy(starts))
    return [float(length) for length in meter.best]
