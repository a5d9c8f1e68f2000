"""Copies as torch modules: scores with gradients, for studies of an attacker who has opened a device.

Assumes that the attacker has base, rewriter and seeds, which the enclave keeps secret: the results are a bound for
attacks by labels alone.

**Gradients.** A lattice's error |u - round(u)| keeps its exact derivative: it is piecewise linear, round has the
derivative 0 wherever it has one, and so the error has the triangle wave's slope of +-1. Nothing is smoothed. Only the
rounding of pixels to bytes uses a straight-through estimate (Bengio, Leonard and Courville 2013), because its exact
derivative, 0, would hide the rewriter from the attacker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from testbed.torch_ops import Copy
from variegate.attack.oracle import to_points
from variegate.export.intake.contract import Contract
from variegate.export.rewriters.definition import Rewriter
from variegate.keys.errors import MisuseError

FLOOR = 1e-30
"""Least score whose logarithm is taken."""


class Ensemble(nn.Module):
    """The mean output of several copies; one copy is an ensemble of one.

    Copies that share a base module have its probabilities computed once.

    Args:
        copies: At least one, of one number of classes.
    """

    def __init__(self, copies: Sequence[Copy]) -> None:
        super().__init__()
        if not copies:
            raise MisuseError("an ensemble needs at least one copy")
        self.copies = nn.ModuleList(copies)
        self._each = tuple(copies)  # the same, with their type
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def __len__(self) -> int:
        return len(self._each)

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """F = p and M = F + G of each copy, two (k, N, classes), of images (N, C, H, W) in 0..1."""
        of_base: dict[int, Tensor] = {}
        own, rewritten = [], []
        for copy in self._each:
            key = id(copy.base)
            if key not in of_base:
                of_base[key] = copy.probabilities(images)
            own.append(of_base[key])
            rewritten.append(copy.rewritten(images, of_base[key]) + copy.offset)
        return torch.stack(own), torch.stack(rewritten)

    def scores(self, images: Tensor) -> Tensor:
        """The copies' mean M, (N, classes)."""
        return self.parts(images)[1].mean(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        """The logarithm of the mean M, (N, classes): for a base without rewriter its logits, less their log-sum-exp."""
        return self.scores(images).clamp_min(FLOOR).log()

    def labels(self, images: Tensor) -> Tensor:
        """Each copy's labels, int64 (k, N)."""
        with torch.no_grad():
            return self.parts(images)[1].argmax(dim=2)


def open_copies(
    module: nn.Module, contract: Contract, rewriter: Rewriter, seeds: Sequence[bytes], dtype: str
) -> list[Copy]:
    """The copies of one release, around one base module.

    Args:
        module: The base, images in 0..1 to logits or probabilities; put into evaluation mode.
        contract: The base's.
        rewriter: Of the release.
        seeds: One for each copy, 32 bytes.
        dtype: Of the devices' frames: "uint8" or "float32".
    """
    return [Copy(module, contract, rewriter, seed, dtype).eval() for seed in seeds]


def to_tensor(frames: NDArray[Any]) -> Tensor:
    """Frames (N, C, H, W) of either dtype as a tensor, float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(to_points(frames)))
