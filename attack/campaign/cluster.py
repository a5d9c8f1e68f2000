"""Units on a Dask cluster that is there already: several machines, each with Variegate installed.

A plugin brings the campaign's inputs to every worker, also to one that comes later. Outcomes travel as events, so that
the ledger has them before their unit ends; shards come back as results, and only the campaign's own process writes.
The scheduler gives the unit of a worker that dies to another. Units go only to workers that say with their heartbeats
that they are fit: the scheduler also hands work to a worker that is not ready yet, or whose plugin has refused.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
from distributed import WorkerPlugin
from threadpoolctl import threadpool_limits

from variegate.attack.campaign import config, copies_file, images
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

PATIENCE_S = 60.0
"""How long a cluster may be without a fit worker, or its scheduler out of reach."""
_DASK: Any = distributed
"""Most of it has no types."""
_CONNECT_S = 15.0
_AHEAD = 2
"""Units for each thread of the cluster: one under way, one that waits there."""
_FIT = ""
"""What a fit worker says; another says why it is not."""
_TLS_HINT = "distributed.comm.tls in Dask's configuration names ca-file, client.cert and client.key"

_serving: list[Inputs] = []
_one_thread = contextlib.ExitStack()
"""A process has one number of threads for sums, and several units, even of several runs: none may restore it when it
ends while another is under way. So it is 1 while any run is served, and `Bench.events` changes nothing here. The thread
that limits must restore; `setup` and `teardown` have the same one, the worker's event loop."""


class Inputs(WorkerPlugin):
    """Brings the campaign's inputs to a worker, and keeps its opened copies."""

    def __init__(self, name: str, contents: dict[str, bytes]) -> None:
        self.name, self._contents, self._software = name, contents, software()
        self.bench: Bench | None = None
        self._says = "a worker does not take the campaign"

    def setup(self, worker: Any) -> None:
        """Reads them; copies are opened when a unit needs them.

        Raises:
            MisuseError: The worker has other software than the command.
        """
        # A worker that comes later stays in service when this raises, and tells nobody: its heartbeats do.
        worker.metrics[self.name] = lambda _: self._says
        differs = difference(self._software, software())
        if differs:
            self._says = f"a worker has other software: {differs}"
            raise MisuseError(self._says)
        self.bench = Bench(
            Prepared(
                campaign=config.parse(self._contents[CONFIG]),
                fleets=copies_file.from_bytes(self._contents[COPIES]),
                images=images.from_bytes(self._contents[IMAGES]),
            )
        )
        if not _serving:
            _one_thread.enter_context(threadpool_limits(1))
        _serving.append(self)
        self._says = _FIT

    def teardown(self, worker: Any) -> None:
        """Closes the copies."""
        worker.metrics.pop(self.name, None)
        if self in _serving:
            _serving.remove(self)
            if not _serving:
                _one_thread.close()
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


@dataclass
class _Given:
    """A unit that the cluster has.

    Attributes:
        job: The job, should it have to be given again.
        fit: The workers that may do it; without any, it waits.
        future: What becomes of it; None before it is given.
    """

    job: bytes
    fit: frozenset[str] = frozenset()
    future: Any = None


