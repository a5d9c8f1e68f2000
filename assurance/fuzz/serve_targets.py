"""Targets in `serve` that do no I/O: bodies of infer requests, compared with a simple reading of the same bytes."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assurance.fuzz import mutation
from assurance.fuzz.target import ACCEPTED, Target, need, pure, verdict
from variegate.serve import encodings, oip, socket_wire
from variegate.serve.limits import Spec
from variegate.serve.oip import InferRequest
from variegate.serve.socket_wire import QueryHead

_SHAPE = (1, 2, 3)
_LIMIT = 1 << 16
_SPECS = {
    dtype: Spec(shape=_SHAPE, dtype=dtype, classes=10, batch=4, version="1", json_bytes=4096, body_bytes=8192)
    for dtype in ("uint8", "float32")
}
_NAMES = {"uint8": "UINT8", "float32": "FP32"}


def _request(dtype: str, **changes: Any) -> bytes:
    tensor = {"name": "image", "shape": [2, *_SHAPE], "datatype": _NAMES[dtype], "data": [7] * 12, **changes}
    return json.dumps({"id": "a", "inputs": [tensor], "outputs": [{"name": "label"}]}).encode()


def _infer_json(data: bytes) -> str:
    """Both dtypes; an accepted body must have the values that `json` and numpy read."""
    said = []
    for dtype, spec in _SPECS.items():
        found: list[InferRequest] = []
        said.append(verdict(lambda found=found, spec=spec: found.append(oip.parse_infer(data, None, spec))))  # type: ignore[misc]
        if said[-1] == ACCEPTED:
            tensor = json.loads(data)["inputs"][0]
            with np.errstate(over="ignore"):
                wanted = np.array(tensor["data"], np.float64).astype(dtype).reshape(tensor["shape"])
            _same(found[0], wanted)
    return ", ".join(said)


def _infer_binary(data: bytes) -> str:
    """Two bytes say how long the JSON is."""
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    said = []
    for dtype, spec in _SPECS.items():
        found: list[InferRequest] = []
        said.append(verdict(lambda found=found, spec=spec: found.append(oip.parse_infer(body, length, spec))))  # type: ignore[misc]
        if said[-1] != ACCEPTED:
            continue
        tensor = json.loads(body[:length])["inputs"][0]
        if "data" in tensor:
            need(len(body) == length, "bytes that belong to nothing")
            continue
        kind = "B" if dtype == "uint8" else "f"
        values = struct.unpack(f"<{(len(body) - length) // struct.calcsize(kind)}{kind}", body[length:])
        _same(found[0], np.array(values, dtype).reshape(tensor["shape"]))
    return ", ".join(said)


def _same(request: InferRequest, wanted: NDArray[Any]) -> None:
    need(request.frames.dtype == wanted.dtype, "another dtype")
    need(request.frames.shape == wanted.shape and wanted.shape[1:] == _SHAPE, "another shape")
    need(1 <= len(wanted) <= 4, "too many frames")
    need(np.array_equal(request.frames, wanted, equal_nan=wanted.dtype == np.float32), "other values")
    body, split = oip.infer_reply(np.zeros(len(wanted), np.int64), request, "1")
    reply = json.loads(body[:split])
    need(reply.get("id") == request.id and request.binary == (split is not None), "an answer to something else")


def _binary_requests() -> list[bytes]:
    out = []
    for dtype, datatype in _NAMES.items():
        raw = np.arange(12, dtype=dtype).tobytes()
        tensor = {"name": "image", "shape": [2, *_SHAPE], "datatype": datatype}
        header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}).encode()
        out.append(struct.pack("<H", len(header)) + header + raw)
    plain = _request("uint8", parameters={})
    return [*out, struct.pack("<H", len(plain)) + plain]


def _encodings(data: bytes) -> str:
    """The first byte says which; a reference that reads the stream in small steps."""
    how, body = (data[0] & 1, data[1:]) if data else (0, b"")
    found: list[bytes | bytearray] = []
    said = verdict(lambda: found.append(encodings.decoded(body, (b"deflate", b"gzip")[how], _LIMIT)))
    if said == ACCEPTED:
        stream = zlib.decompressobj((15, 31)[how])
        wanted = b"".join(stream.decompress(body[i : i + 7]) for i in range(0, len(body), 7)) + stream.flush()
        need(stream.eof and not stream.unused_data and found[0] == wanted, "another body")
        need(len(wanted) <= _LIMIT, "a body beyond its limit")
    return said


def _streams() -> list[bytes]:
    text = _request("uint8")
    return [
        b"\x00" + zlib.compress(text),
        b"\x01" + gzip.compress(text, mtime=0),
        b"\x01" + gzip.compress(bytes(1 << 20), mtime=0),
        b"\x00" + zlib.compress(bytes(_LIMIT)),
    ]


def _label_head(data: bytes) -> str:
    """Heads of the label socket; the server always reads exactly as many bytes."""
    head = data[: socket_wire.QUERY_BYTES].ljust(socket_wire.QUERY_BYTES, b"\0")
    found: list[QueryHead] = []
    said = verdict(lambda: found.append(socket_wire.query_head(head, _SPECS["uint8"])))
    magic, number, count, rest = struct.unpack("<4sIII", head)
    good = magic == b"VGQ1" and 1 <= count <= 4 and rest == 0
    need(found == ([QueryHead(number, count)] if good else []), "a head was misread")
    return said


_WORDS = (
    b'"inputs":',
    b'"outputs":',
    b'"parameters":',
    b'"binary_data_size":',
    b'"binary_data":',
    b'"binary_data_output":true',
    b'"data":',
    b'"shape":',
    b"null",
    b"true",
    b"1e400",
    b"-0.0",
    b"NaN",
    b"\\ud800",
    b"[[[",
    b"256",
    b"99999999999999999999999",
)
TARGETS = (
    Target(
        name="infer_json",
        opened=pure(_infer_json),
        seeds=lambda: [
            _request("uint8"),
            _request("float32", data=[[[[0.5] * 3] * 2]] * 2),
            _request("float32").replace(b"7, 7", b"1e400, -0.0"),
        ],
        mutate=mutation.of_json,
        words=_WORDS,
    ),
    Target(
        name="infer_binary",
        opened=pure(_infer_binary),
        seeds=_binary_requests,
        mutate=mutation.behind(2, mutation.of_json),
        words=_WORDS,
    ),
    Target(name="encodings", opened=pure(_encodings), seeds=_streams, mutate=mutation.compressed),
    Target(
        name="label_head",
        opened=pure(_label_head),
        seeds=lambda: [struct.pack("<4sIII", b"VGQ1", 7, n, 0) for n in (1, 4, 5)],
        cap=32,
    ),
)
