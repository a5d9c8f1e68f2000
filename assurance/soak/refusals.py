"""Requests of `assurance.soak.hostile`, each of which must get a certain refusal."""

from __future__ import annotations

import gzip
import json

import numpy as np

from assurance.soak.clients import PATH, request
from assurance.soak.ledger import BATCH

GONE, LATE = 0, -1
"""In place of a status: the connection ended, or nothing came in time; the latter is never allowed."""
AWAY = frozenset({GONE, 503})
"""The door was closed, or the connection."""
FRAME = np.zeros((1, 3, 32, 32), np.uint8)


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A whole request for labels.

    Args:
        body: Any bytes.
        headers: More than the first two.
        length: The value of `Content-Length`; None for the true one, -1 to leave it out.
    """
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", *headers]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _tensor(**changes: object) -> dict[str, object]:
    return {"name": "image", "shape": [1, 3, 32, 32], "datatype": "UINT8", "data": FRAME.ravel().tolist(), **changes}


def _json(**changes: object) -> bytes:
    return json.dumps({"inputs": [_tensor(**changes)]}).encode()


def _binary(size: int, split: int | None = None, **changes: object) -> bytes:
    tensor = _tensor(parameters={"binary_data_size": size}, **changes)
    del tensor["data"]
    head = json.dumps({"inputs": [tensor]}).encode()
    return post(head + FRAME.tobytes(), f"Inference-Header-Content-Length: {len(head) if split is None else split}")


def refusals() -> dict[str, tuple[bytes, frozenset[int]]]:
    """Single requests by name, and what may answer them: a refusal, or none as the door was closed."""
    wrong, large = frozenset({400}) | AWAY, frozenset({413}) | AWAY
    bomb = gzip.compress(bytes(64 << 20), 9)
    nested = gzip.compress(gzip.compress(bytes(1 << 20)))
    good = _json()
    return {
        "not json": (post(b"\x00\xff not json"), wrong),
        "nested json": (post(b"[" * 200_000), wrong),
        "cut json": (post(good[:-3]), wrong),
        "duplicate member": (post(good[:-1] + b',"inputs":[]}'), wrong),
        "nan": (post(good.replace(b"[0, ", b"[NaN, ")), wrong),
        "huge number": (post(_json(data=[10**400] + [0] * 3071)), wrong),
        "negative value": (post(_json(data=[-1] * 3072)), wrong),
        "fractions": (post(_json(data=[0.5] * 3072)), wrong),
        "wrong shape": (post(_json(shape=[1, 32, 32, 3])), wrong),
        "huge shape": (post(_json(shape=[1 << 40, 3, 32, 32])), large),
        "negative shape": (post(_json(shape=[-1, 3, 32, 32])), wrong),
        "too few values": (post(_json(data=[0] * 10)), wrong),
        "wrong dtype": (post(_json(datatype="FP64")), wrong),
        "wrong name": (post(_json(name="../../etc/passwd")), wrong),
        "no inputs": (post(b'{"inputs":[]}'), wrong),
        "batch too large": (request(np.zeros((BATCH + 1, 3, 32, 32), np.uint8), "x"), large | {400}),
        "binary too short": (_binary(3073), wrong),
        "split beyond": (_binary(3072, 10**9), wrong),
        "split too long": (_binary(3072, 10**30), wrong),
        "split no number": (post(good, "Inference-Header-Content-Length: -5"), wrong),
        "gzip bomb": (post(bomb, "Content-Encoding: gzip"), large),
        "gzip twice": (post(nested, "Content-Encoding: gzip"), wrong | {413}),
        "gzip cut": (post(gzip.compress(good)[:-5], "Content-Encoding: gzip"), wrong),
        "unknown encoding": (post(good, "Content-Encoding: br"), frozenset({415}) | AWAY),
        "media type": (post(good, "Content-Type: text/plain"), frozenset({415}) | AWAY),
        "web page": (post(good, "Origin: https://example.org"), frozenset({403}) | AWAY),
        "stated body": (post(b"", length=10**11), large),
        "endless headers": (b"GET /v2 HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000, frozenset({431, 400}) | AWAY),
        "long header": (b"GET /v2 HTTP/1.1\r\nX-A: " + b"b" * 100_000, frozenset({431, 400}) | AWAY),
        "two lengths": (post(good, f"Content-Length: {len(good)}"), wrong),
        "both framings": (post(good, "Transfer-Encoding: chunked"), wrong),
        "other path": (
            b"GET /v2/models/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            frozenset({404, 400}) | AWAY,
        ),
        "other method": (b"DELETE " + PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", frozenset({405}) | AWAY),
        "tls hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), wrong),
    }