class Cluster:
    """The engine (`Engine`)."""

    def __init__(self, address: str, folder: Path) -> None:
        """Joins a scheduler.

        Args:
            address: Of the scheduler, tcp://host:port.
            folder: The campaign's.

        Raises:
            DeviceError: It cannot be reached, TLS is not configured for it, or it does not take the campaign.
        """
        contents = {name: read_capped(folder / name, limit=MAX_INPUT_BYTES) for name in (CONFIG, IMAGES, COPIES)}
        # Of this run alone: another may run an equal campaign on the same cluster.
        self._name = "variegate-" + secrets.token_hex(16)
        self._arrived: queue.SimpleQueue[tuple[Any, bytes | UnitFailed]] = queue.SimpleQueue()
        self._given: dict[str, _Given] = {}
        self._fit: dict[str, int] = {}
        self._refusal = ""
        self._lonely: float | None = None
        _check_tls(address)
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
        """Jobs that the threads of fit workers could take; some even without, for a cluster may start one for them."""
        return max(0, _AHEAD * max(1, sum(self._fit.values())) - len(self._given))

    def submit(self, job: Job) -> None:
        """As `Engine.submit`."""
        self._given[job.unit.name] = _Given(job_to_bytes(job))
        self._deal()

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `Engine.wait`."""
        self._look()
        self._deal()  # before events are taken: it may raise
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            future, item = self._arrived.get(timeout=timeout_s)
            while True:
                event = item if isinstance(item, UnitFailed) else event_from_bytes(item)
                if isinstance(event, ImageDone):
                    events.append(event)
                elif event.unit in self._given and self._given[event.unit].future is future:
                    del self._given[event.unit]
                    events.append(event)
                future, item = self._arrived.get_nowait()
        self._mind_loneliness(busy=bool(events))
        return events

    def close(self) -> None:
        """As `Engine.close`: leaves the cluster as it was, without what was still to do."""
        with contextlib.suppress(Exception):
            for given in self._given.values():
                if given.future is not None:
                    given.future.cancel()
            self._client.unregister_worker_plugin(self._name)
        with contextlib.suppress(Exception):
            self._client.close(timeout=_CONNECT_S)

    def _look(self) -> None:
        """Sees which workers are fit, and their threads; nothing new while the scheduler is out of reach."""
        if self._client.status != "running":
            return
        try:
            # Not `scheduler_info`: between its question and its answer the client may forget the workers.
            info: dict[str, Any] = self._client.sync(self._client.scheduler.identity, n_workers=-1)
        except OSError:
            return
        workers: dict[str, Any] = info["workers"]
        said = {address: worker["metrics"].get(self._name) for address, worker in workers.items()}
        self._fit = {address: int(workers[address]["nthreads"]) for address, word in said.items() if word == _FIT}
        self._refusal = next((str(word) for word in said.values() if word), "")

    def _deal(self) -> None:
        """Gives units to fit workers; again those whose workers are all gone."""
        fit = frozenset(self._fit)
        for unit, given in self._given.items():
            if given.future is not None and (given.fit == fit or given.fit & fit):
                continue
            # What nobody has keeps a unit from all workers: one that is fit may come, or be started for it.
            where: dict[str, Any] = {"workers": sorted(fit)} if fit else {"resources": {self._name: 1}}
            try:
                if given.future is not None:
                    given.future.cancel()
                future = self._client.submit(work, self._name, given.job, pure=False, **where)
            except Exception as error:
                message = "the Dask scheduler is gone"
                raise DeviceError(message, hint="start it, then variegate attack resume") from error
            given.future, given.fit = future, fit
            future.add_done_callback(lambda done, unit=unit: self._ended(unit, done))

    def _told(self, event: tuple[float, Any]) -> None:
        self._arrived.put((None, event[1]))

    def _ended(self, unit: str, future: Any) -> None:
        try:
            self._arrived.put(
                (future, future.result() if future.status == "finished" else UnitFailed(unit=unit, reason=_why(future)))
            )
        except Exception as error:  # noqa: BLE001  raised in a thread of the client's: it would be lost
            self._arrived.put((future, UnitFailed(unit=unit, reason=f"{type(error).__name__}: {error}"[:500])))

    def _mind_loneliness(self, *, busy: bool) -> None:
        """Gives up when nobody has been there to work for too long."""
        if busy or (self._client.status == "running" and self._fit):
            self._lonely = None
            return
        now = time.monotonic()
        self._lonely = now if self._lonely is None else self._lonely
        if now - self._lonely > PATIENCE_S:
            message = "the Dask cluster has no workers, or its scheduler is gone"
            if self._refusal:
                message = f"the Dask cluster has no worker that is fit: {self._refusal}"
            raise DeviceError(message, hint="start workers, then variegate attack resume")


def _why(future: Any) -> str:
    error = future.exception() if future.status == "error" else None
    return f"{type(error).__name__}: {error}"[:500] if error is not None else f"the cluster {future.status} it"


def _check_tls(address: str) -> None:
    """Before a client tries: it would end in an error of no kind in particular, and keep the process for half a minute.

    Raises:
        DeviceError: Dask's configuration has no TLS for the address, or cannot be read.
    """
    try:
        arguments = _DASK.Security().get_connection_args("client")
    except (OSError, ValueError) as error:
        raise DeviceError(f"Dask's TLS configuration cannot be read ({error})", hint=_TLS_HINT) from error
    scheme = address.partition("://")[0]
    if scheme in ("tls", "wss") and arguments["ssl_context"] is None:
        raise DeviceError(f"TLS is not configured for {address}", hint=_TLS_HINT)
    if scheme == "tcp" and arguments["require_encryption"]:
        raise DeviceError(
            f"Dask's configuration requires encryption, and {address} has none", hint="name a tls:// address"
        )
