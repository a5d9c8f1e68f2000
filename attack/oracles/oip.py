"""The Open Inference Protocol v2 from the client's side, as bytes in and bytes out. No I/O.

Sources: KServe, "Open Inference Protocol (V2 Inference Protocol)", section "HTTP/REST"; the binary tensor data
extension of Triton ("protocol/extension_binary_data.md").
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracles.frames import MAX_CLASSES, check_labels
from variegate.keys.errors import Refusal, RefusedError

BINARY = "binary_tensor_data"
"""Name of the extension."""
_DTYPES = {"UINT8": "uint8", "FP32": "float32"}
_DATATYPES = {name: datatype for datatype, name in _DTYPES.items()}
_INTEGERS = {"INT64": "<i8", "INT32": "<i4", "UINT8": "<u1", "UINT32": "<u4"}
_SIDES, _MAX_SIDE = 4, 1 << 14
_MAX_NAME, _MAX_TEXT = 256, 200


@dataclass(frozen=True, kw_only=True)
class Model:
    """The content of a model's metadata.

    Attributes:
        input: Name of its one input.
        output: Name of its one output.
        dtype: Of a frame: "uint8" or "float32".
        shape: Of a frame, (C, H, W).
        classes: Number of classes, where the server says it.
        batch: Most frames of one query, where the server says it.
    """

    input: str
    output: str
    dtype: str
    shape: tuple[int, int, int]
    classes: int | None
    batch: int | None


def has_binary(body: bytes) -> bool:
    """Whether a server's metadata, the answer to `GET /v2`, name the extension for binary data.

    Raises:
        RefusedError: `MALFORMED`.
    """
    extensions = _object(_json(body), "metadata").get("extensions", [])
    return isinstance(extensions, list) and BINARY in extensions


def model_of(body: bytes) -> Model:
    """Reads a model's metadata.

    Args:
        body: Hostile bytes: the answer to `GET /v2/models/NAME`.

    Raises:
        RefusedError: `MALFORMED` for anything but metadata, `CONTRACT` for a model that takes no pictures or gives
            no labels.
    """
    whole = _object(_json(body), "metadata")
    taken, given = _only(whole, "inputs"), _only(whole, "outputs")
    if str(taken.get("datatype")) not in _DTYPES or str(given.get("datatype")) not in _INTEGERS:
        raise RefusedError(Refusal.CONTRACT, "the model is not one from UINT8 or FP32 pictures to integer labels")
    shape = taken.get("shape")
    if not isinstance(shape, list) or len(shape) != _SIDES or not all(type(side) is int for side in shape):
        raise RefusedError(Refusal.CONTRACT, "the model's input is not of shape [N, C, H, W]")
    channels, height, width = shape[1:]
    if not all(1 <= side <= _MAX_SIDE for side in shape[1:]):
        raise RefusedError(Refusal.CONTRACT, "the model's frames have sides that are not valid")
    parameters = whole.get("parameters", {})
    more = parameters if isinstance(parameters, dict) else {}
    return Model(
        input=_name(taken),
        output=_name(given),
        dtype=_DTYPES[str(taken["datatype"])],
        shape=(channels, height, width),
        classes=_classes(more.get("classes")),
        batch=_count(more.get("max_batch")),
    )


def infer_request(frames: NDArray[Any], model: Model, *, binary: bool) -> tuple[bytes, int | None]:
    """A request for labels.

    Args:
        frames: (N, *shape) of the model's dtype.
        model: The model.
        binary: Whether data are sent and wanted as bytes.

    Returns:
        The body, and the length of its JSON where bytes follow it.
    """
    tensor: dict[str, object] = {
        "name": model.input,
        "shape": list(frames.shape),
        "datatype": _DATATYPES[model.dtype],
    }
    if not binary:
        tensor["data"] = frames.ravel().tolist()
        return json.dumps({"inputs": [tensor], "outputs": [{"name": model.output}]}).encode(), None
    raw = np.ascontiguousarray(frames, np.dtype(model.dtype).newbyteorder("<")).tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    wanted = {"name": model.output, "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    return header + raw, len(header)


def labels_of(body: bytes, header_length: int | None, count: int, model: Model, classes: int) -> NDArray[np.int64]:
    """Reads an answer.

    Args:
        body: Hostile bytes.
        header_length: Bytes of JSON before the binary data; None for JSON alone.
        count: Frames that were asked.
        model: The model that answers.
        classes: Number of classes.

    Returns:
        int64 (N,).

    Raises:
        RefusedError: `MALFORMED`.
    """
    end = len(body) if header_length is None else header_length
    if not 0 <= end <= len(body):
        _refuse("an inference header that is longer than the body")
    tensor = _only(_object(_json(body[:end]), "answer"), "outputs")
    kind = _INTEGERS.get(str(tensor.get("datatype")))
    if tensor.get("name") != model.output or kind is None or tensor.get("shape") != [count]:
        _refuse(f"no {count} labels")
    if header_length is None:
        data = tensor.get("data")
        if not isinstance(data, list) or len(data) != count or not all(type(item) is int for item in data):
            _refuse(f"no {count} labels")
        try:
            return check_labels(np.array(data, np.int64), count, classes)
        except OverflowError:
            _refuse("labels that are not classes")
    raw = body[end:]
    if len(raw) != count * np.dtype(kind).itemsize:
        _refuse("binary data of another length than its labels")
    return check_labels(np.frombuffer(raw, kind).astype(np.int64), count, classes)


def error_text(body: bytes) -> str:
    """The server's error message, as far as it can be shown to a person; empty if there is none."""
    try:
        text = _object(_json(body), "error").get("error")
    except RefusedError:
        return ""
    if not isinstance(text, str):
        return ""
    return "".join(c for c in text[:_MAX_TEXT] if c.isascii() and c.isprintable())


def _only(whole: dict[str, Any], what: str) -> dict[str, Any]:
    items = whole.get(what)
    if not isinstance(items, list) or len(items) != 1:
        _refuse(f"{what} that are not one tensor")
    return _object(items[0], what)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"no JSON object as {what}")
    return value


def _name(tensor: dict[str, Any]) -> str:
    name = tensor.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        _refuse("a tensor without a name")
    return name


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < math.inf else None


def _classes(value: object) -> int | None:
    count = _count(value)
    if count is not None and count > MAX_CLASSES:
        raise RefusedError(Refusal.CONTRACT, f"the model has more than {MAX_CLASSES} classes")
    return count


def _json(text: bytes) -> object:
    try:
        value: object = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        _refuse("no JSON")
    return value


def _refuse(text: str) -> NoReturn:
    raise RefusedError(Refusal.MALFORMED, f"the server answers with {text}")
