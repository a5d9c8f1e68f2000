"""A key broker over HTTP: two paths, CBOR bodies, one answer for every refusal.

POST /v1/challenge   no body                                    200 CBOR bytes: the nonce
POST /v1/release     CBOR [evidence (bytes), envelope (bytes)]  200 CBOR bytes: the sealed share
                                                                403 refused, 429 too often, 503 storage failed
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from uvicorn.config import Config
from uvicorn.server import Server as Uvicorn

from variegate.attest.client import CHALLENGE_PATH, MEDIA_TYPE, RELEASE_PATH
from variegate.attest.evidence import MAX_EVIDENCE_BYTES
from variegate.attest.release import Exchange
from variegate.keys import cbor
from variegate.keys.errors import DeviceError, LimitError, MisuseError, RefusedError
from variegate.keys.signing import MAX_STATEMENT_BYTES
from variegate.serve.app import Receive, Scope, Send
from variegate.serve.binding import bound, host_check
from variegate.serve.limits import ServeLimits
from variegate.serve.listener import Listener
from variegate.serve.metrics import Metrics
from variegate.serve.peers import Doorkeeper, Permit
from variegate.serve.protocol import GuardedProtocol
from variegate.serve.tls import TlsFiles

MAX_REQUEST_BYTES = MAX_EVIDENCE_BYTES + MAX_STATEMENT_BYTES + 64
_THREADS = 4
"""Requests worked on at a time; each is a millisecond or two and a write to the store."""
_MAX_PORT = 65_535
_TEXTS = {
    400: "request is not of this protocol",
    403: "refused",
    404: "no such path",
    405: "method not allowed",
    413: "request is too large",
    429: "too often",
    503: "not now",
}
_Header = tuple[bytes, bytes]
_CLOSE: _Header = (b"connection", b"close")


class _StatusError(Exception):
    """Ends a request with a status."""

    def __init__(self, status: int, *headers: _Header) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers


class _GoneError(Exception):
    """The client left while its body was read."""


class BrokerApp:
    """The ASGI application.

    Args:
        broker: The broker; called from threads.
    """

    def __init__(self, broker: Exchange) -> None:
        self._broker = broker
        self._pool = ThreadPoolExecutor(_THREADS, "variegate-broker")

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers: tuple[_Header, ...] = ()
        try:
            status, body = 200, cbor.encode(await self._answer(scope, receive))
        except _GoneError:
            return
        except _StatusError as error:
            status, body, headers = error.status, cbor.encode(_TEXTS[error.status]), error.headers
        head = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        path = scope["path"]
        if path not in (CHALLENGE_PATH, RELEASE_PATH):
            raise _StatusError(404)
        if scope["method"] != "POST":
            raise _StatusError(405, (b"allow", b"POST"))
        body = await _body(scope, receive, MAX_REQUEST_BYTES if path == RELEASE_PATH else 0)
        if path == CHALLENGE_PATH:
            return await self._call(self._broker.challenge)
        try:
            value = cbor.decode(body, limit=MAX_REQUEST_BYTES)
        except RefusedError:
            value = None
        match value:
            case [bytes(token), bytes(envelope)]:
                return await self._call(lambda: self._broker.release(token, envelope))
        raise _StatusError(400)

    async def _call(self, call: Callable[[], bytes]) -> bytes:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except RefusedError:
            raise _StatusError(403) from None
        except LimitError as error:
            seconds = max(1, math.ceil(error.retry_after_s or 0))
            raise _StatusError(429, (b"retry-after", str(seconds).encode())) from None
        except DeviceError:
            raise _StatusError(503, (b"retry-after", b"5")) from None


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes:
    if any(name == b"content-length" and int(value) > limit for name, value in scope["headers"]):
        raise _StatusError(413, _CLOSE)  # before `receive`, which would ask the client to go on sending
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _GoneError
        size += len(message.get("body", b""))
        if size > limit:
            raise _StatusError(413, _CLOSE)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


class BrokerService:
    """Serves a broker until it is stopped.

    Args:
        broker: The broker; its books are the caller's to close.
        host: Address to bind.
        port: 0 takes any free one.
        tls: For HTTPS.
        limits: Bounds on connections and times; those on batches and queues mean nothing here.
        on_start: Called once it listens.

    Raises:
        MisuseError: TLS files cannot be used, or the port is none.
    """

    def __init__(
        self,
        broker: Exchange,
        host: str,
        port: int,
        *,
        tls: TlsFiles | None = None,
        limits: ServeLimits | None = None,
        on_start: Callable[[BrokerService], None] | None = None,
    ) -> None:
        if not 0 <= port <= _MAX_PORT:
            raise MisuseError(f"a port is 0 to {_MAX_PORT}")
        self._broker, self._host, self._port, self._on_start = broker, host, port, on_start
        self._limits = ServeLimits() if limits is None else limits
        self._context = None if tls is None else tls.context()
        self._stop: Callable[[], None] | None = None
        self.address: tuple[str, int] | None = None
        """Where it listens, once it does."""

    def run(self) -> None:
        """Serves until `stop`, SIGTERM or SIGINT. Signals are heeded on the main thread only.

        Raises:
            MisuseError: The address cannot be bound.
        """
        with bound(self._host, self._port) as sock, contextlib.closing(BrokerApp(self._broker)) as app:
            asyncio.run(self._serve(app, sock))

    def stop(self) -> None:
        """Asks `run` to end, from any thread."""
        if self._stop is not None:
            self._stop()

    async def _serve(self, app: BrokerApp, sock: socket.socket) -> None:
        limits, metrics, loop = self._limits, Metrics(), asyncio.get_running_loop()
        ours = host_check(sock, self._host)
        config = Config(
            app,
            interface="asgi3",
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.keep_alive_s,
            timeout_graceful_shutdown=limits.drain_s,
        )
        config.load()
        server = _Uvicorn(config)

        def make(permit: Permit) -> asyncio.BaseProtocol:
            return GuardedProtocol(
                config,
                server.server_state,
                limits=limits,
                metrics=metrics,
                permit=permit,
                ours=ours,
            )

        listener = Listener(sock, Doorkeeper(limits), make, limits=limits, metrics=metrics, context=self._context)
        server.listen(listener)
        self.address = sock.getsockname()[:2]

        def ask_to_stop() -> None:
            server.should_exit = True

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(ask_to_stop)

        self._stop = stop
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, ask_to_stop)
        if self._on_start is not None:
            self._on_start(self)
        await server.serve()
        await listener.wait_closed()


class _Uvicorn(Uvicorn):
    """uvicorn with a listener of our own, and signals left to us."""

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets
        await self.lifespan.startup()
        self.servers = [self._listener]  # type: ignore[list-item]
        self.started = True
