"""Starts everything around one label port and stops it in order. uvicorn runs the HTTP part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from uvicorn.config import Config
from uvicorn.server import Server as Uvicorn
from uvicorn.server import ServerState

from variegate.keys.errors import MisuseError
from variegate.runtime.enclave import Protection, ProtectionState
from variegate.runtime.port import LabelPort
from variegate.serve.app import App, Receive, Scope, Send
from variegate.serve.binding import bound, host_check, is_loopback
from variegate.serve.buffer_space import BufferSpace
from variegate.serve.dispatcher import Dispatcher
from variegate.serve.health import Health
from variegate.serve.limits import ServeLimits, Spec
from variegate.serve.listener import Listener
from variegate.serve.metrics import Metrics
from variegate.serve.oip import InferRequest
from variegate.serve.peers import Doorkeeper, Permit
from variegate.serve.protocol import GuardedProtocol
from variegate.serve.socket_port import bound_socket, socket_listener
from variegate.serve.tls import TlsFiles
from variegate.serve.workshop import Workshop


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where and how to serve.

    Attributes:
        host: Address to bind for HTTP, or None for no HTTP.
        port: For HTTP; 0 takes any free one.
        metrics_host: Address for the metrics when they have a port of their own.
        metrics_port: Serves /metrics there, in the clear, and health. Without it /metrics is on `port`, when that is
            bound to this machine only.
        socket: Path of the label socket, or None for none.
        socket_mode: Its file mode.
        tls: For HTTP.
        limits: Bounds on clients.
        restarts: Gives the number of restarts of the enclave, if they are counted.
        evidence: Signs evidence for a nonce over HTTP; None gives none. It shows how much of the budget is used.
    """

    host: str | None = "127.0.0.1"
    port: int = 8000
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    socket: Path | None = None
    socket_mode: int = 0o600
    tls: TlsFiles | None = None
    limits: ServeLimits = field(default_factory=ServeLimits)
    restarts: Callable[[], int] | None = None
    evidence: Callable[[bytes], bytes] | None = None

    def check(self) -> None:
        """Checks the options before anything runs.

        Raises:
            MisuseError: There is nothing to serve on, or TLS files cannot be used.
        """
        if self.host is None and self.socket is None:
            raise MisuseError("there is neither a host nor a socket to serve on", hint="give --socket")
        if self.tls is not None:
            self.tls.context()

    def protections(self) -> tuple[Protection, ...]:
        """The protections of the connection to the label port."""
        bound = "bounds on size, time, connections and queue"
        if self.host is None:
            return (Protection.when("client limits", True, bound),)
        tls, mutual = self.tls is not None, self.tls is not None and self.tls.client_ca is not None
        reach = "this machine only" if self.host in {"127.0.0.1", "::1", "localhost"} else f"bound to {self.host}"
        least = f"TLS {self.tls.minimum} or later" if self.tls is not None else f"HTTP in the clear, {reach}"
        absent = ProtectionState.ON if mutual else (ProtectionState.OFF if tls else ProtectionState.UNAVAILABLE)
        who = "needed to connect" if mutual else ("any client may connect" if tls else "needs TLS")
        return (
            Protection.when("tls", tls, least),
            Protection("client certificates", absent, who),
            Protection.when("client limits", True, bound),
        )


