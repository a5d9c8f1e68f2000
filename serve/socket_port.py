"""The label socket: a Unix stream socket for programs in any language on the same machine.

Its clients share the engine fairly with those of HTTP; each user id is a peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from uvicorn.server import ServerState

from variegate.keys.errors import MisuseError
from variegate.serve import socket_wire as wire
from variegate.serve.answers import BusyError, Fault, fault_of
from variegate.serve.buffer_space import BufferSpace, Claim
from variegate.serve.dispatcher import Answer, Dispatcher, Query
from variegate.serve.limits import ServeLimits, Spec
from variegate.serve.listener import Listener
from variegate.serve.metrics import Metrics
from variegate.serve.peers import Doorkeeper, Permit

_BACKLOG = 64
_SCRATCH_BYTES = 64 << 10
_CREDENTIALS = struct.Struct("iII")


class SocketConnection(asyncio.BufferedProtocol):
    """One client: hello, then query and answer in turn. The next query is not read before the answer is written.

    Args:
        permit: Of this connection; released with it.
        spec: The frames that the copy takes.
        limits: Times.
        room: For the bytes of frames.
        dispatcher: Answers queries.
        metrics: Counts.
        state: Where the server finds the connections to close.
    """

    def __init__(
        self,
        permit: Permit,
        *,
        spec: Spec,
        limits: ServeLimits,
        room: BufferSpace,
        dispatcher: Dispatcher,
        metrics: Metrics,
        state: ServerState,
    ) -> None:
        self._permit, self._spec, self._limits = permit, spec, limits
        self._dispatcher, self._metrics, self._connections = dispatcher, metrics, cast("set[Any]", state.connections)
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._head = bytearray(wire.QUERY_BYTES)
        self._query_head: wire.QueryHead | None = None
        self._frames: NDArray[np.uint8] | None = None
        self._room = room
        self._claim: Claim | None = None
        self._unwanted = 0
        self._target = memoryview(self._head)
        self._have = 0
        self._query: Query | None = None
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client got in."""
        self.transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        self.transport.write(wire.hello(self._spec))

    def connection_lost(self, exc: Exception | None) -> None:
        """It left, or was closed: a query that waits is dropped and not charged."""
        del exc
        self._connections.discard(self)
        self._permit.release()
        self._release()
        if self._query is not None:
            self._dispatcher.drop(self._query)
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: never beyond the message that is being read."""
        del sizehint
        return self._target[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        if self.transport is None or self.transport.is_closing():
            return
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.body_s, self.transport.abort)
        if self._unwanted:
            self._unwanted -= nbytes
            if self._unwanted == 0:
                self._answered(BusyError("too many bytes of requests are held"))
            elif self._unwanted < len(self._target):
                self._target = self._target[: self._unwanted]
            return
        self._have += nbytes
        if self._claim is not None and not self._claimed(self._claim, nbytes):
            return
        if self._have < len(self._target):
            return
        if self._frames is None:
            self._take_head()
        else:
            self._take_frames(self._frames)

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        if self._write_timer is None and self.transport is not None:
            self._write_timer = self._loop.call_later(self._limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        if self._write_timer is not None and self.transport is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def shutdown(self) -> None:
        """The server stops: at once, or after the answer that is due."""
        if self._query is not None:
            self._last = True
        elif self.transport is not None:
            self.transport.close()

    def _take_head(self) -> None:
        try:
            self._query_head = wire.query_head(self._head, self._spec)
        except wire.HeadError as error:
            self._last = True
            self._refuse(error.id, fault_of(error))
            return
        self._frames = np.empty(self._query_head.count * self._spec.frame_bytes, np.uint8)
        self._target, self._have = self._frames.data, 0
        self._claim = self._room.claim()

    def _claimed(self, claim: Claim, nbytes: int) -> bool:
        """Counts received bytes, not announced ones: memory is used when it is written to, and heads cost nothing.

        If there is no room, the rest of the frames is read and dropped, so that the next query is found.
        """
        try:
            claim.add(nbytes)
        except BusyError as error:
            left = len(self._target) - self._have
            self._release()
            self._frames = None
            if left:
                self._unwanted, self._have = left, 0
                self._target = memoryview(bytearray(min(left, _SCRATCH_BYTES)))
            else:
                self._answered(error)
            return False
        return True

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _take_frames(self, raw: NDArray[np.uint8]) -> None:
        assert self.transport is not None  # noqa: S101 - narrows a type
        self._stop_timer()
        self.transport.pause_reading()
        self._began = time.perf_counter()
        kind = np.dtype(self._spec.dtype).newbyteorder("<")
        frames = raw.view(kind).reshape(-1, *self._spec.shape)
        try:
            self._query = self._dispatcher.ask(self._permit.peer, frames, self._answered)
        except Exception as error:  # noqa: BLE001 - fault_of knows ours, and says nothing of others
            self._answered(error)

    def _answered(self, answer: Answer) -> None:
        self._query = None
        if self.transport is None or self.transport.is_closing() or self._query_head is None:
            return
        if isinstance(answer, Exception):
            self._refuse(self._query_head.id, fault_of(answer))
            return
        self._metrics.answered(len(answer), time.perf_counter() - self._began)
        self._metrics.requests["socket", 200] += 1
        self._write(wire.answer(self._query_head.id, answer))

    def _refuse(self, query: int, fault: Fault) -> None:
        self._metrics.refusals[fault.reason] += 1
        self._metrics.requests["socket", fault.status] += 1
        self._write(wire.refusal(query, fault))

    def _write(self, message: bytes) -> None:
        assert self.transport is not None  # noqa: S101 - narrows a type
        self._stop_timer()
        self.transport.write(message)
        self._release()
        self._query_head = self._frames = None
        self._target, self._have = memoryview(self._head), 0
        if self._last:
            self.transport.close()
            if self.transport.get_write_buffer_size():  # closing waits for the client to take the rest
                self.pause_writing()
        else:
            self.transport.resume_reading()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def socket_listener(
    sock: socket.socket,
    *,
    spec: Spec,
    limits: ServeLimits,
    room: BufferSpace,
    dispatcher: Dispatcher,
    metrics: Metrics,
    state: ServerState,
) -> Listener:
    """Serves on a socket of `bound_socket`; clients are counted apart from those of HTTP."""

    def make(permit: Permit) -> SocketConnection:
        return SocketConnection(
            permit, spec=spec, limits=limits, room=room, dispatcher=dispatcher, metrics=metrics, state=state
        )

    return Listener(sock, Doorkeeper(limits), make, limits=limits, metrics=metrics, name=_user, full=b"")


@contextlib.contextmanager
def bound_socket(path: Path, mode: int) -> Iterator[socket.socket]:
    """A listening Unix socket; its file goes with it.

    Args:
        path: Must not be there, or be a socket that nobody serves any more.
        mode: Mode of the file: whoever may write to it may ask for labels.

    Raises:
        MisuseError: The path cannot be used, or somebody put something else there.
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            os.fchmod(sock.fileno(), mode)  # the file is made with it, less the umask
            sock.bind(str(path))
            bound = _with_mode(path, mode)
            sock.listen(_BACKLOG)  # nobody can connect before
        except (OSError, ValueError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "path is not usable"
            raise MisuseError(f"cannot listen on {path}: {reason}") from None
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                if _identity(path.lstat()) == bound:
                    path.unlink()
    finally:
        sock.close()


def _with_mode(path: Path, mode: int) -> tuple[int, int]:
    """Gives the socket's file its mode, and follows no link that somebody put in its place; says which file it is.

    Raises:
        MisuseError: There is something else by now.
        OSError: It cannot be changed.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise MisuseError(f"{path} was replaced", hint="use a folder that nobody else may write to")
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101  the open file, whatever the path leads to now
        return _identity(status)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _clear(path: Path) -> None:
    """Removes a socket that a killed server left; refuses anything else."""
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise MisuseError(f"{path} is there already and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise MisuseError(f"{path} is served already")


def _user(accepted: socket.socket) -> str:
    """The user id at the other end, as the kernel knows it."""
    try:
        raw = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return "unknown"
    return f"uid {_CREDENTIALS.unpack(raw)[1]}"
