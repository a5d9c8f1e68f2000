"""The operations in torch, and a copy as a torch module for white-box study."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from variegate.export.intake.contract import Contract
from variegate.export.rewriters.definition import Inputs, Rewriter
from variegate.keys import recipe


class TorchOps:
    """`Ops` over tensors."""

    def convolve(self, image: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Tensor:
        """See `Ops`."""
        return functional.conv2d(image, weight, dilation=dilation)

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Ops`."""
        return left + right

    def subtract(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Ops`."""
        return left - right

    def scale(self, value: Tensor, factor: float) -> Tensor:
        """See `Ops`."""
        return value * torch.tensor(factor, dtype=torch.float32, device=value.device)

    def shift(self, value: Tensor, by: float) -> Tensor:
        """See `Ops`."""
        return value + torch.tensor(by, dtype=torch.float32, device=value.device)

    def signed_square(self, value: Tensor) -> Tensor:
        """See `Ops`."""
        return value * value.abs()

    def round(self, value: Tensor) -> Tensor:
        """See `Ops`; with its zero gradient, the error of a lattice has the triangle wave's."""
        return torch.round(value)

    def sum_abs(self, value: Tensor, classes: int) -> Tensor:
        """See `Ops`."""
        return value.abs().reshape(len(value), classes, -1).sum(dim=2)

    def take(self, value: Tensor, indices: Tensor) -> Tensor:
        """See `Ops`."""
        return value[:, indices]

    def project(self, image: Tensor, weight: Tensor) -> Tensor:
        """See `Ops`."""
        return image.flatten(1) @ weight


class Copy(nn.Module):
    """One buyer's copy around a base, with scores and gradients, for analysis off the device.

    Args:
        base: Images in 0..1, in the contract's layout, to logits or probabilities (N, classes).
        contract: The base's contract.
        rewriter: The rewriter with its parameters.
        seed: The buyer's seed, 32 bytes.
        dtype: "uint8" when the device takes bytes (the pixels are then whole steps of 1/255), else "float32".
    """

    def __init__(self, base: nn.Module, contract: Contract, rewriter: Rewriter, seed: bytes, dtype: str) -> None:
        super().__init__()
        self.base, self._contract, self._rewriter, self._dtype = base, contract, rewriter, dtype
        self._names = []
        for name, value in recipe.expand(rewriter.tensors(contract, dtype), seed).items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
            self._names.append(name)

    def probabilities(self, images: Tensor) -> Tensor:
        """The base's p, (N, classes), of images (N, C, H, W), float32 in 0..1."""
        seen = images.permute(0, 2, 3, 1) if self._contract.layout == "NHWC" else images
        outputs: Tensor = self.base(seen)
        return outputs if self._contract.outputs == "probabilities" else functional.softmax(outputs, dim=1)

    def rewritten(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """M less the rewriter's offset, (N, classes), where p is known: copies of one base need it only once."""
        # Multiplying by 255 gives a byte back only after rounding; the straight-through form keeps gradients.
        pixels = images
        if self._dtype == "uint8":
            pixels = images * 255
            pixels = pixels + (torch.round(pixels) - pixels).detach()
        keyed = {name: self.get_buffer(name) for name in self._names}
        return self._rewriter.scores(TorchOps(), Inputs(pixels, images, probabilities, keyed), self._contract)

    def scores(self, images: Tensor) -> Tensor:
        """M less the rewriter's offset, float32 (N, classes), of images (N, C, H, W), float32 in 0..1."""
        return self.rewritten(images, self.probabilities(images))

    @property
    def offset(self) -> float:
        """The constant that `scores` leaves out of M."""
        return self._rewriter.offset()

    def forward(self, images: Tensor) -> Tensor:
        """M normalised to sum 1 over classes (the paper's soft output), float32 (N, classes)."""
        rewritten = self.scores(images) + self.offset
        return rewritten / rewritten.abs().sum(dim=1, keepdim=True)

    def labels(self, images: Tensor) -> Tensor:
        """Labels, int64 (N,)."""
        with torch.no_grad():
            return self.scores(images).argmax(dim=1)
