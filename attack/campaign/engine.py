"""Where units are done: in this process, in others on this machine, or on a Dask cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from variegate.attack.campaign.config import Campaign
from variegate.attack.campaign.copies import Opener, open_device_oracle
from variegate.attack.campaign.messages import Event, Job
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.work import Bench
from variegate.keys.errors import MisuseError

MOST_WORKERS = 1024
"""As in a campaign's file."""


class Engine(Protocol):
    """Does jobs and tells what comes of them."""

    @property
    def room(self) -> int:
        """Jobs that it would like to be given now, so that no worker waits."""
        ...

    def submit(self, job: Job) -> None:
        """Takes a job.

        Raises:
            DeviceError: No worker can be had.
        """
        ...

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """What has come since the last call; waits for something at most this long.

        Raises:
            DeviceError: No worker is left, and none can be had.
        """
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


class Serial:
    """In this process, one unit after another."""

    def __init__(self, prepared: Prepared, *, opened: Opener = open_device_oracle) -> None:
        """Opens nothing yet.

        Args:
            prepared: The campaign.
            opened: Opens devices.
        """
        self._bench = Bench(prepared, opened=opened)
        self._jobs: deque[Job] = deque()
        self._running: Iterator[Event] | None = None

    @property
    def room(self) -> int:
        """One job at a time."""
        return 0 if self._jobs or self._running is not None else 1

    def submit(self, job: Job) -> None:
        """As `Engine.submit`."""
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> Sequence[Event]:  # noqa: ARG002  it works instead of waiting
        """As `Engine.wait`: works until the next event."""
        if self._running is None:
            if not self._jobs:
                return ()
            self._running = self._bench.events(self._jobs.popleft())
        event = next(self._running, None)
        if event is None:
            self._running = None
            return ()
        return (event,)

    def close(self) -> None:
        """As `Engine.close`."""
        if self._running is not None:
            self._running = None
        self._bench.close()


def chosen(campaign: Campaign, workers: int | None, engine: str | None) -> tuple[str, int]:
    """Engine and number of workers of a run, the campaign's own where None.

    Raises:
        MisuseError: There is no such engine, or so many processes cannot share a fleet's devices.
    """
    number, name = campaign.run.workers if workers is None else workers, engine or campaign.run.engine
    if "://" not in name and name not in ("processes", "serial"):
        raise MisuseError(f"{name!r} is no engine", hint="the address of a Dask scheduler is tcp://HOST:PORT")
    if not 0 <= number <= MOST_WORKERS:
        raise MisuseError(f"there can be 0 to {MOST_WORKERS} workers")
    # A simulated device's folder opens in one process at a time.
    shared = next((f.name for f in campaign.fleets if any(uri.startswith("device:") for uri in f.devices)), None)
    if shared is not None and name != "serial" and (number > 1 or "://" in name):
        message = f"fleet {shared} has devices that only one process can open"
        raise MisuseError(message, hint="give --workers 1, or serve the devices: variegate device serve")
    return name, number


def started(engine: str, workers: int, prepared: Prepared, folder: Path) -> Engine:
    """The engine of a name, with its workers.

    Args:
        engine: "processes", "serial", or the address of a Dask scheduler, as `chosen` gives it.
        workers: Processes; 0 makes "processes" serial.
        prepared: The campaign.
        folder: Its folder.

    Raises:
        DeviceError: The scheduler cannot be reached, or a process does not start.
    """
    if "://" in engine:
        from variegate.attack.campaign.cluster import Cluster  # noqa: PLC0415  takes a second to import

        return Cluster(engine, folder)
    if engine == "serial" or workers == 0:
        return Serial(prepared)
    from variegate.attack.campaign.processes import Processes  # noqa: PLC0415

    return Processes(workers, folder)
