"""The operations as ONNX nodes appended to a graph, which becomes the copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class OnnxOps:
    """`Ops` over names of tensors in a graph. Names are neutral and counted."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self._count = 0

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Appends a node and returns the name of its output."""
        name = output or self._name()
        self.graph.node.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """Adds an initialiser and returns its name."""
        name = self._name()
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def convolve(self, image: str, weight: str, dilation: tuple[int, int]) -> str:
        """See `Ops`."""
        return self.node("Conv", image, weight, dilations=list(dilation))

    def add(self, left: str, right: str) -> str:
        """See `Ops`."""
        return self.node("Add", left, right)

    def subtract(self, left: str, right: str) -> str:
        """See `Ops`."""
        return self.node("Sub", left, right)

    def scale(self, value: str, factor: float) -> str:
        """See `Ops`."""
        return self.node("Mul", value, self.constant(np.array(factor, np.float32)))

    def shift(self, value: str, by: float) -> str:
        """See `Ops`."""
        return self.node("Add", value, self.constant(np.array(by, np.float32)))

    def signed_square(self, value: str) -> str:
        """See `Ops`."""
        return self.node("Mul", value, self.node("Abs", value))

    def round(self, value: str) -> str:
        """See `Ops`."""
        return self.node("Round", value)

    def sum_abs(self, value: str, classes: int) -> str:
        """See `Ops`."""
        grouped = self.node("Reshape", value, self.constant(np.array([0, classes, -1], np.int64)))
        return self.node("ReduceL1", grouped, self.constant(np.array([2], np.int64)), keepdims=0)

    def take(self, value: str, indices: str) -> str:
        """See `Ops`."""
        return self.node("Gather", value, indices, axis=1)

    def project(self, image: str, weight: str) -> str:
        """See `Ops`."""
        return self.node("MatMul", self.node("Flatten", image, axis=1), weight)

    def _name(self) -> str:
        self._count += 1
        return f"c{self._count}"
