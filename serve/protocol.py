"""Extends uvicorn's HTTP connections with limits, so that clients cannot hold them open, overfill or confuse them.

uvicorn waits for ever for a request's first byte, its head and its body, and with httptools it limits neither the
number of headers nor their size. The code follows the callbacks of asyncio and httptools: data received, message begin,
headers complete, message complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from variegate.serve.limits import ServeLimits
from variegate.serve.metrics import Metrics
from variegate.serve.peers import Permit, peer_of_certificate

_TEXTS = {
    400: "malformed HTTP",
    408: "request took too long",
    421: "no such host here",
    431: "request head too large",
}
_MAX_HEAD_DROPPED = 4 << 20
_MAX_BODY_DROPPED = 1 << 30
"""Bytes that are read and dropped behind an answer, within the time that their request had in any case."""
PERMIT = "variegate.permit"
"""Key of the connection's permit in `scope["extensions"]`."""


class _RefusedHeadError(Exception):
    """Ends the parsing of a message. httptools wraps it."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        config: Of uvicorn.
        state: Of uvicorn: connections and tasks.
        limits: Times and sizes.
        metrics: Counts refusals.
        permit: Of this connection; released with it.
        ours: Whether a value of the header Host is accepted.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        *,
        limits: ServeLimits,
        metrics: Metrics,
        permit: Permit,
        ours: Callable[[bytes], bool],
    ) -> None:
        super().__init__(config, state, {})
        self._limits, self._metrics, self._permit, self._ours = limits, metrics, permit, ours
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_message = self._in_head = False
        self._head_bytes = self._raw_bytes = self._unwanted = 0
        self._completed = self._offered = self._leaving = False
        self._framed: set[bytes] = set()
        self._status = 400

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake, if any, is done."""
        super().connection_made(cast("asyncio.Transport", transport))
        secured = transport.get_extra_info("ssl_object")
        certificate = None if secured is None else secured.getpeercert(binary_form=True)
        if certificate:
            self._permit.peer = peer_of_certificate(certificate)
        self._expect(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side left, or we closed."""
        self._permit.release()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = None
        super().connection_lost(exc)
        # uvicorn leaves this one running when a connection breaks, and with it all that it refers to.
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        lost, self._permit.on_lost = self._permit.on_lost, None
        if lost is not None:
            lost()

    def data_received(self, data: bytes) -> None:
        """Parses within bounds."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._leaving:
            self._drop(len(data))
            return
        if self._deadline is None and not self._in_message:
            self._expect(self._limits.head_s)  # also for bytes that begin no message, as empty lines do
        self._completed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            if self._offered and not self.transport.is_closing():
                self._decline(data[stopped.args[0] :])
            else:
                self._refuse(400)
        except httptools.HttpParserError:
            self._refuse(self._status)
        else:
            if not self._completed and (self._in_head or not self._in_message):
                # A header without an end is not seen by `on_header`.
                self._raw_bytes += len(data)
                if self._raw_bytes > self._limits.max_head_bytes and not self.transport.is_closing():
                    self._refuse(431)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise _RefusedHeadError
        super().on_message_begin()
        extensions: dict[str, dict[object, object]] = {PERMIT: cast("dict[object, object]", self._permit)}
        self.scope["extensions"] = extensions
        self._in_message = self._in_head = True
        self._head_bytes = self._unwanted = 0
        self._framed = set()
        self._offered = False
        if self._deadline is None:
            self._expect(self._limits.head_s)

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer of a chunked body; trailers are dropped."""
        self._head(len(name) + len(value))
        if not self._in_head:
            return
        if len(self.headers) >= self._limits.max_headers:
            self._status = 431
            raise _RefusedHeadError
        lower = name.lower()
        if lower in {b"content-length", b"transfer-encoding", b"host"}:
            # If a proxy reads the end of the body differently, the rest is a second request to it (RFC 9112, 6.3).
            if lower in self._framed or (lower != b"host" and self._framed & {b"content-length", b"transfer-encoding"}):
                raise _RefusedHeadError
            self._framed.add(lower)
        if lower == b"transfer-encoding" and value.lower() != b"chunked":
            raise _RefusedHeadError
        if lower == b"host" and not self._ours(value):
            self._status = 421
            raise _RefusedHeadError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the app starts."""
        self._raw_bytes = 0
        if self.parser.should_upgrade():
            # httptools ends here, without the body. `data_received` continues, or refuses.
            self._offered = self.parser.get_method() != b"CONNECT" and not any(
                name == b"upgrade" and b"websocket" in value.lower() for name, value in self.headers
            )
            return
        self._in_head = False
        super().on_headers_complete()
        # Before its task runs.
        self.cycle.transport = cast("asyncio.Transport", _Answering(self, self.cycle))
        self._expect(self._limits.body_s)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self.cycle.response_complete:
            self._drop(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._completed = True
        if self.parser.should_upgrade():
            return
        self._in_message = False
        self._raw_bytes = 0
        self._deadline = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read the written bytes."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def on_response_complete(self) -> None:
        """An answer was written, and with `Connection: close` the connection is closing."""
        super().on_response_complete()
        self._cut_later()

    def timeout_keep_alive_handler(self) -> None:
        """No request came for a while."""
        super().timeout_keep_alive_handler()
        self._cut_later()

    def shutdown(self) -> None:
        """No request after the ones that are here."""
        super().shutdown()
        self._cut_later()
        for cycle, _ in self.pipeline:
            cycle.keep_alive = False

    def _cut_later(self) -> None:
        """A closing connection waits for the client to take the rest; this bounds that."""
        if self._write_timer is None and self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._write_timer = self.loop.call_later(self._limits.write_s, self.transport.abort)

    def leave(self, most: int = _MAX_BODY_DROPPED) -> None:
        """Ends the answer, and drops further input, until the client is done as well.

        Closing a connection with unread bytes resets it, and the client may lose its answer. No time is added: the
        request has the rest of its own time.

        Args:
            most: Bytes to drop before the connection is cut.
        """
        self._leaving, self._unwanted = True, _MAX_BODY_DROPPED - most
        if self.transport.can_write_eof():  # not under TLS, where the answer's length and `close` have to do
            self.transport.write_eof()
        if self._deadline is None:
            self._expect(self._limits.head_s)

    def _drop(self, size: int) -> None:
        self._unwanted += size
        if self._unwanted > _MAX_BODY_DROPPED:
            self.transport.abort()

    def _decline(self, rest: bytes) -> None:
        """Continues without another protocol that the client offered (RFC 9110 section 7.8): `h2c`, for example.

        The parser treats such a message as one without a body, so it is started again with the same head without the
        offer; the client's own values are read as strictly as before.
        """
        version = self.parser.get_http_version().encode("ascii")
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            left_over = value
            if name == b"upgrade":
                continue
            if name == b"connection":
                left_over = b", ".join(one.strip() for one in value.split(b",") if one.strip().lower() != b"upgrade")
            lines.append(name + b": " + left_over)
        self._offered = self._in_message = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's first one
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    def _head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.max_head_bytes:
            self._status = 431
            raise _RefusedHeadError

    def _expect(self, seconds: float) -> None:
        """Moves the time by which reading must have got on. One timer, which looks again when it was moved."""
        due = self.loop.time() + seconds
        self._deadline = due
        if self._timer is not None and self._timer.when() > due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None or self.transport.is_closing():
            return
        if self._leaving:
            self.transport.abort()
        elif self.flow.read_paused:  # this side does not read
            self._expect(self._limits.body_s)
        elif self._deadline > self.loop.time():
            self._timer = self.loop.call_at(self._deadline, self._look)
        elif self._answering():
            self._expect(self._limits.head_s)  # bytes after a request must not cost it its answer
        elif self._in_message:
            self._refuse(408)
        else:
            self.transport.close()
            self._cut_later()

    def _answering(self) -> bool:
        """Whether a request that is here as a whole has no answer yet."""
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete and not (self._in_message and not self._in_head)

    def _refuse(self, status: int) -> None:
        """Answers a request that cannot be served, if an answer is still possible, and closes."""
        cycle: Any = self.cycle
        waiting = cycle is not None and not cycle.response_complete
        if not waiting and self._in_message and not self._in_head:
            # It has its answer: only the rest of its body is wrong, or late.
            self.transport.close()
            self._cut_later()
            return
        self._metrics.requests["other", status] += 1
        if waiting and (self._in_head or self.pipeline or cycle.response_started):
            # An answer to an earlier request is due, and this would be taken for it.
            self.transport.abort()
            return
        body = b'{"error":"%s"}' % _TEXTS[status].encode("ascii")
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, HTTPStatus(status).phrase.encode("ascii"), len(body), body)
        )
        if status == HTTPStatus.REQUEST_TIMEOUT or not self.transport.can_write_eof():
            self.transport.close()
            self._cut_later()
        else:
            self.leave(_MAX_HEAD_DROPPED)
        if waiting:
            cycle.disconnected = True
            cycle.message_event.set()


class _Answering:
    """The connection as uvicorn's writer of one answer sees it: closing waits for the rest of the request."""

    def __init__(self, protocol: GuardedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle

    def write(self, data: bytes) -> None:
        self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        if self._cycle.more_body and not self.is_closing():
            self._protocol.leave()
        else:
            self._protocol.transport.close()
