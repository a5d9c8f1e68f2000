"""Passes queries from the event loop to the engine and back, so that an engine that hangs stops nothing else.

One thread asks the port. There is one engine, so a second thread would only wait inside it for the first, without
fairness. The event loop never calls the port itself, not even for a short query, because an enclave may hang.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys.errors import DeviceError, LimitError, MisuseError, Refusal, RefusedError, VariegateError
from variegate.runtime.port import LabelPort
from variegate.serve.answers import BusyError, LeftError, TimeLimitError
from variegate.serve.fair import FairQueue
from variegate.serve.limits import ServeLimits

Labels = NDArray[np.int64]
Answer = Labels | Exception


class Query:
    """One question on its way. `done` is called once on the loop, unless it is dropped first."""

    __slots__ = ("done", "put", "timer")

    def __init__(self, put: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.put: Callable[[], Any] | None = put
        """Puts it to the port; holds its frames."""
        self.done: Callable[[Any], None] | None = done
        """Gets what `put` gave, or the error."""
        self.timer: asyncio.TimerHandle | None = None


class Dispatcher:
    """Serialises the queries of all clients, fairly. Made and used on the thread of the loop.

    Args:
        port: The port that answers. Only `classify_batch` and the work of `evidence` are called, from one thread.
        limits: How many may wait, and how long.
        loop: The running loop.
    """

    def __init__(self, port: LabelPort, limits: ServeLimits, loop: asyncio.AbstractEventLoop) -> None:
        self._port = port
        self._loop = loop
        self._answer_s = limits.answer_s
        self._lock = threading.Lock()
        self._queue: FairQueue[Query] = FairQueue(limits.max_queue, limits.max_peer_queue)
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._closing = False
        self.last_error: Exception | None = None
        """Of the latest query, when the port and not the query was at fault. Read by the health."""
        self.failed_at = float("-inf")
        """When that was, on the monotonic clock."""
        self._thread = threading.Thread(target=self._work, name="variegate-labels", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Queries that wait for the engine."""
        return len(self._queue)

    def has_room(self, peer: str, ahead: int = 0, ahead_of_peer: int = 0) -> bool:
        """Whether a query of a peer would find room to wait, as `FairQueue.has_room`."""
        return self._queue.has_room(peer, ahead, ahead_of_peer)

    def ask(self, peer: str, frames: NDArray[Any], done: Callable[[Answer], None]) -> Query:
        """Queues a batch.

        Args:
            peer: The peer whose share it counts against.
            frames: (N, *shape), not changed until it is answered.
            done: Gets labels int64 (N,), or the error, on the loop.

        Raises:
            BusyError: There is no room to wait.
            MisuseError: The server is closing.
        """
        return self._pushed(peer, len(frames), Query(lambda: self._port.classify_batch(frames), done))

    def _pushed(self, peer: str, weight: int, query: Query) -> Query:
        if self._closing:
            raise MisuseError("server is closing")
        with self._lock:
            if not self._queue.push(peer, weight, query):
                raise BusyError("too many queries are waiting")
        query.timer = self._loop.call_later(self._answer_s, self._expire, query)
        self._tokens.put(True)
        return query

    async def labels(self, peer: str, frames: NDArray[Any], hold: Callable[[Query], None]) -> Labels:
        """As `ask`, awaited.

        Args:
            peer: The peer whose share it counts against.
            frames: (N, *shape).
            hold: Gets the query, to `drop` it when the client leaves.

        Raises:
            VariegateError: An error of the port, and what `ask` raises.
            asyncio.CancelledError: The query was dropped by cancelling.
        """
        future, done = self._awaitable()
        query = self.ask(peer, frames, done)
        hold(query)
        labels: Labels = await self._settled(query, future)
        return labels

    async def evidence(self, peer: str, sign: Callable[[], bytes]) -> bytes:
        """Has the port sign, in the turn of its queries.

        Args:
            peer: The peer whose share it counts against, as one frame.
            sign: Asks the port.

        Raises:
            VariegateError: An error of the port, and what `ask` raises.
        """
        future, done = self._awaitable()
        token: bytes = await self._settled(self._pushed(peer, 1, Query(sign, done)), future)
        return token

    def _awaitable(self) -> tuple[asyncio.Future[Any], Callable[[Any], None]]:
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(answer: object) -> None:
            if not future.done():
                future.set_result(answer)

        return future, done

    async def _settled(self, query: Query, future: asyncio.Future[Any]) -> Any:
        try:
            answer = await future
        finally:
            self.drop(query)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def drop(self, query: Query) -> None:
        """Forgets a query; one that has not begun is not charged."""
        if query.done is None:
            return
        query.done = None
        if query.timer is not None:
            query.timer.cancel()
        with self._lock:
            self._queue.remove(query)
        query.put = None

    def give_up(self, query: Query) -> None:
        """Answers a query whose client has left with an error, so that nobody waits for it."""
        self._finish(query, LeftError("the client has left"))

    def close(self, wait_s: float) -> None:
        """Answers nothing more. A query inside of the engine is waited for; a hung one is left behind."""
        self._closing = True
        self._tokens.put(False)
        self._thread.join(wait_s)

    def _expire(self, query: Query) -> None:
        self._finish(query, TimeLimitError("no answer in time"))

    def _finish(self, query: Query, answer: object) -> None:
        done = query.done
        self.drop(query)
        if done is not None:
            done(answer)

    def _work(self) -> None:
        while self._tokens.get():
            with self._lock:
                query = self._queue.pop()
            put = None if query is None else query.put
            if query is None or put is None:
                continue
            answer = self._answer(put)
            put = None  # it holds the frames
            try:
                self._loop.call_soon_threadsafe(self._finish, query, answer)
            except RuntimeError:  # the loop has ended
                return

    def _answer(self, put: Callable[[], Any]) -> Any:
        try:
            answer = put()
        except VariegateError as error:
            # Its frames hold on to an enclave that has ended, and they and the error to each other.
            failure: Exception = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - nothing foreign may reach a client or end this thread
            failure = DeviceError(f"the port failed ({type(error).__name__})")
        else:
            self.last_error = None
            return answer
        if not isinstance(failure, LimitError) and not _of_client(failure):
            self.failed_at = time.monotonic()
            self.last_error = failure
        return failure


def _of_client(error: Exception) -> bool:
    return isinstance(error, RefusedError) and error.refusal is Refusal.INPUT
