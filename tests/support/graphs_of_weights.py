"""Small networks over (3, 4, 4) bytes, by what their operators do with weights: read them in place, or copy them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from testbed.artefacts import CANARIES, SHAPE, frames
from variegate.export.split import split
from variegate.keys.artefact import Payload

_MICROSOFT = "com.microsoft"
_PIXELS, _WIDTH = 48, 64


@dataclass
class Network:
    """A network under construction: every operator takes what the one before gave.

    Attributes:
        at: Name of the newest tensor.
    """

    at: str = "flat"
    _values: dict[str, NDArray[Any]] = field(default_factory=dict)
    _nodes: list[NodeProto] = field(default_factory=list)
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def weights(self, *shape: int, dtype: str = "float32") -> str:
        """New random weights; their name."""
        value = self._random.normal(0, 40 if dtype.endswith("int8") else 0.1, shape)
        if dtype == "uint8":
            value = np.abs(value)
        return self.value(value.astype(dtype))

    def value(self, value: NDArray[Any] | np.generic) -> str:
        """A new initialiser; its name."""
        name = f"i{len(self._values)}"
        self._values[name] = np.asarray(value)
        return name

    def of(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds an operator whose inputs are all named; its output's name."""
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], domain=domain, **attributes))
        return name

    def then(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> None:
        """Adds an operator on the newest tensor."""
        self.at = self.of(operator, self.at, *inputs, domain=domain, **attributes)

    def payload(self) -> Payload:
        """The payload of the network, which ends in the largest score of the newest tensor (n, classes)."""
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "range"], ["x"]),
            helper.make_node("Flatten", ["x"], ["flat"]),
            *self._nodes,
            helper.make_node("ArgMax", [self.at], ["label"], axis=1, keepdims=0),
        ]
        values = {"range": np.float32(255), **self._values}
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", *SHAPE])],
            [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
        )
        sets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=sets, ir_version=9)
        outside = split(model.graph)
        return Payload((), frames(CANARIES).tobytes(), model.SerializeToString(), outside)


def _elements() -> Payload:
    net = Network()
    net.then("MatMul", net.weights(_PIXELS, _WIDTH))
    for operator in ("Add", "Mul", "Sub", "Div", "PRelu"):
        net.then(operator, net.weights(_WIDTH))
    net.at = net.of("Sub", net.weights(_WIDTH), net.at)
    net.then("LayerNormalization", net.weights(_WIDTH), net.weights(_WIDTH))
    return net.payload()


def _products() -> Payload:
    net = Network()
    net.then("MatMul", net.weights(_PIXELS, 16 * _WIDTH))
    net.then("Gemm", net.weights(_WIDTH, 16 * _WIDTH), net.weights(_WIDTH), transB=1)
    net.then("Gemm", net.weights(_WIDTH, 70), net.weights(70))
    net.then("FusedGemm", net.weights(70, _WIDTH), net.weights(_WIDTH), domain=_MICROSOFT, activation="Relu")
    net.then("FusedMatMul", net.weights(_WIDTH, _WIDTH), domain=_MICROSOFT, alpha=0.5)
    net.then("FusedMatMul", net.weights(_WIDTH, _WIDTH), domain=_MICROSOFT, transB=1)
    net.then("Reshape", net.value(np.array([0, 8, 8])))
    net.at = net.of("MatMul", net.weights(90, 8), net.at)
    net.then("Flatten")
    return net.payload()


