"""The guard against hostile ONNX: its checks run before any tool reads a file.

The guard reads bytes and the protobuf in them, and calls no checker, inference or runtime. Every refusal is a
`RefusedError`: `MALFORMED` for bytes that contradict themselves, `TOO_LARGE` above a limit, `MODEL` for a graph with
features that Variegate does not accept, `CONTRACT` for the wrong number of inputs or outputs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from variegate.export.intake.external import inline_external
from variegate.keys.errors import Refusal, RefusedError

OPSET_RANGE = (9, 26)
"""The oldest and newest opset of the default domain that is read."""

_DOMAINS = ("", "ai.onnx")

CONVERT = 'where you trust the file: safetensors.torch.save_file(torch.load(f, weights_only=True), "x.safetensors")'
_PICKLED = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"})

# The element types taken. The others (strings, complex, float8, 4-bit) have no place in a classifier.
_ITEM_TYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT64: np.uint64,
    TensorProto.BOOL: np.bool_,
}
# The typed field that holds an element type when raw_data does not (onnx.proto, TensorProto).
_TYPED_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}
_DATA_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")

_PLAIN_ATTRIBUTES = frozenset(
    {
        onnx.AttributeProto.FLOAT,
        onnx.AttributeProto.INT,
        onnx.AttributeProto.STRING,
        onnx.AttributeProto.TENSOR,
        onnx.AttributeProto.FLOATS,
        onnx.AttributeProto.INTS,
        onnx.AttributeProto.STRINGS,
    }
)
_CONTROL_FLOW = frozenset({"Loop", "If", "Scan", "SequenceMap"})
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits for a base.

    Attributes:
        file_bytes: Bytes of the file with all its external data, and of a `.pt2` archive when unpacked.
        nodes: Nodes of the graph.
        initialisers: Initialisers of the graph.
        tensor_bytes: Bytes of all tensors of the graph together, at batch 1.
        archive_entries: Entries of a `.pt2` archive.
        process_bytes: Address space of the process that converts, in bytes.
        seconds: Wall-clock time of the conversion.
    """

    file_bytes: int = 512 << 20
    nodes: int = 20_000
    initialisers: int = 20_000
    tensor_bytes: int = 2 << 30
    archive_entries: int = 20_000
    process_bytes: int = 12 << 30
    seconds: float = 300.0


