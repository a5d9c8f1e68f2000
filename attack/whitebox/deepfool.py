"""DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016, algorithm 2), L2, on one copy or on an ensemble.

On an ensemble it is the paper's white-box collusion (Zhang et al. 2023, section 6): k colluders open their copies and
attack the mean of the outputs. `Ensemble` gives logarithms of scores, so that the step on a base without rewriter
equals the step on logits. On an affine classifier one step reaches the nearest boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from variegate.keys.errors import MisuseError

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """The attack.

    Attributes:
        iterations: Most steps.
        overshoot: Share by which the whole perturbation is taken further at every step, as the authors' code does; the
            paper's eta, which it adds in the end.
        candidates: Best classes that are looked at, the own among them.
        bounded: Whether points are clipped to [0, 1] as they go; the paper does not.
    """

    iterations: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    bounded: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.candidates < 2 or self.overshoot < 0:  # noqa: PLR2004
            raise MisuseError("DeepFool needs an iteration, two candidates and an overshoot from 0 up")

    def run(self, model: nn.Module, images: Tensor) -> NDArray[np.float32]:
        """Searches for all images at once; each stops when its own label changes.

        Args:
            model: Images (N, C, H, W) in 0..1 to logits, (N, classes).
            images: Where to start.

        Returns:
            Points, float32 of the shape of `images`; those that never change their label are returned as they got.
        """
        with torch.no_grad():
            label = model(images).argmax(dim=1)
        total = torch.zeros_like(images)
        active = torch.arange(len(images))
        for _ in range(self.iterations):
            point = self._at(images[active], total[active]).requires_grad_(True)
            scores = model(point)
            still = scores.argmax(dim=1) == label[active]
            if not still.any():
                break
            step = self._step(scores, point, label[active])
            active, step = active[still], step[still]
            total[active] += step
        return self._at(images, total).detach().numpy().astype(np.float32)

    def _at(self, images: Tensor, total: Tensor) -> Tensor:
        point = images + (1 + self.overshoot) * total
        return (point.clamp(0, 1) if self.bounded else point).detach()

    def _step(self, scores: Tensor, point: Tensor, label: Tensor) -> Tensor:
        """The least step to the nearest linearised boundary: |f'| / |w'|^2 w' (equation 10), f' and w' differences."""
        rivals = scores.detach().scatter(1, label[:, None], -torch.inf)
        order = rivals.topk(min(self.candidates, scores.shape[1]) - 1, dim=1).indices
        own = scores.gather(1, label[:, None])
        best = torch.full((len(point),), torch.inf, dtype=point.dtype)
        out = torch.zeros_like(point)
        for column in range(order.shape[1]):
            away = (scores.gather(1, order[:, column : column + 1]) - own).squeeze(1)
            (slope,) = torch.autograd.grad(away.sum(), point, retain_graph=True)
            norm = slope.flatten(1).norm(dim=1).clamp_min(_TINY)
            gap = away.detach().abs() + _TINY
            nearer = gap / norm < best
            best = torch.where(nearer, gap / norm, best)
            # A saturated score has no slope; a step is never longer than the picture's diagonal.
            length = (gap / norm).clamp_max(float(np.sqrt(point[0].numel())))
            step = (length / norm)[:, None, None, None] * slope
            out = torch.where(nearer[:, None, None, None], step, out)
        return out
