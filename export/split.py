"""Takes the weights out of a graph: they are stored beside it, where a device can use them in place.

Small tensors and short integer ones stay, such as shapes and axes: onnxruntime reads them while it infers shapes, and
they reveal no more than the graph itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from variegate.keys.artefact import DTYPES

LOCATION = "k"
"""Where every external initialiser of a copy is said to be; a device supplies them from memory."""

_LEAST_BYTES = 32
_LEAST_INTEGERS = 64


def split(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Makes the weights of a graph external, in place.

    Args:
        graph: Its initialisers of 32 bytes and more lose their data; those of integers from 65 elements on.

    Returns:
        The weights, by name and in the graph's order.
    """
    out = {}
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = math.prod(tensor.dims)
        few = count <= _LEAST_INTEGERS if dtype.kind in "iu" else count * dtype.itemsize < _LEAST_BYTES
        if dtype.name in DTYPES and not few:
            out[tensor.name] = np.ascontiguousarray(numpy_helper.to_array(tensor))
            tensor.CopyFrom(placeholder(tensor.name, tensor.data_type, tuple(tensor.dims)))
    return out


def placeholder(name: str, element: int, shape: tuple[int, ...]) -> TensorProto:
    """An initialiser without data, which the device supplies from memory."""
    out = TensorProto(name=name, data_type=element, dims=shape, data_location=TensorProto.EXTERNAL)
    length = helper.tensor_dtype_to_np_dtype(element).itemsize * math.prod(shape)
    for key, value in (("location", LOCATION), ("length", str(length))):
        out.external_data.add(key=key, value=value)
    return out
