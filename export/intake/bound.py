"""Limits the memory that a graph needs, before any tool that folds constants runs on it.

A few bytes of ONNX can ask for any amount of memory: ConstantOfShape, Expand, Tile, Range, Pad or Resize of a constant.
onnxsim would calculate it. So every tensor's size is inferred first, without calculating the tensor.
"""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import checker, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from variegate.export.intake.contract import image_input
from variegate.export.intake.guard import Limits
from variegate.export.intake.probe import refusing
from variegate.keys.errors import Refusal, RefusedError

_LARGEST_ITEM = 8  # bytes; the element types taken have no larger one
_SMALL = 1024  # elements: shape arithmetic works on a handful
# None of these makes more than the product of its inputs' sizes, but ConstantOfShape, which is looked at.
_SHAPE_ARITHMETIC = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Gather",
        "Identity",
        "Mul",
        "Reshape",
        "Slice",
        "Squeeze",
    }
    | {"Constant", "Sub", "Transpose", "Unsqueeze"}
)


def bounded(model: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    """Checks a guarded model against the ONNX standard and infers every shape.

    Args:
        model: A guarded model.
        limits: `tensor_bytes` caps the sum of all tensors, at batch 1 or the base's own fixed batch.

    Returns:
        A copy with every shape in `value_info`, at batch 1 or the fixed batch.

    Raises:
        RefusedError: `MODEL` for a graph that breaks the standard, `TOO_LARGE` for one that needs too much or
            whose need cannot be determined.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    # Only inferred shapes count: shapes written in the file are claims.
    del probe.graph.value_info[:]
    first = image_input(probe).type.tensor_type.shape.dim
    if first and first[0].dim_value < 1:
        first[0].dim_value = 1
    probe.graph.output[0].type.tensor_type.ClearField("shape")
    with refusing("the graph breaks the ONNX standard", "onnx.checker.check_model says where"):
        inferred = shape_inference.infer_shapes(probe, check_type=True, strict_mode=True, data_prop=True)
        checker.check_model(inferred)  # it insists on an output shape, so it comes second
        while _unknown(inferred.graph) and _fold_small(inferred):
            inferred = shape_inference.infer_shapes(inferred, check_type=True, strict_mode=True, data_prop=True)
    _check_total(inferred.graph, limits)
    return inferred


def _fold_small(model: onnx.ModelProto) -> bool:
    """Computes shape arithmetic that inference does not follow, such as older exporters' padding chains.

    Returns:
        Whether anything was folded. The model is a probe at one batch size, so that Shape is a constant too.
    """
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer if prod(t.dims) <= _SMALL}
    known = _known(graph)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        value = _small_value(node, constants, known, opsets)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output[0]] = value
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    folded = len(nodes) < len(graph.node)
    nodes = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return folded


def _small_value(
    node: onnx.NodeProto,
    constants: dict[str, NDArray[np.generic]],
    known: dict[str, tuple[int, ...]],
    opsets: dict[str, int],
) -> NDArray[np.generic] | None:
    if node.op_type == "Shape" and not node.attribute and node.input[0] in known:
        return np.asarray(known[node.input[0]], dtype=np.int64)
    if node.op_type not in _SHAPE_ARITHMETIC or any(name and name not in constants for name in node.input):
        return None
    if node.op_type == "ConstantOfShape" and prod(map(int, constants[node.input[0]].ravel())) > _SMALL:
        return None
    feeds = {name: constants[name] for name in node.input if name}
    results: Any = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
    value = results[0]
    return value if isinstance(value, np.ndarray) and value.size <= _SMALL else None


def _known(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that inference found in full."""
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            known[value.name] = tuple(max(dim.dim_value, 0) for dim in dims)
    return known


def _unknown(graph: onnx.GraphProto) -> str | None:
    """Returns the operator of a node whose size is not known, if there is one."""
    known = _known(graph)
    return next((n.op_type for n in graph.node if any(o and o not in known for o in n.output)), None)


def _check_total(graph: onnx.GraphProto, limits: Limits) -> None:
    operator = _unknown(graph)
    if operator is not None:
        raise RefusedError(
            Refusal.TOO_LARGE,
            f"the size of what {operator} makes cannot be known in advance",
            hint="export with a fixed image size, and simplify the graph with onnxsim first",
        )
    total = sum(_LARGEST_ITEM * prod(shape) for shape in _known(graph).values())
    if total > limits.tensor_bytes:
        raise RefusedError(
            Refusal.TOO_LARGE,
            f"the graph needs {total} bytes of tensors; {limits.tensor_bytes} are allowed",
            hint="raise Limits.tensor_bytes if the base is yours",
        )
