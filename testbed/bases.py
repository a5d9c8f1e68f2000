"""A small base for tests: linear, exact enough to reason about, the same in ONNX and in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from variegate.export.intake.base import Base, from_onnx
from variegate.export.intake.contract import InputSpec

CLASSES, CHANNELS, SIDE = 5, 3, 16


def weights(seed: int = 0) -> NDArray[np.float32]:
    """float32 (l, classes)."""
    return np.random.default_rng(seed).normal(0, 0.06, (CHANNELS * SIDE * SIDE, CLASSES)).astype(np.float32)


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random frames, uint8 (count, 3, 16, 16)."""
    return np.random.default_rng(seed).integers(0, 256, (count, CHANNELS, SIDE, SIDE), np.uint8)


class Linear(torch.nn.Module):
    """The base in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.from_numpy(weights()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.get_buffer("w")


def base(folder: Path, layout: str = "NCHW") -> Base:
    """The base through the ONNX way in."""
    shape = (CHANNELS, SIDE, SIDE) if layout == "NCHW" else (SIDE, SIDE, CHANNELS)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["in"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["out"])],
        "secretive-name",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = folder / f"{layout}.onnx"
    onnx.save(model, path)
    return from_onnx(path, InputSpec(layout=layout))  # type: ignore[arg-type]
