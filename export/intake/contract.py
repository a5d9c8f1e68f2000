"""The seller's statements about a base's input, and the result of their check."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError

Layout = Literal["NCHW", "NHWC"]
Outputs = Literal["logits", "probabilities"]

CHANNEL_COUNTS = (1, 3, 4)
MAX_VALUES = 1 << 24
"""Values of one image, 64 MiB of float32: checks answer a dozen at once."""
MINIMUM_CLASSES = 2
SUM_TOLERANCE = 1e-3
"""How far the sum of a row of probabilities may lie from 1."""

_IMAGE_RANK = 4
_SHAPE_ONLY = frozenset({"Identity", "Flatten", "Reshape", "Squeeze"})
_SOFTMAX_PER_AXIS_OPSET = 13
_SCALES = {"unit": 1.0, "byte": 255.0}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The seller's statements about the base's input and output.

    Attributes:
        layout: Order of the base's input axes.
        value_range: The base expects pixels as 0..1 ("unit") or as 0..255 ("byte"); float32 either way.
        mean: Per channel, in units of `value_range`, subtracted first; empty when the base normalises itself.
        std: Per channel, in units of `value_range`, divided by next; empty likewise.
        outputs: The kind of the scores; "auto" reads it from the graph (see `decided_outputs`).
        class_names: One name for each class, in order, or none.
    """

    layout: Layout = "NCHW"
    value_range: Literal["unit", "byte"] = "unit"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    outputs: Literal["auto", "logits", "probabilities"] = "auto"
    class_names: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """The value of a white pixel before mean and std: 1 or 255."""
        return _SCALES[self.value_range]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The checked contract of a canonical base: images (batch, *layout) in, scores (batch, classes) out."""

    layout: Layout
    channels: int
    height: int
    width: int
    classes: int
    class_names: tuple[str, ...]
    outputs: Outputs

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image in the contract's layout."""
        if self.layout == "NCHW":
            return (self.channels, self.height, self.width)
        return (self.height, self.width, self.channels)


def refused(message: str, hint: str) -> RefusedError:
    """Returns the error for a base that breaks the contract."""
    return RefusedError(Refusal.CONTRACT, message, hint=hint)


def image_shape(model: onnx.ModelProto, spec: InputSpec) -> tuple[int, int, int]:
    """Checks the input of a guarded model and returns the shape of one image.

    Raises:
        RefusedError: `CONTRACT`: not float32, not rank 4, sizes left open, or a channel count other than 1,
            3, 4.
    """
    tensor = image_input(model).type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise refused("the input is not float32", "export the base with a float32 image input")
    dims = tensor.shape.dim
    if len(dims) != _IMAGE_RANK:
        raise refused(f"the input has rank {len(dims)}, not 4", "export with an image batch of four axes")
    if any(dim.dim_value < 1 for dim in dims[1:]):
        raise refused("the image size is left open", "export with fixed channels, height and width")
    first, second, third = (dim.dim_value for dim in dims[1:])
    check_shape((first, second, third), spec)
    return (first, second, third)


