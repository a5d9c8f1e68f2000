"""The Open Inference Protocol v2 for one input and one output, as bytes in and bytes out. No I/O.

Sources: KServe, "Open Inference Protocol (V2 Inference Protocol)", sections "HTTP/REST"; the binary tensor data
extension of Triton ("protocol/extension_binary_data.md").
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError
from variegate.serve.limits import Spec
from variegate.serve.tensors import DATATYPES, from_bytes, from_json

MODEL, INPUT, OUTPUT = "copy", "image", "label"
"""The one model, its input and its output."""
_MAX_ID = 256
_RANK_EXTRA = 1
_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that was understood.

    Attributes:
        frames: (N, *shape) of the spec's dtype; a read-only view of the body where the data were binary.
        id: To be echoed, or None.
        binary: Whether the labels are wanted as binary data.
    """

    frames: NDArray[Any]
    id: str | None
    binary: bool


def parse_infer(body: bytes | bytearray, header_length: int | None, spec: Spec) -> InferRequest:
    """Reads the body of an infer request.

    Args:
        body: Hostile bytes.
        header_length: Of `Inference-Header-Content-Length`: bytes of JSON before the binary data; None for JSON only.
        spec: The frames that the copy takes.

    Returns:
        The request. Values of float32 are not checked; the runtime does.

    Raises:
        RefusedError: `INPUT` for a wrong request, `TOO_LARGE` for too many frames or too much JSON.
    """
    end = len(body) if header_length is None else header_length
    if not 0 <= end <= len(body):
        _refuse("inference header is longer than the body")
    if end > spec.json_bytes:
        raise RefusedError(Refusal.TOO_LARGE, f"JSON of more than {spec.json_bytes} bytes", hint="send binary data")
    whole = _members(_json(body[:end]), "request", {"id", "parameters", "inputs", "outputs"})
    name = whole.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > _MAX_ID):
        _refuse(f"id is not a string of at most {_MAX_ID} characters")
    parameters = _members(whole.get("parameters", _NOTHING), "parameters", {"binary_data_output"})
    binary = _flag(parameters, "binary_data_output", default=False)
    if "outputs" in whole:
        binary = _output(whole["outputs"], default=binary)
    rest = None if header_length is None else memoryview(body)[end:]
    return InferRequest(_input(whole.get("inputs"), rest, spec), name, binary)


def infer_reply(labels: NDArray[np.int64], request: InferRequest, version: str) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        labels: int64 (N,).
        request: The request that is answered.
        version: Of the model.

    Returns:
        The body, and the length of its JSON where binary data follow it.
    """
    start = f'{{"model_name":"{MODEL}","model_version":"{version}",'
    if request.id is not None:
        start += f'"id":{json.dumps(request.id)},'
    start += f'"outputs":[{{"name":"{OUTPUT}","datatype":"INT64","shape":[{len(labels)}],'
    if not request.binary:
        values = ",".join(map(str, labels.tolist()))
        return f'{start}"data":[{values}]}}]}}'.encode("ascii"), None
    raw = labels.astype("<i8", copy=False).tobytes()
    header = f'{start}"parameters":{{"binary_data_size":{len(raw)}}}}}]}}'.encode("ascii")
    return header + raw, len(header)


def server_metadata(version: str) -> bytes:
    """The body of `GET /v2`."""
    return _dump({"name": "variegate", "version": version, "extensions": ["binary_tensor_data"]})


def model_metadata(spec: Spec) -> bytes:
    """The body of `GET /v2/models/copy`: the format of a query and its answer, without buyer, device, budget or scores.

    The protocol has no field for the number of classes and of frames, so they are in `parameters`.
    """
    return _dump(
        {
            "name": MODEL,
            "versions": [spec.version],
            "platform": "variegate_sealed",
            "inputs": [{"name": INPUT, "datatype": DATATYPES[spec.dtype], "shape": [-1, *spec.shape]}],
            "outputs": [{"name": OUTPUT, "datatype": "INT64", "shape": [-1]}],
            "parameters": {"classes": spec.classes, "max_batch": spec.batch},
        }
    )


def _input(inputs: object, rest: memoryview | None, spec: Spec) -> NDArray[Any]:
    tensor = _members(_only(inputs, "inputs"), "input", {"name", "shape", "datatype", "parameters", "data"})
    if tensor.get("name") != INPUT:
        _refuse(f'the one input is named "{INPUT}"')
    if tensor.get("datatype") != DATATYPES[spec.dtype]:
        _refuse(f"input is not of datatype {DATATYPES[spec.dtype]}")
    shape = _shape(tensor.get("shape"), spec)
    parameters = _members(tensor.get("parameters", _NOTHING), "parameters of the input", {"binary_data_size"})
    if "binary_data_size" not in parameters:
        if rest is not None and len(rest):
            _refuse("binary data that no tensor asks for")
        return from_json(tensor.get("data"), shape, spec.dtype)
    size = parameters["binary_data_size"]
    if rest is None:
        _refuse("binary_data_size without the header Inference-Header-Content-Length")
    if "data" in tensor:
        _refuse("input has both data and binary_data_size")
    if type(size) is not int or size != len(rest):
        _refuse("binary_data_size is not the number of bytes after the inference header")
    return from_bytes(rest, shape, spec.dtype)


def _shape(value: object, spec: Spec) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != len(spec.shape) + _RANK_EXTRA:
        _refuse(f"shape is not [N, {', '.join(map(str, spec.shape))}]")
    if not all(type(side) is int for side in value) or tuple(value[1:]) != spec.shape or value[0] < 1:
        _refuse(f"shape is not [N, {', '.join(map(str, spec.shape))}]")
    if value[0] > spec.batch:
        raise RefusedError(Refusal.TOO_LARGE, f"a query has at most {spec.batch} frames")
    return tuple(value)


def _output(outputs: object, *, default: bool) -> bool:
    if outputs == []:  # the protocol: none named means all
        return default
    tensor = _members(_only(outputs, "outputs"), "output", {"name", "parameters"})
    if tensor.get("name") != OUTPUT:
        _refuse(f'the one output is named "{OUTPUT}"')
    parameters = _members(tensor.get("parameters", _NOTHING), "parameters of the output", {"binary_data"})
    return _flag(parameters, "binary_data", default=default)


def _only(items: object, what: str) -> object:
    if not isinstance(items, list) or len(items) != 1:
        _refuse(f"{what} is not an array of one tensor")
    return items[0]


def _members(value: object, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{what} is not a JSON object")
    if not value.keys() <= known:
        # The client's own word is not repeated: it may hold anything.
        allowed = ", ".join(sorted(known))
        _refuse(f"{what} has a member that is not supported; supported: {allowed}")
    return value


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    flag = parameters.get(name, default)
    if not isinstance(flag, bool):
        _refuse(f"{name} is not true or false")
    return flag


def _json(text: bytes | bytearray) -> object:
    try:
        # Of bytes, json.loads would also take UTF-16 and UTF-32.
        value: object = _decoder.decode(text.decode("utf-8"))
    except (ValueError, RecursionError):
        _refuse("body is not the JSON of an inference request")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _constant(_name: str) -> Never:
    raise ValueError("NaN and Infinity are not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _refuse(text: str) -> Never:
    raise RefusedError(Refusal.INPUT, text)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
