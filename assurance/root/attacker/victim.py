"""Finds a serving device: its processes in `/proc`, its labels over HTTP. Nothing else is known about it."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from assurance.root.attacker.linux import Mapping, mappings
from assurance.root.attacker.needles import Needles

_ARCHIVE = b"/proc/self/fd/3"
"""The archive from which an enclave is started."""
_PATH = "/v2/models/copy"
_PATIENCE_S = 20.0
_BATCH = 64
SECRET, FRAMES = "/secretmem (deleted)", "/memfd:variegate-frames (deleted)"


class Refused(Exception):  # noqa: N818  the device's answer, not a mistake
    """The device gave no label.

    Attributes:
        status: Of HTTP, or 0 when nothing came.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class NoDeviceError(Exception):
    """No device serves here."""


def words_of(pid: int) -> list[bytes]:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """The parent's id; 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def pids() -> list[int]:
    """All processes."""
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


@dataclass
class Victim:
    """One device.

    Attributes:
        supervisor: Process that serves.
        port: Where it answers HTTP, on this machine.
        folder: Its folder.
        secrets: Windows that it must not give away.
        slow: How many times slower this machine is than one with processors of its own: all waiting is longer.
    """

    supervisor: int
    port: int
    folder: Path
    secrets: list[bytes] = field(repr=False)
    slow: float = 1.0

    @classmethod
    def found(cls, secrets: list[bytes], port: int | None = None) -> Victim:
        """The device that serves.

        Args:
            secrets: As above.
            port: Its port, where several serve.

        Raises:
            NoDeviceError: None does.
            OSError: Its folder is not named in full, and where it started is not to be seen.
        """
        for pid in pids():
            words = [os.fsdecode(word) for word in words_of(pid)]
            # Only what anybody sees of a process: where root is held down it sees no more.
            if "device" not in words or "serve" not in words or "python" not in words[0]:
                continue
            rest = words[words.index("serve") + 1 :]
            number = int(rest[rest.index("--port") + 1]) if "--port" in rest else 8000
            if port in (None, number):
                folder = Path(rest[0])
                if not folder.is_absolute():
                    folder = Path(f"/proc/{pid}/cwd").readlink() / folder
                return cls(pid, number, folder, secrets)
        raise NoDeviceError("no process serves a device")

    def enclave(self, other_than: int = 0) -> int:
        """The enclave's process, waited for.

        Raises:
            NoDeviceError: There is none.
        """
        until = self.until(_PATIENCE_S)
        while time.monotonic() < until:
            for pid in pids():
                if pid != other_than and parent_of(pid) == self.supervisor and _ARCHIVE in words_of(pid):
                    return pid
            time.sleep(0.01)
        raise NoDeviceError("the device has no enclave")

    def until(self, seconds: float) -> float:
        """The end of a time, on the monotonic clock."""
        return time.monotonic() + seconds * self.slow

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of a frame, as the port says.

        Raises:
            Refused: It says nothing.
        """
        (image,) = json.loads(self._asked("GET", _PATH))["inputs"]
        return tuple(image["shape"][1:])

    @property
    def pixels(self) -> int:
        """Values of a frame."""
        return math.prod(self.shape)

    def ask(self, *frames: bytes) -> list[int]:
        """Labels of frames of bytes.

        Raises:
            Refused: None came.
        """
        tensor = {
            "name": "image",
            "datatype": "UINT8",
            "shape": [len(frames), *self.shape],
            "data": list(b"".join(frames)),
        }
        answer = json.loads(self._asked("POST", f"{_PATH}/infer", json.dumps({"inputs": [tensor]})))
        return [int(label) for label in answer["outputs"][0]["data"]]

    def patiently(self, *frames: bytes, seconds: float = _PATIENCE_S) -> list[int]:
        """As `ask`, again and again while the device starts.

        Raises:
            Refused: As `ask`, for good.
        """
        until = self.until(seconds)
        while True:
            try:
                # Without frames, a black one: what a frame is, only a device that serves says.
                return self.ask(*frames or (bytes(self.pixels),))
            except Refused as error:
                if error.status not in (0, 429, 503) or time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def _asked(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S * self.slow)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Refused(0, type(error).__name__) from None
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise Refused(answer.status, text[:200].decode("utf-8", "replace"))
        return text

    @cached_property
    def known(self) -> bytes:
        """A frame of random bytes; whoever finds it in memory has read the device's working data."""
        return random.Random(os.getpid()).randbytes(self.pixels)  # noqa: S311  no secret

    def show_known(self) -> None:
        """Has `known` classified.

        Raises:
            Refused: As `ask`.
        """
        self.patiently(self.known)

    def haystack(self) -> Needles:
        """Windows of secrets; the last ones are of `known`."""
        known = self.known
        return Needles([*self.secrets, *(known[i : i + 32] for i in range(0, len(known) - 31, 32))])

    @contextmanager
    def busy(self, *frames: bytes) -> Iterator[Callable[[], int]]:
        """Asks all the time, in a thread.

        Yields:
            How many answers came so far.
        """
        done, answers = threading.Event(), 0
        shown = frames or (self.known,) * _BATCH

        def work() -> None:
            nonlocal answers
            while not done.is_set():
                with contextlib.suppress(Refused):
                    self.ask(*shown)
                    answers += 1

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield lambda: answers
        finally:
            done.set()
            thread.join(_PATIENCE_S * self.slow)

    def area(self, pid: int, path: str) -> Mapping:
        """The mapping of a process that has this name, the largest of several.

        Raises:
            OSError: As `mappings`.
            LookupError: There is none.
        """
        found = [area for area in mappings(pid) if area.path == path]
        if not found:
            raise LookupError(f"no mapping {path}")
        return max(found, key=lambda area: area.end - area.start)