def check_shape(shape: tuple[int, int, int], spec: InputSpec) -> None:
    """Checks the shape of one image against the specification.

    Raises:
        RefusedError: `CONTRACT`: a side below 1, an image too large, a wrong channel count, or a mean or std
            that does not fit it.
    """
    if min(shape) < 1:
        raise refused("every side of an image must be at least 1", "give channels, height and width as 3,32,32")
    if prod(shape) > MAX_VALUES:
        raise refused(f"an image has more than {MAX_VALUES} values", "use smaller images")
    if spec.layout not in ("NCHW", "NHWC") or spec.value_range not in _SCALES:
        raise refused("layout or value range is unknown", "use NCHW or NHWC, and unit or byte")
    channels = shape[0] if spec.layout == "NCHW" else shape[2]
    if channels not in CHANNEL_COUNTS:
        other = "NHWC" if spec.layout == "NCHW" else "NCHW"
        raise refused(f"{channels} channels in layout {spec.layout}; 1, 3 or 4 are taken", f"is the layout {other}?")
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (0, channels):
            raise refused(f"{name} has {len(values)} values for {channels} channels", f"give {channels} values or none")
        if not all(map(isfinite, values)):
            raise refused(f"{name} is not finite", "give finite numbers")
    if any(value <= 0 for value in spec.std):
        raise refused("std must be above zero", "give the standard deviation of each channel")


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Returns the one input of a guarded model that is no initialiser."""
    constants = {tensor.name for tensor in model.graph.initializer}
    value: onnx.ValueInfoProto = next(v for v in model.graph.input if v.name not in constants)
    return value


def base_pixels(images: NDArray[np.float32], spec: InputSpec) -> NDArray[np.float32]:
    """Converts images in [0, 1] to the input of the seller's base, without the graph: the reference in checks.

    Args:
        images: float32, (batch, *layout).
        spec: The specification, already checked.
    """
    axes = (1, -1, 1, 1) if spec.layout == "NCHW" else (1, 1, 1, -1)
    pixels = images.astype(np.float64) * spec.scale
    if spec.mean:
        pixels -= np.reshape(spec.mean, axes)
    if spec.std:
        pixels /= np.reshape(spec.std, axes)
    return pixels.astype(np.float32)


def decided_outputs(model: onnx.ModelProto, spec: InputSpec) -> Outputs:
    """Decides the kind of the scores.

    With "auto" they are probabilities when the last operator, looking through those that only change the shape, is a
    Softmax over the class axis. All else counts as logits: LogSoftmax, because its rows are logits shifted by a
    constant, so that softmax gives the probabilities back; Sigmoid, because its rows do not sum to one, so that only
    their order has a meaning, and a softmax keeps the order.

    Raises:
        RefusedError: `CONTRACT` when the graph ends in labels (ArgMax, TopK) instead of scores.
    """
    if spec.outputs not in ("auto", "logits", "probabilities"):
        raise refused("outputs is unknown", "use auto, logits or probabilities")
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(model.graph.output[0].name)
    while node is not None and node.op_type in _SHAPE_ONLY:
        node = makers.get(node.input[0])
    if node is not None and node.op_type in ("ArgMax", "ArgMin", "TopK"):
        raise refused(f"the base ends in {node.op_type}", "export the scores, without the step to a label")
    if spec.outputs != "auto":
        return spec.outputs
    if node is not None and node.op_type == "Softmax" and _over_classes(model, node):
        return "probabilities"
    return "logits"


def _over_classes(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a Softmax runs over the class axis of (batch, classes) or (batch, classes, 1, 1)."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _SOFTMAX_PER_AXIS_OPSET:  # it flattened from the axis on, 1 by default
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        return axis == 1
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    values = (*model.graph.value_info, *model.graph.output)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    rank = ranks.get(node.output[0], 2)
    return axis % rank == 1 if rank else False


def check_scores(scores: NDArray[np.float32], outputs: Outputs, class_names: tuple[str, ...]) -> int:
    """Checks scores of random images and returns the number of classes.

    Args:
        scores: float32, (batch, classes).
        outputs: Their kind according to the seller.
        class_names: The seller's names for them.

    Raises:
        RefusedError: `CONTRACT`, saying what to change.
    """
    classes: int = scores.shape[1]
    if classes < MINIMUM_CLASSES:
        raise refused(f"the base has {classes} class", "a base needs two scores or more; split a single sigmoid in two")
    check_finite(scores)
    sums = scores.sum(axis=1, dtype=np.float64)
    if outputs == "probabilities" and (scores.min() < 0 or np.abs(sums - 1).max() > SUM_TOLERANCE):
        raise refused("the scores are not probabilities: rows must be non-negative and sum to 1", "say logits")
    if class_names and (len(class_names) != classes or len(set(class_names)) != classes or "" in class_names):
        raise refused(
            f"{len(class_names)} class names for {classes} classes", f"give {classes} different names or none"
        )
    return classes


def check_finite(scores: NDArray[np.float32]) -> None:
    """Refuses scores that are not finite.

    Raises:
        RefusedError: `CONTRACT`.
    """
    if not np.isfinite(scores).all():
        raise refused("the base gives scores that are not finite", "check mean, std, value range and the weights")
