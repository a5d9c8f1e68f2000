"""Units in processes of their own on this machine, started afresh (spawn), one thread each.

A worker that dies is replaced, and its unit comes back as failed. Workers end with the process that started them,
even when that is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from variegate.attack.campaign.messages import (
    Event,
    Job,
    UnitDone,
    UnitFailed,
    event_from_bytes,
    event_to_bytes,
    job_from_bytes,
    job_to_bytes,
)
from variegate.isolation.syscalls import prctl
from variegate.keys.errors import DeviceError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PARENT_DEATH_SIGNAL = 1
_MOST_DEATHS = 6
"""Workers that may die in a row without a word from any, before the engine gives up."""
_LEAVE_S = 5.0


@dataclass
class _Worker:
    """One process and the job that it has."""

    process: SpawnProcess
    pipe: Connection
    unit: str = ""
    dead: bool = field(default=False)


class Processes:
    """The engine (`Engine`)."""

    def __init__(self, workers: int, folder: Path) -> None:
        """Starts the workers.

        Args:
            workers: How many, at least 1.
            folder: The campaign's.

        Raises:
            DeviceError: One does not start.
        """
        self._folder, self._context = folder, mp.get_context("spawn")
        self._jobs: deque[Job] = deque()
        self._deaths = 0
        self._broken: DeviceError | None = None
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    @property
    def room(self) -> int:
        """One job for each worker that has none, and one that waits."""
        return max(0, 1 + sum(not worker.unit for worker in self._workers) - len(self._jobs))

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def submit(self, job: Job) -> None:
        """As `Engine.submit`."""
        self._jobs.append(job)
        self._deal()

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`; what has come is told before an error is."""
        if self._broken is not None:
            raise self._broken
        ready = set(wait([worker.pipe for worker in self._workers], timeout_s))
        events: list[Event] = []
        for i, worker in enumerate(list(self._workers)):
            if worker.pipe in ready:
                events += self._received(worker)
            if worker.dead:
                try:
                    events += self._replaced(i)
                except DeviceError as error:
                    if not events:
                        raise
                    self._broken = error
                    return events
        self._deal()
        return events

    def close(self) -> None:
        """As `Engine.close`."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_LEAVE_S)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self._workers = []

    def _deal(self) -> None:
        for worker in self._workers:
            if not self._jobs:
                return
            if not worker.unit:
                job = self._jobs[0]
                try:
                    worker.pipe.send_bytes(job_to_bytes(job))
                except OSError:
                    continue  # it is dead; `wait` notices
                worker.unit = job.unit.name
                self._jobs.popleft()

    def _received(self, worker: _Worker) -> Iterator[Event]:
        """All that a worker has sent."""
        try:
            while worker.pipe.poll():
                event = event_from_bytes(worker.pipe.recv_bytes())
                self._deaths = 0
                if isinstance(event, UnitDone | UnitFailed):
                    worker.unit = ""
                yield event
        except (EOFError, OSError):
            worker.dead = True

    def _replaced(self, number: int) -> Iterator[Event]:
        """Starts another for a dead one; tells that its unit failed."""
        worker = self._workers[number]
        worker.process.join()
        code = worker.process.exitcode or 0
        known = -code in set(signal.Signals)  # real-time signals have no names
        why = signal.Signals(-code).name if known else f"signal {-code}" if code < 0 else f"status {code}"
        worker.process.close()
        worker.pipe.close()
        del self._workers[number]
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise DeviceError(f"workers die before they work ({why})")
        self._workers.insert(number, self._start())
        if worker.unit:
            yield UnitFailed(unit=worker.unit, reason=f"the worker died ({why})")

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, str(self._folder), os.getpid()), daemon=True)
        try:
            with _one_thread():
                process.start()
        except OSError as error:
            ours.close()
            raise DeviceError(f"a worker does not start: {(error.strerror or '').lower()}") from error
        finally:
            theirs.close()
        return _Worker(process, ours)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A new process starts no threads for sums, which would lie idle."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Connection, folder: str, parent: int) -> None:
    """What a worker does until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        return
    from variegate.attack.campaign import folder as folders  # noqa: PLC0415  after what must come first
    from variegate.attack.campaign.work import Bench  # noqa: PLC0415

    bench = Bench(folders.read(Path(folder)))
    try:
        while True:
            job = job_from_bytes(pipe.recv_bytes())
            for event in bench.events(job):
                pipe.send_bytes(event_to_bytes(event))
    except (EOFError, OSError):
        return
    finally:
        bench.close()
