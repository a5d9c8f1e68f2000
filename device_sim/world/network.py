"""The classifier of road signs, and its packaged weights. Only this file and `train` need torch."""

from __future__ import annotations

from importlib import resources

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from variegate.device_sim.world.signs import SIGNS
from variegate.keys.errors import Refusal, RefusedError

WEIGHTS = "signnet.safetensors"
"""Name of the packaged weights, beside this file."""

_MEAN, _DEVIATION = 0.39, 0.23  # of the stream's pixels, all channels together
_STAGES = (
    (24,),
    (32, 32),
    (64, 96),
)  # channels of the convolutions, each stage at half the size of the one before


class SignNet(nn.Module):
    """A plain convolutional network: 3 x 3 convolutions, batch norm, ReLU, max pooling, mean, linear layer.

    Takes float32 (N, 3, 32, 32) in [0, 1] and returns logits, float32 (N, 16). Normalisation is inside. Every
    operator has a plain ONNX counterpart, and the batch axis is free.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in _STAGES:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(channels, len(SIGNS))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch."""
        features: Tensor = self.features((images - _MEAN) / _DEVIATION)
        logits: Tensor = self.classify(features.mean(dim=(2, 3)))
        return logits


def load_signnet() -> SignNet:
    """Load the packaged network, in evaluation mode.

    Raises:
        RefusedError: The packaged weights are missing, damaged or of another network.
    """
    network = SignNet()
    try:
        blob = resources.files("variegate.device_sim.world").joinpath(WEIGHTS).read_bytes()
        network.load_state_dict(load(blob))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RefusedError(
            Refusal.MODEL,
            f"the packaged weights {WEIGHTS} cannot be used",
            hint="install again, or make them with python -m benchmarks.train_world --weights FILE",
        ) from error
    return network.eval()


def multiply_adds() -> int:
    """Count the multiply-adds of one image in the convolutions and the linear layer."""
    total, channels, side = 0, 3, 32
    for stage in _STAGES:
        for width in stage:
            total += 9 * channels * width * side * side
            channels = width
        side //= 2
    return total + channels * len(SIGNS)


def read_labels(network: nn.Module, images: Tensor, *, chunk: int = 500) -> Tensor:
    """Return the network's labels.

    Args:
        network: Takes float32 in [0, 1].
        images: uint8 (N, 3, 32, 32).
        chunk: Images at a time.

    Returns:
        int64 (N,).
    """
    with torch.inference_mode():
        return torch.cat([network(part.float() / 255).argmax(dim=1) for part in torch.split(images, chunk)])
