"""One graph from the base and a rewriter: image in, int64 label out, the buyer's tensors left out.

The base is traced once; a copy is this template plus the tensors expanded from a seed. So nothing is traced or
simplified again for a buyer, and all copies of a release share one graph, to the byte. Weights and the buyer's tensors
are stored outside the graph.

    image -> [Cast, Div 255 for uint8] -> [Transpose for NHWC] -> base -> [Softmax] -> rewriter -> ArgMax -> label
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from variegate.export.intake.base import Base
from variegate.export.intake.contract import Contract
from variegate.export.rewriters import Inputs, Rewriter
from variegate.export.rewriters.numpy_ops import NumpyOps
from variegate.export.rewriters.onnx_ops import OnnxOps
from variegate.export.split import placeholder, split
from variegate.keys import recipe
from variegate.keys.errors import MisuseError
from variegate.keys.manifest import DTYPES
from variegate.keys.recipe import KeyedTensor

IMAGE, LABEL, SCORES = "image", "label", "scores"
PROBABILITIES = "p"
_UNIT = "unit"
_ELEMENT = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


@dataclass(frozen=True)
class Template:
    """The graph that all copies of a release share.

    Attributes:
        graph: Serialised ONNX; keyed tensors and constants are external initialisers without data.
        constants: The base's weights by name.
        tensors: The keyed tensors.
        contract: The base's contract.
        rewriter: The rewriter with its parameters.
        dtype: Of a frame: "uint8" or "float32".
    """

    graph: bytes
    constants: Mapping[str, NDArray[Any]] = field(repr=False, compare=False)
    tensors: tuple[KeyedTensor, ...]
    contract: Contract
    rewriter: Rewriter
    dtype: str

    def values(self, seed: bytes) -> dict[str, NDArray[Any]]:
        """All that the graph of the copy with this seed lacks, by name: constants and keyed tensors."""
        return {**self.constants, **recipe.expand(self.tensors, seed)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a frame, (C, H, W) for every layout of the base: a device's frames do not depend on the base."""
        return frame_shape(self.contract)


def frame_shape(contract: Contract) -> tuple[int, int, int]:
    """(C, H, W)."""
    return contract.channels, contract.height, contract.width


def fuse(base: Base, rewriter: Rewriter, dtype: str) -> Template:
    """Fuses a base and a rewriter into a template.

    Args:
        base: The checked base.
        rewriter: The rewriter to append.
        dtype: Of a frame.

    Returns:
        The template. Same inputs, same bytes.

    Raises:
        MisuseError: When dtype or parameters do not fit.
    """
    if dtype not in DTYPES:
        raise MisuseError(f"frames of dtype {dtype!r} are not supported", hint="choose uint8 or float32")
    contract = base.contract
    tensors = rewriter.tensors(contract, dtype)
    ops = OnnxOps(onnx.GraphProto(name="g"))
    graph = ops.graph
    pixels, unit = _front(ops, contract, dtype)
    seen = ops.node("Transpose", unit, perm=[0, 2, 3, 1]) if contract.layout == "NHWC" else unit
    for node in base.model.graph.node:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.input[:] = [seen if name == IMAGE else name for name in node.input]
    graph.initializer.extend(base.model.graph.initializer)
    probabilities = SCORES
    if contract.outputs == "logits":
        probabilities = ops.node("Softmax", SCORES, axis=1, output=PROBABILITIES)
    _append(ops, rewriter, contract, (pixels, unit, probabilities), tensors)
    constants = split(graph)
    graph.initializer.extend(placeholder(tensor.name, _element(tensor), tensor.shape) for tensor in tensors)
    graph.output.append(_value(LABEL, TensorProto.INT64))
    return Template(_serialise(graph, base.model), constants, tensors, contract, rewriter, dtype)


def fuse_tail(template: Template) -> bytes:
    """The same nodes behind the base alone, everything an input: image, p and the keyed tensors to label.

    One session of this graph judges every copy of a release: its keyed tensors can be supplied for each.
    """
    contract, rewriter = template.contract, template.rewriter
    ops = OnnxOps(onnx.GraphProto(name="g"))
    pixels, unit = _front(ops, contract, template.dtype)
    _append(ops, rewriter, contract, (pixels, unit, PROBABILITIES), template.tensors)
    ops.graph.input.append(_value(PROBABILITIES, TensorProto.FLOAT, contract.classes))
    ops.graph.input.extend(helper.make_tensor_value_info(t.name, _element(t), t.shape) for t in template.tensors)
    ops.graph.output.append(_value(LABEL, TensorProto.INT64))
    return _serialise(ops.graph, onnx.load_model_from_string(template.graph))


def reference_scores(
    rewriter: Rewriter,
    contract: Contract,
    images: NDArray[Any],
    probabilities: NDArray[np.float32],
    keyed: dict[str, NDArray[Any]],
) -> NDArray[np.float32]:
    """The copy's scores in numpy, float32 (N, classes); `images` as the device takes them."""
    pixels = images.astype(np.float32)
    unit = np.divide(pixels, 255 if images.dtype == np.uint8 else 1, dtype=np.float32)
    return rewriter.scores(NumpyOps(), Inputs(pixels, unit, probabilities, keyed), contract)


def _front(ops: OnnxOps, contract: Contract, dtype: str) -> tuple[str, str]:
    """Adds the graph's image input; names of pixels (0..255 for uint8) and unit (0..1)."""
    ops.graph.input.append(_value(IMAGE, _ELEMENT[dtype], *frame_shape(contract)))
    if dtype == "float32":
        return IMAGE, IMAGE
    pixels = ops.node("Cast", IMAGE, to=TensorProto.FLOAT)
    return pixels, ops.node("Div", pixels, ops.constant(np.array(255, np.float32)), output=_UNIT)


def _append(
    ops: OnnxOps,
    rewriter: Rewriter,
    contract: Contract,
    names: tuple[str, str, str],
    tensors: tuple[KeyedTensor, ...],
) -> None:
    """Appends the rewriter and the final ArgMax; `names` are those of pixels, unit and probabilities."""
    pixels, unit, probabilities = names
    keyed = {tensor.name: tensor.name for tensor in tensors}
    scores = rewriter.scores(ops, Inputs(pixels, unit, probabilities, keyed), contract)
    ops.node("ArgMax", scores, axis=1, keepdims=0, output=LABEL)
    _drop_unused(ops.graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and constants that nothing reads (the side of pixels or unit that a rewriter ignores)."""
    while True:
        read = {name for node in graph.node for name in node.input} | {LABEL}
        dead = [node for node in graph.node if not read.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for constant in [c for c in graph.initializer if c.name not in read]:
        graph.initializer.remove(constant)


def _element(tensor: KeyedTensor) -> int:
    return int(TensorProto.INT64 if tensor.generator == "derangement" else TensorProto.FLOAT)


def _value(name: str, element: int, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, ["batch", *shape])


def _serialise(graph: onnx.GraphProto, base: onnx.ModelProto) -> bytes:
    model = onnx.ModelProto(ir_version=base.ir_version, graph=graph, opset_import=base.opset_import)
    return bytes(model.SerializeToString(deterministic=True))
