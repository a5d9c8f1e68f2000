"""From a guarded ONNX model to the canonical base graph: small passes, each with its rule in its docstring.

Canonical: one input "image", float32 (batch, *layout) in [0, 1]; one output "scores", float32 (batch, classes); opset
20; every tensor raw; no name, text or metadata of the seller's. The same model gives the same bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter

from variegate.export.intake import contract as contracts
from variegate.export.intake.bound import bounded
from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.intake.guard import Limits, guarded
from variegate.export.intake.neutral import neutral
from variegate.export.intake.probe import Runner, check_parity, random_images, refusing
from variegate.keys.errors import Refusal, RefusedError

OPSET = 20
PROBES = 12
"""Random images a base is judged on; a multiple of three, as batches of three are tried."""

_FLAT_RANK, _MAP_RANK = 2, 4
_RE_EXPORT = "re-export with a free batch axis (dynamic_shapes or dynamic_axes for axis 0)"


def canonicalise(model: onnx.ModelProto, spec: InputSpec, limits: Limits) -> tuple[bytes, Contract]:
    """Runs all passes over a guarded model and checks the result against the model.

    Args:
        model: The result of `guarded`; it is not changed.
        spec: The seller's statements about the base.
        limits: The caps.

    Returns:
        The canonical bytes and the result of their check.

    Raises:
        RefusedError: `CONTRACT`, `MODEL`, `TOO_LARGE` or `PARITY`, with a hint.
    """
    shape = contracts.image_shape(model, spec)
    inferred = bounded(model, limits)
    fixed = contracts.image_input(model).type.tensor_type.shape.dim[0].dim_value
    outputs = contracts.decided_outputs(inferred, spec)

    with _freeing(fixed):
        data, classes, scores = _converted(model, inferred, spec, limits)
    contracts.check_scores(scores, outputs, spec.class_names)
    channels, height, width = shape if spec.layout == "NCHW" else (shape[2], shape[0], shape[1])
    return data, Contract(
        layout=spec.layout,
        channels=channels,
        height=height,
        width=width,
        classes=classes,
        class_names=spec.class_names,
        outputs=outputs,
    )


def _converted(
    model: onnx.ModelProto, inferred: onnx.ModelProto, spec: InputSpec, limits: Limits
) -> tuple[bytes, int, NDArray[np.float32]]:
    """Runs the passes and compares; returns canonical bytes, classes and the scores of the probes."""
    shape = contracts.image_shape(model, spec)
    fixed = contracts.image_input(model).type.tensor_type.shape.dim[0].dim_value
    work = to_opset(model)
    lift_constants(work.graph)
    drop_constant_inputs(work.graph)
    if fixed:
        free_reshapes(work.graph, bounded(work, limits).graph, fixed)
    classes = flatten_scores(work.graph, inferred.graph.output[0])
    work = simplified(free_batch(work, classes))
    lift_constants(work.graph)
    # After onnxsim, which would otherwise fold it into weights and make rounding depend on its version.
    prepend_normalisation(work.graph, spec)
    data = neutral(work, shape, classes, OPSET)
    bounded(guarded(data, None, limits), limits)
    return data, classes, _compared(model, data, spec, shape)


@contextmanager
def _freeing(fixed: int) -> Iterator[None]:
    """Where the batch was fixed, says so when the graph no longer works with a free one."""
    try:
        yield
    except RefusedError as error:
        if fixed and error.refusal in (Refusal.MODEL, Refusal.PARITY):
            raise contracts.refused(f"the batch is fixed at {fixed} and cannot be freed", _RE_EXPORT) from error
        raise


def to_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rule: the default domain is at `OPSET`; nothing else changes. Returns a copy."""
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    work = copy.deepcopy(model)
    del work.opset_import[:]
    work.opset_import.append(helper.make_opsetid("", version))
    if version == OPSET:
        return work
    with refusing(f"opset {version} cannot be converted to {OPSET}", f"export the base at opset {OPSET}"):
        converted: onnx.ModelProto = version_converter.convert_version(work, OPSET)
        return converted


def lift_constants(graph: onnx.GraphProto) -> None:
    """Rule: no Constant nodes; each becomes an initialiser of the same name."""
    nodes = []
    for node in graph.node:
        if node.op_type != "Constant":
            nodes.append(node)
            continue
        tensor = _constant(node)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    _set_nodes(graph, nodes)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    kinds: dict[str, type[np.generic]] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in kinds:
        raise RefusedError(
            Refusal.MODEL, "a Constant holds something other than numbers", hint="export without strings"
        )
    return numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), dtype=kinds[attribute.name]))


