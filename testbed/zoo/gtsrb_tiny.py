"""A very small network for GTSRB, for attacks that ask millions of labels.

Five 3x3 convolutions, three of them strided, each with batch normalisation and ReLU, then one linear layer: a third of
the small network's time on a CPU. ``python -m benchmarks.train_tiny`` trained it several times, each time with weights,
an order and an augmentation of its own; these are the independently trained bases. The files hold float16, which halves
their size; accuracy was measured after the rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from variegate.keys.errors import MisuseError

CLASSES: Final = 43
NAMES: Final = ("a", "b", "c")
"""Of the trained networks."""
_WEIGHTS: Final = Path(__file__).parent / "weights"
# (channels out, stride) of each convolution; the plane goes 16, 8, 8, 8, 4.
_STAGES: Final = ((32, 2), (48, 2), (64, 1), (64, 1), (96, 2))
_PLANE: Final = 4


class GtsrbTiny(nn.Module):
    """The network: float32 (N, 3, 32, 32) in [0, 1] to logits (N, 43)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, stride in _STAGES:
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * _PLANE**2, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 43) of float32 images (N, 3, 32, 32) in [0, 1], centred and scaled inside."""
        return cast("torch.Tensor", self.classifier(self.features(2 * x - 1).flatten(1)))


def weights(name: str) -> Path:
    """The committed file of one of `NAMES`."""
    return _WEIGHTS / f"gtsrb_tiny_{name}.safetensors"


def load(name: str) -> GtsrbTiny:
    """A trained network, in eval mode and without gradients.

    Args:
        name: One of `NAMES`.

    Raises:
        MisuseError: There is no such file, or it does not hold this network's weights.
    """
    model = GtsrbTiny()
    try:
        model.load_state_dict(load_file(weights(name)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MisuseError(
            f"{weights(name).name} does not hold the weights of a tiny GTSRB network",
            hint="python -m benchmarks.train_tiny makes them",
        ) from error
    return model.eval().requires_grad_(requires_grad=False)
