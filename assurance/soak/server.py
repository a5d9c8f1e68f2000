"""The server of `assurance.soak`: `variegate device serve` as a process, observed from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_S, _STOP_S = 120.0, 60.0
_QUIET_S, _CLOSED_S = 120.0, 0.5
_MIB = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PREFIX = "variegate_"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The resources of one process.

    Attributes:
        pid: Of the process.
        rss_mib: Resident memory.
        descriptors: Open ones, or None where this user may not look.
        threads: Of the process.
    """

    pid: int
    rss_mib: float
    descriptors: int | None
    threads: int

    @classmethod
    def of(cls, pid: int) -> Usage | None:
        """Reads /proc; None where the process has ended."""
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            threads = _entries(f"/proc/{pid}/task")
            try:
                descriptors: int | None = _entries(f"/proc/{pid}/fd")
            except PermissionError:
                descriptors = None
        except OSError:
            return None
        return cls(pid=pid, rss_mib=pages * _PAGE / _MIB, descriptors=descriptors, threads=threads)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Both processes at one moment.

    Attributes:
        at_s: Since the start.
        server: The supervisor, which serves.
        enclave: The enclave process; None between two of them.
    """

    at_s: float
    server: Usage
    enclave: Usage | None


class Served:
    """A running server.

    Args:
        folder: Of the device.
        said: File for its standard error.
        socket: Path for the label socket.
        options: More of the command's.
    """

    def __init__(self, folder: Path, said: Path, socket: Path, *options: str) -> None:
        self.path, self._said = socket, said
        arguments = ("device", "serve", str(folder), "--port", "0", "--metrics-port", "0", "--socket", str(socket))
        command = [sys.executable, "-m", "variegate.cli.main", *arguments, *options]
        with said.open("wb") as file:
            # heeds SIGTERM; whatever is typed at the benchmark is the benchmark's
            self._process = subprocess.Popen(command, stderr=file, start_new_session=True)  # noqa: S603 - ours
        self._told: list[str] = []
        end = time.monotonic() + _START_S
        while not (self._told and self._told[-1].startswith("label socket at")):
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError("the server does not start: " + "\n".join(self._told))
            time.sleep(0.05)
            self._told = said.read_text().splitlines()
        text = "\n".join(self._told)
        self.address = _address(text, "serving at")
        self._metrics = _address(text, "metrics at")
        self.began = time.monotonic()

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    @property
    def enclave(self) -> int | None:
        """Process id of the enclave, or None while there is none."""
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
        except OSError:
            return None
        for task in tasks:
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue
            if children:
                return int(children[0])
        return None

    def sample(self) -> Sample:
        """Both processes now."""
        server = Usage.of(self.pid)
        if server is None:
            raise RuntimeError("the server has ended: " + self._said.read_text())
        enclave = self.enclave
        return Sample(
            at_s=time.monotonic() - self.began,
            server=server,
            enclave=None if enclave is None else Usage.of(enclave),
        )

    def metrics(self) -> Mapping[str, float]:
        """The metrics page, labels left out of what has none."""
        url = f"http://{self._metrics[0]}:{self._metrics[1]}/metrics"
        with urllib.request.urlopen(url, timeout=30) as page:
            lines = page.read().decode().splitlines()
        found = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.removeprefix(_PREFIX): float(value) for name, _, value in found}

    def quiet(self, apart_s: float) -> tuple[Sample, int]:
        """Waits, with no client there, until two looks see the same; a sample, and the labels left in the budget."""
        end, before = time.monotonic() + _QUIET_S, (-1.0, -1.0)
        while time.monotonic() < end:
            found = self.metrics()
            left = found.get("budget_remaining", -1.0)
            # The connection that asks is one itself. What remains is a second old: it is to be the same twice.
            if found["queue"] == 0 and found["connections"] <= 1 and found["ready"] == 1:
                if (left, found["labels_total"]) == before:
                    time.sleep(_CLOSED_S)  # the connection that asked is gone by then
                    return self.sample(), int(left)
                before = left, found["labels_total"]
            time.sleep(apart_s)
        raise TimeoutError(f"the server does not come to rest: {self.metrics()}")

    def stop(self) -> tuple[int, list[str]]:
        """Asks it to stop; returns its exit status, and its output since its start."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(_STOP_S)
        return status, self._said.read_text().splitlines()[len(self._told) :]

    def kill(self) -> None:
        """Ends it in any case."""
        self._process.kill()
        self._process.wait()


@contextmanager
def served(folder: Path, said: Path, socket: Path, *options: str) -> Iterator[Served]:
    """A running server, gone afterwards."""
    server = Served(folder, said, socket, *options)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def sampled(server: Served, period_s: float) -> Iterator[list[Sample]]:
    """Samples every `period_s`, in a thread; the list grows."""
    samples: list[Sample] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(period_s):
            samples.append(server.sample())

    thread = threading.Thread(target=run, name="samples")
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def until(condition: Callable[[], bool], wait_s: float) -> bool:
    """Whether it came to be within the time."""
    end = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def _address(text: str, words: str) -> tuple[str, int]:
    found = re.search(rf"^{words} http://([^:]+):(\d+)", text, re.MULTILINE)
    assert found is not None, text
    return found[1], int(found[2])
