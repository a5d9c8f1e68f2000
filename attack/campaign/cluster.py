"""Units on a Dask cluster that is there already: several machines, each with Variegate installed.

A plugin brings the campaign's inputs to every worker, also to one that comes later. Outcomes travel as events, so that
the ledger has them before their unit ends; shards come back as results, and only the campaign's own process writes.
The scheduler gives the unit of a worker that dies to another.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distributed
from distributed import WorkerPlugin

from variegate.attack.campaign import config, copies, images
from variegate.attack.campaign.folder import CONFIG, COPIES, IMAGES, MAX_INPUT_BYTES
from variegate.attack.campaign.messages import (
    Event,
    ImageDone,
    Job,
    UnitFailed,
    event_from_bytes,
    event_to_bytes,
    job_from_bytes,
    job_to_bytes,
)
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.software import difference, software
from variegate.attack.campaign.work import Bench
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.files import read_capped
from variegate.keys.primitives import sha256

PATIENCE_S = 60.0
"""How long a cluster may be without a worker, or its scheduler out of reach."""
_DASK: Any = distributed
"""Most of it has no types."""
_CONNECT_S = 15.0
_AHEAD = 2
"""Units for each thread of the cluster: one under way, one that waits there."""


class Inputs(WorkerPlugin):
    """Brings the campaign's inputs to a worker, and keeps its opened copies."""

    def __init__(self, name: str, contents: dict[str, bytes]) -> None:
        self.name, self._contents, self._software = name, contents, software()
        self.bench: Bench | None = None

    def setup(self, worker: Any) -> None:  # noqa: ARG002
        """Reads them; copies are opened when a unit needs them.

        Raises:
            MisuseError: The worker has other software than the command.
        """
        differs = difference(self._software, software())
        if differs:
            raise MisuseError(f"a worker has other software: {differs}")
        self.bench = Bench(
            Prepared(
                campaign=config.parse(self._contents[CONFIG]),
                fleets=copies.from_bytes(self._contents[COPIES]),
                images=images.from_bytes(self._contents[IMAGES]),
            )
        )

    def teardown(self, worker: Any) -> None:  # noqa: ARG002
        """Closes the copies."""
        if self.bench is not None:
            self.bench.close()


def work(name: str, job: bytes) -> bytes:
    """What a worker does: one unit; its last event is the result, the others go out as they come."""
    worker = _DASK.get_worker()
    bench: Bench = worker.plugins[name].bench
    last = b""
    for event in bench.events(job_from_bytes(job)):
        last = event_to_bytes(event)
        if isinstance(event, ImageDone):
            worker.log_event(name, last)
    return last


class Cluster:
    """The engine (`Engine`)."""

    def __init__(self, address: str, folder: Path) -> None:
        """Joins a scheduler.

        Args:
            address: Of the scheduler, tcp://host:port.
            folder: The campaign's.

        Raises:
            DeviceError: It cannot be reached, or does not take the campaign.
        """
        contents = {name: read_capped(folder / name, limit=MAX_INPUT_BYTES) for name in (CONFIG, IMAGES, COPIES)}
        self._name = "variegate-" + sha256(*contents.values()).hex()
        self._arrived: queue.SimpleQueue[bytes | UnitFailed] = queue.SimpleQueue()
        self._futures: dict[str, Any] = {}
        self._lonely: float | None = None
        try:
            self._client = _DASK.Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise DeviceError(f"no Dask scheduler answers at {address}") from error
        try:
            self._client.register_plugin(Inputs(self._name, contents), name=self._name)
            self._client.subscribe_topic(self._name, self._told)
        except Exception as error:
            self.close()
            raise DeviceError(
                f"the Dask cluster does not take the campaign ({type(error).__name__}: {error})"
            ) from error

    @property
    def room(self) -> int:
        """Jobs that the cluster's threads could take."""
        return max(0, _AHEAD * max(1, self._threads()) - len(self._futures))

    def submit(self, job: Job) -> None:
        """As `Engine.submit`."""
        unit = job.unit.name
        try:
            future = self._client.submit(work, self._name, job_to_bytes(job), pure=False)
        except Exception as error:
            raise DeviceError("the Dask scheduler is gone", hint="start it, then variegate attack resume") from error
        self._futures[unit] = future
        future.add_done_callback(lambda done: self._ended(unit, done))

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`."""
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            item = self._arrived.get(timeout=timeout_s)
            while True:
                event = item if isinstance(item, UnitFailed) else event_from_bytes(item)
                if not isinstance(event, ImageDone):
                    self._futures.pop(event.unit, None)
                events.append(event)
                item = self._arrived.get_nowait()
        self._mind_loneliness(busy=bool(events))
        return events

    def close(self) -> None:
        """As `Engine.close`: leaves the cluster as it was, without what was still to do."""
        with contextlib.suppress(Exception):
            for future in self._futures.values():
                future.cancel()
            self._client.unregister_worker_plugin(self._name)
        with contextlib.suppress(Exception):
            self._client.close(timeout=_CONNECT_S)

    def _threads(self) -> int:
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1).get("workers", {})
        return sum(int(worker.get("nthreads", 0)) for worker in workers.values())

    def _told(self, event: tuple[float, Any]) -> None:
        self._arrived.put(event[1])

    def _ended(self, unit: str, future: Any) -> None:
        try:
            self._arrived.put(
                future.result() if future.status == "finished" else UnitFailed(unit=unit, reason=_why(future))
            )
        except Exception as error:  # noqa: BLE001  raised in a thread of the client's: it would be lost
            self._arrived.put(UnitFailed(unit=unit, reason=f"{type(error).__name__}: {error}"[:500]))

    def _mind_loneliness(self, *, busy: bool) -> None:
        """Gives up when nobody has been there to work for too long."""
        if busy or (self._client.status == "running" and self._threads()):
            self._lonely = None
            return
        now = time.monotonic()
        self._lonely = now if self._lonely is None else self._lonely
        if now - self._lonely > PATIENCE_S:
            raise DeviceError(
                "the Dask cluster has no workers, or its scheduler is gone",
                hint="start workers, then variegate attack resume",
            )


def _why(future: Any) -> str:
    error = future.exception() if future.status == "error" else None
    return f"{type(error).__name__}: {error}"[:500] if error is not None else f"the cluster {future.status} it"
