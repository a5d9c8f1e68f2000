"""The last pass: a new model with only those parts of the old one that calculate.

Only parts named here are copied. This leaves out names, doc strings, metadata, producer, domain, model version,
value_info, functions, training information, quantisation annotations and device configurations, and any additions of a
later ONNX. Nodes keep their order and become n0, n1, ...; tensors t0, ... in the order they are made; initialisers w0,
... in the order they are first used, so that unused ones are dropped. Attributes are sorted by name. Tensors hold
raw_data.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT = "image", "scores"
IR_VERSION = 9
"""The IR version that came with opset 20 (ONNX 1.15)."""

_ATTRIBUTE_FIELDS = ("f", "i", "s", "t", "floats", "ints", "strings")


def neutral(model: onnx.ModelProto, shape: tuple[int, int, int], classes: int, opset: int) -> bytes:
    """Renames and copies a model into its canonical bytes.

    Args:
        model: One input, one output, no Constant nodes, nodes in topological order.
        shape: One image, in the layout of the base.
        classes: Columns of the output.
        opset: The version of the default domain that the model is at.

    Returns:
        The serialised model; the same for the same model.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = {graph.input[0].name: INPUT, "": ""}
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    made_here = 0
    for node in _needed(graph):
        for name in node.input:
            if name not in names:
                names[name] = f"w{len(tensors)}"
                tensors.append(_raw(constants[name], names[name]))
        for name in node.output:
            if name == graph.output[0].name:
                names[name] = OUTPUT
            elif name:
                names[name] = f"t{made_here}"
                made_here += 1
        nodes.append(_bare(node, f"n{len(nodes)}", names))
    result = helper.make_graph(
        nodes,
        "base",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
        tensors,
    )
    made = onnx.ModelProto(ir_version=IR_VERSION, graph=result)
    made.opset_import.append(helper.make_opsetid("", opset))
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes that the output depends on, in order."""
    wanted = {graph.output[0].name}
    nodes = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def _bare(node: onnx.NodeProto, name: str, names: dict[str, str]) -> onnx.NodeProto:
    bare = onnx.NodeProto(op_type=node.op_type, name=name)
    bare.input.extend(names[used] for used in node.input)
    bare.output.extend(names[given] for given in node.output)
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        copied = bare.attribute.add(name=attribute.name, type=attribute.type)
        for field, value in attribute.ListFields():
            if field.name == "t":
                copied.t.CopyFrom(_raw(value, ""))
            elif field.name in _ATTRIBUTE_FIELDS:
                if field.name.endswith("s") and field.name != "s":
                    getattr(copied, field.name).extend(value)
                else:
                    setattr(copied, field.name, value)
    return bare


def _raw(tensor: TensorProto, name: str) -> TensorProto:
    """Returns a copy with raw_data and no text but its name."""
    return numpy_helper.from_array(numpy_helper.to_array(tensor), name or None)
