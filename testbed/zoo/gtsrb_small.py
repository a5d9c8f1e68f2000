"""A small convolutional network for GTSRB, trained by ``python -m benchmarks.train_gtsrb``.

Six 3x3 convolutions, each with batch normalisation and ReLU, then a mean over the plane and one linear layer:
208,000 parameters, 15 million multiply-adds per image. It exports to ONNX as Conv, Relu, a mean and Gemm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from variegate.keys.errors import MisuseError

WEIGHTS: Final = Path(__file__).parent / "weights" / "gtsrb_small.safetensors"

CLASSES: Final = 43

# (channels out, stride) of each convolution; the plane goes 32, 16, 16, 8, 8, 4.
_STAGES: Final = ((32, 1), (32, 2), (64, 1), (64, 2), (96, 1), (96, 2))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class GtsrbSmall(nn.Module):
    """The network: float32 (N, 3, 32, 32) in [0, 1] to logits (N, 43).

    Pixels are centred on 0.5 and scaled to [-1, 1] inside; batch normalisation does the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = 3
        for outputs, stride in _STAGES:
            stages.append(_stage(inputs, outputs, stride))
            inputs = outputs
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 43) of float32 images (N, 3, 32, 32) in [0, 1]."""
        return cast("torch.Tensor", self.classifier(self.features(2 * x - 1).mean((2, 3))))


def load(path: Path = WEIGHTS) -> GtsrbSmall:
    """The trained network, in eval mode and without gradients.

    Args:
        path: A safetensors file that ``benchmarks.train_gtsrb`` wrote; by default the committed one.

    Raises:
        MisuseError: There is no such file, or it does not hold this network's weights.
    """
    model = GtsrbSmall()
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MisuseError(
            f"{path.name} does not hold the weights of the small GTSRB network",
            hint="python -m benchmarks.train_gtsrb makes them",
        ) from error
    return model.eval().requires_grad_(requires_grad=False)
