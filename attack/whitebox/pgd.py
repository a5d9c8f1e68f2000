"""Projected gradient descent (Madry et al., ICLR 2018, equation 2 and section 3), L2 and Linf, untargeted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from variegate.attack.algorithms.fields import known_norm
from variegate.attack.search import Norm
from variegate.keys.errors import MisuseError

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Pgd:
    """The attack. It starts at the image itself, so that it needs no randomness.

    Attributes:
        norm: Of the ball.
        epsilon: Its radius, pixels in 0..1.
        steps: How many.
        stride: Length of a step as a share of epsilon.
    """

    norm: Norm = "l2"
    epsilon: float = 1.0
    steps: int = 20
    stride: float = 0.125

    def __post_init__(self) -> None:
        known_norm(self.norm)
        if self.steps < 1 or not self.epsilon > 0 or not self.stride > 0:
            raise MisuseError("PGD needs a step, and a radius and stride above 0")

    def run(self, model: nn.Module, images: Tensor, classes: Tensor) -> NDArray[np.float32]:
        """Raises the cross entropy of the images' classes inside the ball.

        Args:
            model: Images (N, C, H, W) in 0..1 to logits, (N, classes).
            images: Centres.
            classes: int64 (N,), the labels that the images must no longer get.

        Returns:
            Points, float32 of the shape of `images`, in the ball and in [0, 1].
        """
        point = images.clone()
        for _ in range(self.steps):
            point.requires_grad_(True)
            loss = functional.cross_entropy(model(point), classes, reduction="sum")
            (slope,) = torch.autograd.grad(loss, point)
            with torch.no_grad():
                moved = point + self.stride * self.epsilon * self._direction(slope)
                point = (images + self._within(moved - images)).clamp(0, 1)
        return point.detach().numpy().astype(np.float32)

    def _direction(self, slope: Tensor) -> Tensor:
        if self.norm == "linf":
            return slope.sign()
        # A model that is sure of itself has slopes so small that their squares are 0 in float32.
        whole = slope / slope.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        return whole / _length(whole)

    def _within(self, away: Tensor) -> Tensor:
        if self.norm == "linf":
            return away.clamp(-self.epsilon, self.epsilon)
        return away * (self.epsilon / _length(away)).clamp_max(1)


def _length(value: Tensor) -> Tensor:
    """L2 length of each image, (N, 1, 1, 1)."""
    out: Tensor = value.flatten(1).norm(dim=1).clamp_min(_TINY)[:, None, None, None]
    return out
