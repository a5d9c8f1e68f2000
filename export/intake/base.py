"""Reads a base: from a torch module, a `.pt2` archive or an ONNX file to one checked base graph."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from variegate.export.intake.contract import Contract, InputSpec, base_pixels, check_shape
from variegate.export.intake.guard import Limits, guarded, read_file, refuse_pickles
from variegate.export.intake.isolate import convert
from variegate.export.intake.probe import Runner, check_parity, random_images
from variegate.keys.errors import MisuseError, Refusal, RefusedError

if TYPE_CHECKING:
    import torch

_PROBES = 12
_LIMITS = Limits()
_PLAIN = InputSpec()


@dataclass(frozen=True)
class Base:
    """A checked base in canonical form.

    Attributes:
        model: One input "image", float32 (batch, *layout) in [0, 1]; one output "scores", float32
            (batch, classes). Not to be changed: copy it to append to it.
        contract: The checked contract.
        digest: SHA-256 of the canonical serialised bytes.
    """

    model: onnx.ModelProto
    contract: Contract
    digest: bytes

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self.model.SerializeToString(deterministic=True))

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Answers a batch of any size with onnxruntime on one thread.

        Args:
            images: float32, (n, *layout), in [0, 1], n at least 1.

        Returns:
            float32, (n, classes): logits or probabilities, as the contract says.

        Raises:
            MisuseError: A wrong shape or dtype.
        """
        shape = self.contract.image_shape
        if images.dtype != np.float32 or images.shape[1:] != shape or not len(images):
            raise MisuseError(f"images are {images.dtype} {images.shape}", hint=f"give float32 of shape (n, {shape})")
        return self._runner(images)


def from_torch(
    module: torch.nn.Module, shape: tuple[int, int, int], spec: InputSpec = _PLAIN, *, limits: Limits = _LIMITS
) -> Base:
    """Exports a torch module and checks that the base answers as the module does.

    Args:
        module: Takes one float32 tensor (batch, *shape). Its training modes are left as they were.
        shape: One image in the layout of the specification: (C, H, W) or (H, W, C).
        spec: The seller's statements about the input.
        limits: The caps.

    Raises:
        RefusedError: `CONTRACT`, `MODEL` (torch cannot export it), `TOO_LARGE`, or `PARITY`.
    """
    from variegate.export.intake.tracing import scores_of, traced  # noqa: PLC0415  torch: seconds, and 700 MB

    check_shape(shape, spec)
    images = random_images(_PROBES, shape)
    data = traced(module, shape)
    expected = scores_of(module, base_pixels(images, spec))
    base = _base(limits, *convert(data, "onnx", None, spec, limits))
    check_parity(expected.reshape(_PROBES, -1), base.scores(images))
    return base


def from_onnx(path: Path, spec: InputSpec = _PLAIN, *, limits: Limits = _LIMITS) -> Base:
    """Reads an ONNX file of any framework; it may be hostile.

    Args:
        path: The file; external data must lie in its folder.
        spec: The seller's statements about the input.
        limits: The caps.

    Raises:
        RefusedError: `MALFORMED`, `TOO_LARGE`, `MODEL`, `CONTRACT` or `PARITY`.
    """
    data = read_file(path, limits)
    return _base(limits, *convert(data, "onnx", path.resolve().parent, spec, limits))


def from_pt2(path: Path, spec: InputSpec = _PLAIN, *, limits: Limits = _LIMITS) -> Base:
    """Reads an archive of `torch.export.save`; it may be hostile (see `archive` for the parts that are accepted).

    Args:
        path: The file.
        spec: The seller's statements about the input.
        limits: The caps.

    Raises:
        RefusedError: `MALFORMED`, `TOO_LARGE`, `MODEL`, `CONTRACT` or `PARITY`.
    """
    return _base(limits, *convert(read_file(path, limits), "pt2", None, spec, limits))


def load_base(path: Path, spec: InputSpec = _PLAIN, *, limits: Limits = _LIMITS) -> Base:
    """Reads a base by the suffix of its file: `.onnx` or `.pt2`.

    Args:
        path: The file.
        spec: The seller's statements about the input.
        limits: The caps.

    Raises:
        RefusedError: As `from_onnx` and `from_pt2`, and `MALFORMED` for other suffixes.
    """
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return from_onnx(path, spec, limits=limits)
    if suffix == ".pt2":
        return from_pt2(path, spec, limits=limits)
    refuse_pickles(path)
    hint = "give a .onnx or .pt2 file"
    if suffix == ".safetensors":
        hint = "weights alone are no base: name the module too, or export it to .onnx or .pt2"
    raise RefusedError(Refusal.MALFORMED, f"{path.name} is not a kind of base", hint=hint)


def _base(limits: Limits, data: bytes, contract: Contract) -> Base:
    # The child worked on foreign data: its output passes the guard like any file.
    return Base(model=guarded(data, None, limits), contract=contract, digest=hashlib.sha256(data).digest())
