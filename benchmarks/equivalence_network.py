"""A network small enough for millions of queries: GTSRB at 16 x 16 pixels, trained in seconds when needed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from testbed.zoo import data
from variegate.attack.oracle import to_points
from variegate.attack.oracles.local import LocalBase
from variegate.export.intake.base import from_torch
from variegate.export.intake.contract import InputSpec

SHAPE = (3, 16, 16)
CLASSES = 43
_EPOCHS, _BATCH, _RATE = 6, 128, 4e-3


def halved(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Means over 2 x 2 pixels, float32 (N, 3, 16, 16) in 0..1, of uint8 (N, 3, 32, 32)."""
    planes = to_points(frames).reshape(-1, 3, 16, 2, 16, 2)
    means: NDArray[np.float32] = planes.mean(axis=(3, 5), dtype=np.float32)
    return means


def trained(epochs: int = _EPOCHS) -> LocalBase:
    """The network as an oracle of float32 frames; the same each time on one kind of processor.

    Raises:
        MisuseError: The data folder lacks GTSRB.
    """
    torch.manual_seed(0)
    images = data.gtsrb_train()
    x, y = torch.from_numpy(halved(images.x)), torch.from_numpy(images.y)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, CLASSES),
    )
    steps = epochs * (len(x) // _BATCH)
    optimiser = torch.optim.Adam(module.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(x)), _BATCH)[: len(x) // _BATCH]:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(module(x[chosen]), y[chosen])
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    module.eval().requires_grad_(requires_grad=False)
    return LocalBase(from_torch(module, SHAPE, InputSpec()), "float32")
