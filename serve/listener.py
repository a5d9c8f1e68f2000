"""Listening sockets whose connections are counted when they are accepted, before TLS and before any byte is read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable

from variegate.serve.limits import ServeLimits
from variegate.serve.metrics import Metrics
from variegate.serve.peers import Doorkeeper, Permit, peer_of

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 0.5
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b'content-length: 32\r\nconnection: close\r\n\r\n{"error":"too many connections"}'
)


class Listener:
    """Accepts connections of one listening socket; has the methods of `asyncio.Server` that uvicorn uses.

    Args:
        sock: Bound and listening; closed with this.
        doorkeeper: Counts the connections.
        make: Makes the protocol of a connection that got in.
        limits: Time for the handshake.
        metrics: Counts refused connections.
        context: For TLS.
        name: The peer's name, from an accepted socket.
        full: The bytes sent to a refused connection; nothing under TLS.
    """

    def __init__(
        self,
        sock: socket.socket,
        doorkeeper: Doorkeeper,
        make: Callable[[Permit], asyncio.BaseProtocol],
        *,
        limits: ServeLimits,
        metrics: Metrics,
        context: ssl.SSLContext | None = None,
        name: Callable[[socket.socket], str] | None = None,
        full: bytes = _FULL,
    ) -> None:
        sock.setblocking(False)
        self._sock, self._doorkeeper, self._make = sock, doorkeeper, make
        self._handshake_s, self._metrics, self._context = limits.handshake_s, metrics, context
        self._name = _address if name is None else name
        self._full = b"" if context is not None else full
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._accept())

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening socket."""
        return (self._sock,)

    def close(self) -> None:
        """Accepts no more."""
        self._task.cancel()
        for task in self._opening:
            task.cancel()

    async def wait_closed(self) -> None:
        """Until the socket is closed."""
        await asyncio.gather(self._task, *self._opening, return_exceptions=True)
        self._sock.close()

    async def _accept(self) -> None:
        while True:
            try:
                accepted, _ = await self._loop.sock_accept(self._sock)
            except OSError as error:
                # The one that could not be accepted has gone, or there is no descriptor left for it.
                await asyncio.sleep(_PAUSE_S if error.errno in _OUT_OF_RESOURCES else 0)
                continue
            permit = self._doorkeeper.admit(self._name(accepted))
            if isinstance(permit, Permit):
                task = self._loop.create_task(self._open(accepted, permit))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            else:
                self._metrics.connections_refused[permit] += 1
                with contextlib.suppress(OSError):
                    accepted.send(self._full)
                accepted.close()

    async def _open(self, accepted: socket.socket, permit: Permit) -> None:
        try:
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: self._make(permit),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else self._handshake_s,
                ssl_shutdown_timeout=None if self._context is None else self._handshake_s,
            )
        except (OSError, ValueError, RuntimeError, asyncio.CancelledError):  # ssl.SSLError is an OSError
            self._metrics.connections_refused["handshake"] += 1
            permit.release()
            accepted.close()


def _address(accepted: socket.socket) -> str:
    try:
        peer = accepted.getpeername()
    except OSError:
        return "unknown"
    return peer_of(peer[0]) if isinstance(peer, tuple) else "unknown"