def _convolutions() -> Payload:
    net = Network("x")
    net.then("Conv", net.weights(_WIDTH, 3, 3, 3), net.weights(_WIDTH), pads=[1, 1, 1, 1])
    net.then("InstanceNormalization", net.weights(_WIDTH), net.weights(_WIDTH))
    net.then("Conv", net.weights(_WIDTH, 1, 3, 3), net.weights(_WIDTH), group=_WIDTH, pads=[1, 1, 1, 1])
    net.then("Sigmoid")
    net.then("Conv", net.weights(_WIDTH, _WIDTH // 4, 3, 3), group=4, pads=[1, 1, 1, 1])
    net.then("Conv", net.weights(40, _WIDTH, 1, 1))
    net.then("Conv", net.weights(30, 40, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    net.then("FusedConv", net.weights(_WIDTH, 30, 1, 1), domain=_MICROSOFT, activation="Relu")
    net.then("Flatten")
    return net.payload()


def _sequence() -> Payload:
    net = Network()
    net.then("Reshape", net.value(np.array([0, 3, 16])))
    net.then("Conv", net.weights(_WIDTH, 3, 5), net.weights(_WIDTH), pads=[2, 2])
    net.then("Reshape", net.value(np.array([0, _WIDTH, 1, 4, 4])))
    net.then("Conv", net.weights(20, _WIDTH, 1, 3, 3))
    net.then("Flatten")
    return net.payload()


def _layer_scale() -> Payload:
    """A block of ConvNeXt: onnxruntime moves the transposition behind the scale, and the scale's axes with it."""
    net = Network("x")
    net.then("Conv", net.weights(_WIDTH, 3, 1, 1), net.weights(_WIDTH))
    _normed(net)
    before = net.at
    net.then("Transpose", perm=[0, 2, 3, 1])
    net.then("MatMul", net.weights(_WIDTH, _WIDTH))
    net.then("Transpose", perm=[0, 3, 1, 2])
    net.then("Mul", net.weights(1, _WIDTH, 1, 1))
    net.then("Add", before)
    _normed(net)
    net.then("Flatten")
    return net.payload()


def _normed(net: Network) -> None:
    net.then("Transpose", perm=[0, 2, 3, 1])
    net.then("LayerNormalization", net.weights(_WIDTH), net.weights(_WIDTH))
    net.then("Transpose", perm=[0, 3, 1, 2])


def _branches(operator: str) -> Payload:
    """One of two products, by the frame; in one of them, `operator` is applied to the weights first."""
    net = Network()
    wide = net.of("MatMul", "flat", net.weights(_PIXELS, _WIDTH))
    branches = {}
    for name in ("then_branch", "else_branch"):
        weights = net.weights(_WIDTH, _WIDTH)
        nodes = [helper.make_node("MatMul", [wide, weights], [f"{name}_out"])]
        if operator and name == "else_branch":
            nodes = [helper.make_node(operator, [weights], ["w"]), helper.make_node("MatMul", [wide, "w"], ["out"])]
        out = nodes[-1].output[0]
        info = helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", _WIDTH])
        branches[name] = helper.make_graph(nodes, name, [], [info])
    some = net.of("ReduceMax", wide, keepdims=0)
    net.at = net.of("If", net.of("Greater", some, net.value(np.float32(1e9))), **branches)
    return net.payload()


IN_PLACE: dict[str, Callable[[], Payload]] = {
    "elements": _elements,
    "products": _products,
    "convolutions": _convolutions,
    "sequence": _sequence,
    "layer scale": _layer_scale,
    "branches": lambda: _branches(""),
}
"""Networks of nothing but operators that read weights in place."""


@dataclass(frozen=True)
class Copying:
    """A network with an operator that copies weights.

    Attributes:
        payload: Builds it.
        operator: The first that does.
        derived: What is to be found in ordinary memory after a query; None where that was not looked at.
    """

    payload: Callable[[], Payload]
    operator: str
    derived: Callable[[Payload], Iterable[NDArray[Any]]] | None = None


def _dequantized() -> Payload:
    net = Network()
    scale, zero = net.value(np.float32(0.013)), net.value(np.int8(3))
    net.then("MatMul", net.of("DequantizeLinear", net.weights(_PIXELS, 2048, dtype="int8"), scale, zero))
    return net.payload()


def _half() -> Payload:
    net = Network()
    net.then("MatMul", net.of("Cast", net.weights(_PIXELS, 2048, dtype="float16"), to=TensorProto.FLOAT))
    return net.payload()


def _integers() -> Payload:
    net = Network()
    net.then("Mul", net.value(np.float32(200)))
    net.then("Cast", to=TensorProto.UINT8)
    net.then("MatMulInteger", net.weights(_PIXELS, 100, dtype="int8"))
    return net.payload()


def _half_product() -> Payload:
    net = Network()
    net.then("Cast", to=TensorProto.FLOAT16)
    net.then("MatMul", net.weights(_PIXELS, 100, dtype="float16"))
    return net.payload()


def _product_of_weights() -> Payload:
    net = Network()
    net.then("MatMul", net.of("Mul", net.weights(_PIXELS, 2048), net.value(np.float32(3))))
    return net.payload()


def _product_of_a_calculated_scalar() -> Payload:
    net = Network()
    scale = net.of("Sqrt", net.value(np.float32(9)))
    net.then("MatMul", net.of("Mul", net.weights(_PIXELS, 2048), scale))
    return net.payload()


def _transposed() -> Payload:
    net = Network()
    net.then("MatMul", net.of("Transpose", net.weights(2048, _PIXELS)))
    return net.payload()


def _looked_up() -> Payload:
    net = Network()
    index = net.of("ArgMax", "flat", axis=1, keepdims=0)
    net.at = net.of("Gather", net.weights(_PIXELS, 100), index)
    return net.payload()


def _normalised() -> Payload:
    net = Network()
    net.then("Gemm", net.weights(_PIXELS, 2048))
    spread = net.value(np.linspace(1, 2, 2048, dtype=np.float32))
    net.then("BatchNormalization", net.weights(2048), net.weights(2048), net.weights(2048), spread)
    return net.payload()


def _scale_of_batches(payload: Payload) -> Iterable[NDArray[Any]]:
    _, spread, scale, _, _ = payload.constants.values()
    return [scale * (1 / np.sqrt(spread + np.float32(1e-5)))]


def _held_mask() -> Payload:
    net = Network()
    net.at = net.of("Where", net.value(np.arange(_PIXELS) % 3 == 0), "flat", net.value(np.float32(0)))
    return net.payload()


def _floats(payload: Payload) -> Iterable[NDArray[Any]]:
    (weights,) = payload.constants.values()
    return [weights.astype(np.float32)]


COPYING = {
    "int8 -> DequantizeLinear -> MatMul": Copying(
        _dequantized,
        "DequantizeLinear",
        lambda p: [(next(iter(p.constants.values())).astype(np.float32) - 3) * np.float32(0.013)],
    ),
    "float16 -> Cast -> MatMul": Copying(_half, "Cast", _floats),
    "MatMulInteger": Copying(_integers, "MatMulInteger"),
    "float16 MatMul": Copying(_half_product, "MatMul", _floats),
    "Mul of weights": Copying(_product_of_weights, "Mul", lambda p: [v * np.float32(3) for v in p.constants.values()]),
    "Mul by a calculated scalar": Copying(_product_of_a_calculated_scalar, "Mul"),
    "Transpose": Copying(_transposed, "Transpose", lambda p: [v.T for v in p.constants.values()]),
    "row of a table": Copying(_looked_up, "Gather", lambda p: p.constants.values()),
    "BatchNormalization": Copying(_normalised, "BatchNormalization", _scale_of_batches),
    "in a branch": Copying(lambda: _branches("Transpose"), "Transpose"),
    "mask in the graph": Copying(_held_mask, "Where"),
}
"""Networks with one operator too many."""
