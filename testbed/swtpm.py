"""A real software TPM 2.0 (`swtpm`) for a test, on a Unix socket; it can be killed and started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = shutil.which("swtpm")
_START_S = 20.0
_LISTENING = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


class SoftwareTpm:
    """The program, with its state in `folder`; the state outlives it, as a chip's does a power cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._socket = folder / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """How it is reached."""
        return f"swtpm:path={self._socket}"

    @property
    def pid(self) -> int:
        """Of the running program."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Powers it on: counters as they were, PCRs at their start."""
        assert PROGRAM is not None
        control = self._socket.with_name("s.ctrl")  # where tss2-tcti-swtpm looks for it
        for left in (self._socket, control):
            left.unlink(missing_ok=True)
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                *(PROGRAM, "socket", "--tpm2", "--tpmstate", f"dir={state}"),
                *("--server", f"type=unixio,path={self._socket}", "--ctrl", f"type=unixio,path={control}"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + _START_S
        while not (_listens(self._socket) and _listens(control)):
            assert self._process.poll() is None, "swtpm did not start"
            assert time.monotonic() < until, "swtpm did not start in time"
            time.sleep(0.01)

    def kill(self) -> None:
        """Cuts its power."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """A power cycle."""
        self.kill()
        self.start()


def _listens(path: Path) -> bool:
    """Whether a socket is bound and listening, by the kernel's list: connecting would take the only connection."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if fields[-1] == str(path) and int(fields[3], 16) & _LISTENING:
            return True
    return False


@contextmanager
def software_tpm() -> Iterator[SoftwareTpm]:
    """A new one, running, in a folder whose name is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="swtpm-") as folder:
        tpm = SoftwareTpm(Path(folder))
        tpm.start()
        try:
            yield tpm
        finally:
            tpm.kill()
