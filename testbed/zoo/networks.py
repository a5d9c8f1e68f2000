"""The pretrained networks of the data folder as torch modules.

Architectures and names are those of the data folder's README, section 3, so that each safetensors file loads strictly.
Every network takes float32 images in [0, 1] and returns logits. It contains its authors' normalisation of pixels, with
constants that are not in the state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, leaky_relu, max_pool2d, pad, relu

from testbed.zoo.data import data_file
from variegate.keys.errors import MisuseError

CIFAR10_CLASSES: Final = 10
GTSRB_CLASSES: Final = 43

_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GTSRB: Final = ((0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629))
_RAW: Final = ((0.0,) * 3, (1 / 255,) * 3)  # pixels as 0 to 255


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, from float32 (N, C, H, W) in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised images, same shape."""
        return (x - self.mean) / self.std


class _ZeroPadShortcut(nn.Module):
    """Every second pixel, with zero channels before and after: shortcut A of He et al. 2016, section 4.2."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - self.before

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class _Unit(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut: `downsample` if strided."""

    def __init__(self, inputs: int, outputs: int, downsample: nn.Module | None) -> None:
        super().__init__()
        stride = 1 if downsample is None else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + self.downsample(x))


class _CifarResNet(nn.Module):
    """The CIFAR-10 ResNets of 6n + 2 layers: three stages of n units. `_last` names the last layer."""

    _last: str

    def __init__(
        self,
        units: int,
        normalise: nn.Module,
        downsample: Callable[[int, int], nn.Module],
        *,
        stem_bias: bool,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=stem_bias)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Unit(16, 16, None) for _ in range(units)))
        self.layer2, self.layer3 = (
            nn.Sequential(
                _Unit(width // 2, width, downsample(width // 2, width)),
                *(_Unit(width, width, None) for _ in range(units - 1)),
            )
            for width in (32, 64)
        )
        self.add_module(self._last, nn.Linear(64, CIFAR10_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of float32 images (N, 3, 32, 32) in [0, 1]."""
        x = relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return cast("Tensor", self.get_submodule(self._last)(x.mean((2, 3))))


class ResNetCifar(_CifarResNet):
    """`cifar10_resnet{20,32,44,56}_a`: shortcuts without parameters, ImageNet normalisation."""

    _last = "linear"

    def __init__(self, units: int) -> None:
        super().__init__(
            units,
            Normalise(*_IMAGENET),
            lambda inputs, outputs: _ZeroPadShortcut(outputs - inputs),
            stem_bias=False,
        )


class ResNet20b(_CifarResNet):
    """`cifar10_resnet20_b` (DEEPSEC): shortcuts by 1x1 convolution, no normalisation."""

    _last = "fc"

    def __init__(self) -> None:
        super().__init__(
            3,
            nn.Identity(),
            lambda inputs, outputs: nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2), nn.BatchNorm2d(outputs)),
            stem_bias=True,
        )


class ResNet8(nn.Module):
    """`cifar10_resnet8` (MLPerf Tiny): three single units, TensorFlow's "same" padding, raw pixels."""

    def __init__(self) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        self.normalise = Normalise(*_RAW)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = norm(16)
        for stage, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            strided = inputs != outputs
            layers: dict[str, nn.Module] = {
                # TensorFlow pads a stride-2 convolution below and on the right only.
                "pad": nn.ZeroPad2d((0, 1, 0, 1) if strided else 1),
                "conv1": nn.Conv2d(inputs, outputs, 3, stride=2 if strided else 1),
                "bn1": norm(outputs),
                "conv2": nn.Conv2d(outputs, outputs, 3, padding=1),
                "bn2": norm(outputs),
                "proj": nn.Conv2d(inputs, outputs, 1, stride=2) if strided else nn.Identity(),
            }
            for name, layer in layers.items():
                self.add_module(f"s{stage}_{name}", layer)
        self.fc = nn.Linear(64, CIFAR10_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of float32 images (N, 3, 32, 32) in [0, 1]."""
        x = relu(self.bn(self.conv(self.normalise(x))))
        for stage in ("s1", "s2", "s3"):
            y = x
            for name in ("pad", "conv1", "bn1"):
                y = self.get_submodule(f"{stage}_{name}")(y)
            y = relu(y)
            for name in ("conv2", "bn2"):
                y = self.get_submodule(f"{stage}_{name}")(y)
            x = relu(y + self.get_submodule(f"{stage}_proj")(x))
        return cast("Tensor", self.fc(x.mean((2, 3))))


class GtsrbCnn(nn.Module):
    """`gtsrb_cnn`: three stages of convolution, ReLU, maximum, BN; two linear layers; no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 100, 5), nn.BatchNorm2d(100)
        self.conv2, self.bn2 = nn.Conv2d(100, 150, 3), nn.BatchNorm2d(150)
        self.conv3, self.bn3 = nn.Conv2d(150, 250, 3), nn.BatchNorm2d(250)
        self.fc1 = nn.Linear(1000, 350)
        self.fc2 = nn.Linear(350, GTSRB_CLASSES)

    def prepare(self, x: Tensor) -> Tensor:
        """What happens to the pixels before the first convolution: nothing here."""
        return x

    def activate(self, x: Tensor) -> Tensor:
        """The activation of the three stages."""
        return relu(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 43) of float32 images (N, 3, 32, 32) in [0, 1]."""
        x = self.prepare(x)
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = bn(max_pool2d(self.activate(conv(x)), 2))
        return cast("Tensor", self.fc2(relu(self.fc1(x.flatten(1)))))


class GtsrbCnnStn(GtsrbCnn):
    """`gtsrb_cnn_stn`: the same with leaky ReLU, behind a spatial transformer (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(*_GTSRB)
        pool, act = partial(nn.MaxPool2d, 2), nn.ReLU
        self.localization = nn.Sequential(nn.Conv2d(3, 8, 7), pool(), act(), nn.Conv2d(8, 10, 5), pool(), act())
        self.fc_loc = nn.Sequential(nn.Linear(160, 32), act(), nn.Linear(32, 6))

    def prepare(self, x: Tensor) -> Tensor:
        """Normalise, then sample the image through the affine map that the localisation network predicts."""
        x = self.normalise(x)
        theta = self.fc_loc(self.localization(x).flatten(1)).view(-1, 2, 3)
        return grid_sample(x, affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)

    def activate(self, x: Tensor) -> Tensor:
        """Leaky ReLU, slope 0.01."""
        return leaky_relu(x, 0.01)


class MnistCnn7(nn.Module):
    """`mnist_cnn7` (DEEPSEC): four convolutions, three linear layers, no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv32, self.conv64 = (
            nn.Sequential(
                nn.Conv2d(inputs, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.MaxPool2d(2)
            )
            for inputs, width in ((1, 32), (32, 64))
        )
        self.fc1, self.fc2, self.fc3 = nn.Linear(1024, 200), nn.Linear(200, 200), nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of float32 images (N, 1, 28, 28) in [0, 1]."""
        x = self.conv64(self.conv32(x)).flatten(1)
        return cast("Tensor", self.fc3(relu(self.fc2(relu(self.fc1(x))))))


def resnet_cifar(depth: int) -> ResNetCifar:
    """The "a" ResNet of `depth` = 6n + 2 layers, untrained.

    Raises:
        MisuseError: `depth` is not 6n + 2.
    """
    units, rest = divmod(depth - 2, 6)
    if rest or units < 1:
        raise MisuseError(f"a CIFAR-10 ResNet has 6n + 2 layers, not {depth}")
    return ResNetCifar(units)


NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    **{f"cifar10_resnet{depth}_a": partial(resnet_cifar, depth) for depth in (20, 32, 44, 56)},
    "cifar10_resnet20_b": ResNet20b,
    "cifar10_resnet8": ResNet8,
    "gtsrb_cnn": GtsrbCnn,
    "gtsrb_cnn_stn": GtsrbCnnStn,
    "mnist_cnn7": MnistCnn7,
}


def load(name: str) -> nn.Module:
    """A pretrained network, in eval mode and without gradients.

    Args:
        name: A key of `NETWORKS`, which is the file's name without its suffix.

    Raises:
        MisuseError: The name is unknown, or the data folder lacks the file.
    """
    if name not in NETWORKS:
        raise MisuseError(f"no network is called {name!r}", hint=f"one of {', '.join(NETWORKS)}")
    model = NETWORKS[name]()
    model.load_state_dict(load_file(data_file(f"weights/{name}.safetensors")))
    return model.eval().requires_grad_(requires_grad=False)