class Service:
    """Serves a label port until it is stopped. The port stays open afterwards; the caller closes it.

    Args:
        port: The port that answers.
        options: Where and how.
        on_start: Called once everything listens.

    Raises:
        MisuseError: TLS files cannot be used, or there is nothing to listen on.
    """

    def __init__(
        self, port: LabelPort, options: ServeOptions, *, on_start: Callable[[Service], None] | None = None
    ) -> None:
        options.check()
        self._port, self._options, self._on_start = port, options, on_start
        self._context = None if options.tls is None else options.tls.context()
        self._uvicorn: _Uvicorn | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.address: tuple[str, int] | None = None
        """Where HTTP listens, once it does."""
        self.metrics_address: tuple[str, int] | None = None
        """Where the metrics listen, where they have a port of their own."""

    def run(self) -> None:
        """Serves until `stop`, SIGTERM or SIGINT. Signals are heeded on the main thread only.

        Raises:
            MisuseError: An address or the socket's path cannot be bound.
        """
        asyncio.run(self._serve())

    def stop(self) -> None:
        """Asks `run` to end, from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(self._ask_to_stop)

    def _ask_to_stop(self) -> None:
        if self._uvicorn is not None:
            # Asked twice, it does not wait for answers that are due.
            self._uvicorn.force_exit = self._uvicorn.should_exit
            self._uvicorn.should_exit = True

    async def _serve(self) -> None:
        options, limits = self._options, self._options.limits
        loop = self._loop = asyncio.get_running_loop()
        spec, metrics, doorkeeper = Spec.of(self._port.manifest, limits), Metrics(), Doorkeeper(limits)
        with contextlib.ExitStack() as undo:
            # Bound before anything runs, so that a port in use leaves nothing behind.
            http = None if options.host is None else undo.enter_context(bound(options.host, options.port))
            apart = options.metrics_port
            watch = None if apart is None else undo.enter_context(bound(options.metrics_host, apart))
            local = (
                None
                if options.socket is None
                else undo.enter_context(bound_socket(options.socket, options.socket_mode))
            )
            dispatcher = Dispatcher(self._port, limits, loop)
            undo.callback(dispatcher.close, limits.drain_s)
            health = Health(self._port, dispatcher)
            undo.callback(health.close)
            room = BufferSpace(spec.buffer_bytes(limits))
            workshop: Workshop[InferRequest] = Workshop(limits, loop)
            undo.callback(workshop.close, limits.drain_s)
            app = App(
                spec=spec,
                room=room,
                workshop=workshop,
                dispatcher=dispatcher,
                health=health,
                metrics=metrics,
                version=version("variegate"),
                show_metrics=watch is None and http is not None and is_loopback(http),
                evidence=options.evidence,
            )
            server = self._uvicorn = _Uvicorn(_config(app, limits), health)
            _gauges(metrics, dispatcher, health, server.server_state, options.restarts)
            metrics.gauge("buffered_bytes", "Bytes of requests held.", lambda: room.held)
            if http is not None:
                self.address = http.getsockname()[:2]
                ours = host_check(http, options.host or "")
                make = _maker(server, _config(app, limits), limits, metrics, ours)
                server.add(Listener(http, doorkeeper, make, limits=limits, metrics=metrics, context=self._context))
            if watch is not None:
                self.metrics_address = watch.getsockname()[:2]
                ours = host_check(watch, options.metrics_host)
                make = _maker(server, _config(app.watch, limits), limits, metrics, ours)
                server.add(Listener(watch, Doorkeeper(limits), make, limits=limits, metrics=metrics))
            if local is not None:
                server.add(
                    socket_listener(
                        local,
                        spec=spec,
                        limits=limits,
                        room=room,
                        dispatcher=dispatcher,
                        metrics=metrics,
                        state=server.server_state,
                    )
                )
            with _signals(loop, self._ask_to_stop):
                if self._on_start is not None:
                    self._on_start(self)
                await server.serve()


class _Uvicorn(Uvicorn):
    """uvicorn with listeners of our own, and signals left to us: it would raise them again and end the process."""

    def __init__(self, config: Config, health: Health) -> None:
        super().__init__(config)
        self._health = health
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets
        await self.lifespan.startup()
        self.servers = list(self._listeners)  # type: ignore[arg-type]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._health.stopping = True
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # did not end in time
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        for listener in self._listeners:
            await listener.wait_closed()


def _config(app: Callable[[Scope, Receive, Send], object], limits: ServeLimits) -> Config:
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    config = Config(
        app,
        interface="asgi3",
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # clients' mistakes are in the metrics, and would fill a log
        access_log=False,
        proxy_headers=False,  # the client writes X-Forwarded-For as it likes
        server_header=False,
        date_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=limits.drain_s,
    )
    config.load()
    return config


def _maker(
    server: _Uvicorn, config: Config, limits: ServeLimits, metrics: Metrics, ours: Callable[[bytes], bool]
) -> Callable[[Permit], asyncio.BaseProtocol]:
    def make(permit: Permit) -> asyncio.BaseProtocol:
        return GuardedProtocol(config, server.server_state, limits=limits, metrics=metrics, permit=permit, ours=ours)

    return make


def _gauges(
    metrics: Metrics,
    dispatcher: Dispatcher,
    health: Health,
    state: ServerState,
    restarts: Callable[[], int] | None,
) -> None:
    metrics.gauge("queue", "Queries that wait for the engine.", lambda: dispatcher.waiting)
    metrics.gauge("connections", "Connections open.", lambda: len(state.connections))
    metrics.gauge("ready", "1 when a query would be answered.", lambda: int(health.ready))
    metrics.gauge("budget_remaining", "Labels left in the signed budget.", lambda: health.remaining)
    if restarts is not None:
        metrics.gauge("enclave_restarts", "Restarts of the enclave since the start.", restarts)


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