def drop_constant_inputs(graph: onnx.GraphProto) -> None:
    """Rule: an initialiser is no input (before IR version 4 each had to be listed as one too)."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [copy.deepcopy(value) for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def free_reshapes(graph: onnx.GraphProto, inferred: onnx.GraphProto, fixed: int) -> None:
    """Rule: a Reshape of (N, ...) to a constant (N, ...), N the fixed batch, copies that axis instead.

    Exporters bake a fixed batch into the targets of Reshape. Whether freeing it is right is judged by running
    batches of 1 and 3 afterwards, not here.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    leading = {
        value.name: value.type.tensor_type.shape.dim[0].dim_value
        for value in (*inferred.input, *inferred.value_info)
        if value.type.tensor_type.shape.dim
    }
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants or leading.get(node.input[0]) != fixed:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).copy()
        if target.size and target[0] == fixed and target.all():  # no zero there yet: allowzero means nothing
            target[0] = 0
            node.input[1] = f"{node.input[1]}/free{index}"
            graph.initializer.append(numpy_helper.from_array(target, node.input[1]))
            attributes = [copy.deepcopy(a) for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(attributes)


def flatten_scores(graph: onnx.GraphProto, output: onnx.ValueInfoProto) -> int:
    """Rule: scores of (batch, classes, 1, 1) get one Flatten; other ranks than 2 are refused.

    Args:
        graph: Changed in place.
        output: The output with its inferred shape.

    Returns:
        The number of classes.

    Raises:
        RefusedError: `CONTRACT` for another rank or element type.
    """
    tensor = output.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise contracts.refused("the scores are not float32", "export float32 scores, not labels or half precision")
    sizes: list[int] = [dim.dim_value for dim in tensor.shape.dim]
    if len(sizes) == _FLAT_RANK:
        return sizes[1]
    if len(sizes) != _MAP_RANK or sizes[2:] != [1, 1]:
        raise contracts.refused(
            f"the scores have shape (batch, {', '.join(map(str, sizes[1:]))})", "export (batch, classes)"
        )
    flat = f"{output.name}/flat"
    graph.node.append(helper.make_node("Flatten", [output.name], [flat], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(flat, onnx.TensorProto.FLOAT, None))
    return sizes[1]


def free_batch(model: onnx.ModelProto, classes: int) -> onnx.ModelProto:
    """Rule: the batch axis of input and output is free, and no shape between them is claimed."""
    graph = model.graph
    dims = contracts.image_input(model).type.tensor_type.shape.dim
    dims[0].Clear()
    dims[0].dim_param = "batch"
    del graph.value_info[:]
    output = helper.make_tensor_value_info(graph.output[0].name, onnx.TensorProto.FLOAT, ["batch", classes])
    graph.output[0].CopyFrom(output)
    return model


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rule: onnxsim's default passes: constants folded, batch normalisation fused, idle nodes removed."""
    import onnxsim  # noqa: PLC0415 - seconds to import; only a conversion pays

    with refusing("onnxsim cannot simplify the graph", _RE_EXPORT):
        result, _ = onnxsim.simplify(model, check_n=0, import_custom_schemas=False)
    copied = onnx.ModelProto()
    copied.ParseFromString(result.SerializeToString())
    return copied


def prepend_normalisation(graph: onnx.GraphProto, spec: InputSpec) -> None:
    """Rule: `(scale x - mean) / std` in front as at most two nodes, Sub of mean/scale and Mul by scale/std.

    A step that changes nothing is left out; scale is 255 for "byte" and 1 for "unit".
    """
    channels = max(len(spec.mean), len(spec.std), 1)
    mean = np.asarray(spec.mean or (0.0,) * channels, dtype=np.float64) / spec.scale
    gain = spec.scale / np.asarray(spec.std or (1.0,) * channels, dtype=np.float64)
    steps: list[tuple[str, NDArray[np.float64]]] = []
    if mean.any():
        steps.append(("Sub", mean))
    if (gain != 1).any():
        steps.append(("Mul", gain))
    source = name = graph.input[0].name
    nodes = []
    for op, values in steps:
        shaped = values.reshape((-1, 1, 1) if spec.layout == "NCHW" else (-1,)).astype(np.float32)
        constant, result = f"{name}/{op}/value", f"{name}/{op}"
        graph.initializer.append(numpy_helper.from_array(shaped, constant))
        nodes.append(helper.make_node(op, [source, constant], [result]))
        source = result
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used == name:
                node.input[index] = source
    _set_nodes(graph, [*nodes, *graph.node])


def _compared(model: onnx.ModelProto, data: bytes, spec: InputSpec, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Runs the seller's graph at its own batch and the canonical one at 1 and 3, and returns the scores."""
    fixed = contracts.image_input(model).type.tensor_type.shape.dim[0].dim_value
    images = random_images(PROBES, shape)
    own = max(fixed, 1)
    # A fixed batch larger than the probes is filled up with copies of them.
    filled = np.resize(images, (own * ceil(PROBES / own), *shape))
    expected = Runner(model.SerializeToString())(contracts.base_pixels(filled, spec), batch=own)
    expected = expected[:PROBES].reshape(PROBES, -1)
    contracts.check_finite(expected)
    runner = Runner(data)
    check_parity(expected, runner(images, batch=1))
    try:
        check_parity(expected, runner(images, batch=3))
    except RefusedError as error:
        raise contracts.refused(
            "the base's answer for an image depends on the others of its batch", "export in eval mode; " + _RE_EXPORT
        ) from error
    return expected


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
