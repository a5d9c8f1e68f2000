"""The ASGI application: some fixed paths in front of one label port.

It uses ASGI directly: a dozen fixed paths need no framework, which would add a package, and time to every query.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from variegate.attest.evidence import NONCE_BYTES, TYP
from variegate.keys.errors import LimitError
from variegate.serve import encodings, oip
from variegate.serve.answers import INPUT, TOO_LARGE, BusyError, Fault, fault_of
from variegate.serve.buffer_space import BufferSpace, Claim
from variegate.serve.dispatcher import Dispatcher, Query
from variegate.serve.health import Health
from variegate.serve.limits import Spec
from variegate.serve.metrics import CONTENT_TYPE, Metrics
from variegate.serve.peers import Permit, peer_of
from variegate.serve.protocol import PERMIT
from variegate.serve.workshop import Workshop

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Pages = dict[bytes, tuple[str, Callable[[], tuple[int, bytes]]]]
"""By path: its kind for the metrics, its status and its body."""

EVIDENCE_PATH = b"/v1/evidence/"
_JSON, _BINARY = b"application/json", b"application/octet-stream"
_TAKEN = {_JSON, _BINARY}
_ONCE = {b"content-length", b"content-encoding", b"content-type", b"inference-header-content-length"}
_MAX_DIGITS = 12
_NOT_FOUND = Fault(404, INPUT, "http", "no such path or model")
_METHOD = Fault(405, INPUT, "http", "method not allowed")
_MEDIA = Fault(415, INPUT, "http", "body is neither application/json nor application/octet-stream")
_ENCODING = Fault(415, INPUT, "http", "content encoding is none of gzip, deflate and identity")
_BROWSER = Fault(403, INPUT, "http", "requests of web pages are not served")
_NONCE = Fault(400, INPUT, "http", "a nonce is 8 to 64 bytes, hexadecimal")
_HEADERS = Fault(400, INPUT, "http", "a header is malformed or given twice")
_MAX_LOOP_BYTES = 64 << 10
"""JSON up to here is parsed where it arrives, in about a millisecond; handing it to a thread would take as long."""


class _GoneError(Exception):
    """The client left while its body was read."""


class _FaultError(Exception):
    """Carries a fault up to where it is answered."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class App:
    """Serves the Open Inference Protocol v2.

    Args:
        spec: The frames that the copy takes.
        room: For the bytes of requests.
        workshop: Decompresses and parses bodies that would block the loop.
        dispatcher: Answers queries.
        health: Knows whether it can.
        metrics: Counts.
        version: Of Variegate, for the server's metadata.
        show_metrics: Whether /metrics is served by this, or by `watch` only.
        evidence: Signs evidence for a nonce, or None where none is given.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        room: BufferSpace,
        workshop: Workshop[oip.InferRequest],
        dispatcher: Dispatcher,
        health: Health,
        metrics: Metrics,
        version: str,
        show_metrics: bool,
        evidence: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._spec, self._dispatcher, self._health, self._metrics = spec, dispatcher, health, metrics
        self._room, self._workshop, self._evidence = room, workshop, evidence
        self._too_large = Fault(413, TOO_LARGE, "too-large", f"body of more than {spec.body_bytes} bytes")
        model = b"/v2/models/" + oip.MODEL.encode("ascii")
        bases = (model, model + b"/versions/" + spec.version.encode("ascii"))
        metadata = oip.model_metadata(spec)
        self._pages: Pages = {
            b"/v2": ("metadata", lambda: (200, oip.server_metadata(version))),
            b"/v2/health/live": ("health", lambda: (200, b'{"live":true}')),
            b"/v2/health/ready": ("health", self._ready),
        }
        for base in bases:
            self._pages[base] = ("metadata", lambda: (200, metadata))
            self._pages[base + b"/ready"] = ("health", self._model_ready)
        self._watched: Pages = {path: page for path, page in self._pages.items() if page[0] == "health"}
        self._watched[b"/metrics"] = ("metrics", lambda: (200, metrics.exposition()))
        if show_metrics:
            self._pages[b"/metrics"] = self._watched[b"/metrics"]
        self._infer_paths = frozenset(base + b"/infer" for base in bases)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        if path in self._infer_paths:
            if scope["method"] == "POST":
                await self._infer(scope, receive, send)
            else:
                await self._fault(send, "infer", _METHOD, (b"allow", b"POST"))
        elif path.startswith(EVIDENCE_PATH) and self._evidence is not None:
            await self._attest(scope, send, self._evidence)
        else:
            await self._page(self._pages, scope, send)

    async def watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request on the operators' port: metrics and health, and no other."""
        del receive
        if scope["type"] == "http":
            await self._page(self._watched, scope, send)

    async def _page(self, pages: Pages, scope: Scope, send: Send) -> None:
        path: bytes = scope["raw_path"]
        if path in pages:
            kind, page = pages[path]
            if scope["method"] in {"GET", "HEAD"}:
                status, body = page()
                await self._send(send, kind, status, body, CONTENT_TYPE if kind == "metrics" else _JSON)
            else:
                await self._fault(send, kind, _METHOD, (b"allow", b"GET, HEAD"))
        else:
            await self._fault(send, "other", _NOT_FOUND)

    def _ready(self) -> tuple[int, bytes]:
        ready = self._health.ready
        return (200 if ready else 503), b'{"ready":%s}' % (b"true" if ready else b"false")

    def _model_ready(self) -> tuple[int, bytes]:
        status, _ = self._ready()
        return status, json.dumps({"name": oip.MODEL, "ready": status == 200}).encode("ascii")  # noqa: PLR2004

    async def _attest(self, scope: Scope, send: Send, sign: Callable[[bytes], bytes]) -> None:
        """Evidence (RFC 9711) for the nonce, hexadecimal, that ends the path."""
        if scope["method"] != "GET":
            await self._fault(send, "evidence", _METHOD, (b"allow", b"GET"))
            return
        try:
            nonce = bytes.fromhex(scope["raw_path"].removeprefix(EVIDENCE_PATH).decode("ascii"))
        except ValueError:
            nonce = b""
        if len(nonce) not in NONCE_BYTES:
            await self._fault(send, "evidence", _NONCE)
            return
        try:
            token = await self._dispatcher.evidence(_permit(scope).peer, lambda: sign(nonce))
        except Exception as error:  # noqa: BLE001 - as in `_infer`
            fault = fault_of(error)
            if isinstance(error, LimitError):  # not the rate of queries
                fault = replace(fault, text=error.message)
            await self._fault(send, "evidence", fault)
        else:
            await self._send(send, "evidence", 200, token, TYP.encode("ascii"))

    async def _infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        claim = self._room.claim()
        try:
            headers = _headers(scope["headers"])
            permit = _permit(scope)
            request = await self._request(receive, headers, permit, claim)

            def hold(query: Query) -> None:
                permit.on_lost = lambda: self._dispatcher.give_up(query)

            try:
                labels = await self._dispatcher.labels(permit.peer, request.frames, hold)
            finally:
                permit.on_lost = None
            reply, split = oip.infer_reply(labels, request, self._spec.version)
        except _GoneError:
            return
        except _FaultError as error:
            # A client that waits for the go-ahead of its body would otherwise not know whether to send it now.
            extra = ((b"connection", b"close"),) if error.fault is self._too_large else ()
            await self._fault(send, "infer", error.fault, *extra)
        except Exception as error:  # noqa: BLE001 - fault_of knows ours, and says nothing of others
            await self._fault(send, "infer", fault_of(error))
        else:
            # Counted before it is sent: a client that does not take its answer has still been given labels.
            self._metrics.answered(len(labels), time.perf_counter() - began)
            extra = () if split is None else ((b"inference-header-content-length", str(split).encode("ascii")),)
            await self._send(send, "infer", 200, reply, _JSON if split is None else _BINARY, *extra)
        finally:
            claim.release()

    async def _request(
        self, receive: Receive, headers: dict[bytes, bytes], permit: Permit, claim: Claim
    ) -> oip.InferRequest:
        """The request, read only while it would find room to wait for its answer."""
        spec, peer = self._spec, permit.peer
        self._check_room(peer)
        encoding = headers.get(b"content-encoding", b"identity")
        # Compressed bodies that arrive leave room for one to be opened, or a crowd of them would let none be answered.
        leave = 0 if encoding == b"identity" else spec.body_bytes
        body = await self._body(receive, headers.get(b"content-length"), claim, leave)
        split = _number(headers.get(b"inference-header-content-length"))

        def read() -> oip.InferRequest:
            plain = encodings.decoded(body, encoding, spec.body_bytes, claim.add)
            return oip.parse_infer(plain, split, spec)

        if encoding == b"identity" and (len(body) if split is None else split) <= _MAX_LOOP_BYTES:
            request = read()
        else:
            self._check_room(peer)  # again: a body takes its time

            def hold(give_up: Callable[[], None]) -> None:
                permit.on_lost = give_up

            try:
                request = await self._workshop.do(peer, max(1, len(body)), read, hold)
            finally:
                permit.on_lost = None
        # Bytes held from here on: binary frames are a view of the whole plain body, others are an array of their own.
        claim.hold(request.frames.nbytes + (0 if split is None else split))
        return request

    def _check_room(self, peer: str) -> None:
        workshop = self._workshop
        if not self._dispatcher.has_room(peer, workshop.waiting(), workshop.waiting(peer)):
            raise BusyError("too many queries are waiting")

    async def _body(self, receive: Receive, stated: bytes | None, claim: Claim, leave: int) -> bytes | bytearray:
        """The whole body, within its own bound and that of all bodies together, less what it must leave free."""
        if stated is not None and (_number(stated) or 0) > self._spec.body_bytes:
            raise _FaultError(self._too_large)  # before `receive`, which would ask the client to go on sending
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise _GoneError
            chunk: bytes = message.get("body", b"")
            if len(parts) + len(chunk) > self._spec.body_bytes:
                raise _FaultError(self._too_large)
            claim.add(len(chunk), leave=leave)
            if not message.get("more_body", False):
                if not parts:
                    return chunk
                parts += chunk
                return parts
            parts += chunk

    async def _fault(self, send: Send, kind: str, fault: Fault, *extra: tuple[bytes, bytes]) -> None:
        self._metrics.refusals[fault.reason] += 1
        wait = fault.retry_after
        if wait is not None:
            extra = (*extra, (b"retry-after", wait))
        await self._send(send, kind, fault.status, fault.body, _JSON, *extra)

    async def _send(
        self, send: Send, kind: str, status: int, body: bytes, content_type: bytes, *extra: tuple[bytes, bytes]
    ) -> None:
        self._metrics.requests[kind, status] += 1
        length = str(len(body)).encode("ascii")
        headers = [(b"content-type", content_type), (b"content-length", length), *extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers that matter for infer, each given once at most."""
    out: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in _ONCE:
            if name in out:
                raise _FaultError(_HEADERS)
            out[name] = value.strip()
        elif name == b"origin":
            # A page in the owner's browser could otherwise spend the budget: such a request needs no preflight.
            raise _FaultError(_BROWSER)
    kind = out.get(b"content-type", _JSON).partition(b";")[0].strip().lower()
    if kind not in _TAKEN:
        raise _FaultError(_MEDIA)
    encoding = out.get(b"content-encoding")
    if encoding is not None:
        out[b"content-encoding"] = encoding.lower()
        if not encodings.known(encoding.lower()):
            raise _FaultError(_ENCODING)
    return out


def _number(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise _FaultError(_HEADERS)
    return int(value)


def _permit(scope: Scope) -> Permit:
    permit = scope.get("extensions", {}).get(PERMIT)
    if isinstance(permit, Permit):
        return permit
    client = scope.get("client")
    return Permit(peer_of(client[0]) if client else "unknown", lambda: None)
