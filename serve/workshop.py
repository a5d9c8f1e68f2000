"""Decompresses bodies and parses long JSON outside the event loop, one request at a time.

One thread does all of it. The next request is chosen by fair shares of bytes, as the engine's next query is by frames,
so that peers with many requests do not delay peers with few.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from variegate.keys.errors import DeviceError, MisuseError, VariegateError
from variegate.serve.answers import BusyError, LeftError
from variegate.serve.fair import FairQueue
from variegate.serve.limits import ServeLimits

T = TypeVar("T")


class _Job(Generic[T]):
    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], T], future: asyncio.Future[T]) -> None:
        self.work: Callable[[], T] | None = work
        self.future = future


class Workshop(Generic[T]):
    """Does work of clients one after another. Made and used on the thread of the loop.

    Args:
        limits: How many may wait, and how long.
        loop: The running loop.
    """

    def __init__(self, limits: ServeLimits, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._wait_s = loop, limits.answer_s
        self._lock = threading.Lock()
        self._queue: FairQueue[_Job[T]] = FairQueue(limits.max_queue, limits.max_peer_queue)
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="variegate-bodies", daemon=True)
        self._thread.start()

    def waiting(self, peer: str | None = None) -> int:
        """Requests that wait: of one peer, or of all."""
        return len(self._queue) if peer is None else self._queue.waiting(peer)

    async def do(self, peer: str, cost: int, work: Callable[[], T], hold: Callable[[Callable[[], None]], None]) -> T:
        """Does a piece of work on the thread.

        Args:
            peer: Its peer.
            cost: Bytes, at least 1.
            work: Called once on the thread, or not at all when the client leaves before.
            hold: Gets a function that cancels the work, for when the client leaves.

        Returns:
            The result of the work.

        Raises:
            VariegateError: An error of the work.
            BusyError: There is no room to wait, or its turn did not come in time.
            LeftError: It was given up.
            MisuseError: The server is closing.
            DeviceError: The work failed in a way that is none of ours.
        """
        if self._closing:
            raise MisuseError("server is closing")
        job = _Job(work, self._loop.create_future())
        with self._lock:
            if not self._queue.push(peer, cost, job):
                raise BusyError("too many requests wait to be read")
        self._tokens.put(True)
        hold(lambda: self._end(job, LeftError("the client has left")))
        timer = self._loop.call_later(self._wait_s, self._end, job, BusyError("request was not read in time"))
        try:
            result: T = await job.future
        finally:
            timer.cancel()
            self._drop(job)
        return result

    def close(self, wait_s: float) -> None:
        """Takes no more work."""
        self._closing = True
        self._tokens.put(False)
        self._thread.join(wait_s)

    def _drop(self, job: _Job[T]) -> None:
        with self._lock:
            self._queue.remove(job)
        job.work = None

    def _end(self, job: _Job[T], error: Exception) -> None:
        if not job.future.done():
            job.future.set_exception(error)

    def _finish(self, job: _Job[T], result: T) -> None:
        if not job.future.done():
            job.future.set_result(result)

    def _run(self) -> None:
        while self._tokens.get():
            with self._lock:
                job = self._queue.pop()
            work = None if job is None else job.work
            if job is None or work is None:
                continue
            try:
                self._do(job, work)
            except RuntimeError:  # the loop has ended
                return
            del job, work  # the body, which would otherwise stay until the next one

    def _do(self, job: _Job[T], work: Callable[[], T]) -> None:
        try:
            result = work()
        except VariegateError as error:
            self._loop.call_soon_threadsafe(self._end, job, error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - nothing foreign may reach a client or end this thread
            failed = DeviceError(f"reading a request failed ({type(error).__name__})")
            self._loop.call_soon_threadsafe(self._end, job, failed)
        else:
            self._loop.call_soon_threadsafe(self._finish, job, result)