def read_file(path: Path, limits: Limits) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
        RefusedError: `MALFORMED` when it cannot be read or is no regular file, `TOO_LARGE` past the limit.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise RefusedError(Refusal.MALFORMED, f"{path} is not a regular file")
            data = file.read(limits.file_bytes + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise RefusedError(Refusal.MALFORMED, f"cannot read {path}: {reason}") from error
    except ValueError as error:
        raise RefusedError(Refusal.MALFORMED, "the name of a file holds a zero byte") from error
    if len(data) > limits.file_bytes:
        raise RefusedError(
            Refusal.TOO_LARGE,
            f"{path} is larger than {limits.file_bytes} bytes",
            hint="raise Limits.file_bytes if the file is yours",
        )
    return data


def guarded(data: bytes, folder: Path | None, limits: Limits) -> onnx.ModelProto:
    """Parses a model and refuses parts that no later step should see.

    Args:
        data: The bytes of the `.onnx` file.
        folder: Where external data may lie, or None where there can be none.
        limits: The caps.

    Returns:
        The model, with all external data taken in.

    Raises:
        RefusedError: The file is hostile, damaged, or uses unsupported features.
    """
    if len(data) > limits.file_bytes:
        raise RefusedError(Refusal.TOO_LARGE, f"the model is larger than {limits.file_bytes} bytes")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        _check_model(model)
        _check_graph(model.graph, limits)
        inline_external(list(_tensors(model.graph)), folder, limits.file_bytes - len(data))
        for tensor in _tensors(model.graph):
            _check_tensor(tensor)
    except (DecodeError, UnicodeDecodeError, MemoryError) as error:
        raise RefusedError(
            Refusal.MALFORMED, "the file does not parse as an ONNX model", hint="export the model again"
        ) from error
    return model


def _refuse(message: str, hint: str | None = None, refusal: Refusal = Refusal.MODEL) -> RefusedError:
    return RefusedError(refusal, message, hint=hint)


def _check_model(model: onnx.ModelProto) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise _refuse("the model holds no graph", refusal=Refusal.MALFORMED)
    if model.functions:
        raise _refuse("the model holds local functions", "inline them: onnx.inliner.inline_local_functions")
    if model.training_info:
        raise _refuse("the model holds training information", "export it for inference")
    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    oldest, newest = OPSET_RANGE
    if len(versions) != 1:
        raise _refuse("the model must import the default operator set once", refusal=Refusal.MALFORMED)
    if not oldest <= versions[0] <= newest:
        raise _refuse(
            f"the model uses opset {versions[0]}; opsets {oldest} to {newest} are read",
            "export it at opset 20",
        )


def _check_graph(graph: onnx.GraphProto, limits: Limits) -> None:
    if graph.sparse_initializer:
        raise _refuse("the graph holds sparse initialisers", "make them dense before the export")
    for what, count, cap in (
        ("nodes", len(graph.node), limits.nodes),
        ("initialisers", len(graph.initializer), limits.initialisers),
    ):
        if count > cap:
            raise _refuse(f"the graph has {count} {what}; {cap} are allowed", refusal=Refusal.TOO_LARGE)
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    for what, values in (("input", inputs), ("output", list(graph.output))):
        if len(values) != 1:
            raise _refuse(
                f"the graph has {len(values)} {what}s, not one",
                "export a model with one image input and one score output",
                Refusal.CONTRACT,
            )
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise _refuse(f"a {kind} is not a plain tensor", "only dense tensors are taken")
    for node in graph.node:
        _check_node(node)


def _check_node(node: onnx.NodeProto) -> None:
    if node.domain not in _DOMAINS:
        raise _refuse(
            f"operator {_shown(node.domain)}.{_shown(node.op_type)} is not a standard one",
            "write it with operators of the default ONNX domain, or export without such fusions",
        )
    if node.op_type in _CONTROL_FLOW:
        raise _refuse(f"operator {node.op_type} holds a subgraph", "unroll it before the export")
    if node.op_type in _RANDOM:
        raise _refuse(f"operator {node.op_type} is random", "a base must answer the same each time")
    for attribute in node.attribute:
        if attribute.ref_attr_name or attribute.type not in _PLAIN_ATTRIBUTES:
            raise _refuse(f"operator {_shown(node.op_type)} has an attribute that is not a plain value")
        # Set fields count as well as the declared type: a tool may look at either.
        if attribute.HasField("g") or attribute.graphs:
            raise _refuse(f"operator {_shown(node.op_type)} holds a subgraph", "unroll it before the export")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors or attribute.tensors:
            raise _refuse(f"operator {_shown(node.op_type)} has an attribute that is not a plain value")
        if attribute.HasField("tp") or attribute.type_protos:
            raise _refuse(f"operator {_shown(node.op_type)} has a type for an attribute")


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.HasField("segment"):
        raise _refuse("a tensor is split in segments", refusal=Refusal.MALFORMED)
    item = _ITEM_TYPES.get(tensor.data_type)
    if item is None:
        raise _refuse(f"tensor type {tensor.data_type} is not taken", "use float32, float16 or integers")
    if any(size < 0 for size in tensor.dims):
        raise _refuse("a tensor has a negative size", refusal=Refusal.MALFORMED)
    elements = prod(tensor.dims)  # Python integers: no overflow
    filled = [name for name in _DATA_FIELDS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        fits = not filled and len(tensor.raw_data) == elements * np.dtype(item).itemsize
    else:
        field = _TYPED_FIELDS.get(tensor.data_type, "int32_data")
        fits = set(filled) <= {field} and len(getattr(tensor, field)) == elements
    if not fits:
        raise _refuse("a tensor's data does not fit its shape", refusal=Refusal.MALFORMED)


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _shown(name: str) -> str:
    """Returns a name from the file, safe to print: a hostile one could drive the terminal."""
    return "".join(c if c.isalnum() or c in "._-" else "?" for c in name[:60])


def refuse_pickles(path: Path) -> None:
    """Refuses a file whose suffix says that it may be a pickle, without opening it.

    Raises:
        RefusedError: `MALFORMED`, with the way to convert it.
    """
    if path.suffix.lower() in _PICKLED:
        raise RefusedError(Refusal.MALFORMED, f"{path} may be a pickle, which runs code when it is read", hint=CONVERT)
