"""Boots an image under QEMU, without hardware acceleration, with `swtpm` as the TPM."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from variegate.device_sim.image import tools
from variegate.device_sim.image.build import BOOT, DATA, ROOT, read_facts
from variegate.keys.errors import DeviceError, MisuseError

_INSIDE_PORT = 8000
_TPM_START_S = 20.0
_POLL_S = 0.25
_END_S = 10.0
_LAST_WORDS = 3
_SEQUENCES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
"""Control sequences of terminals (ECMA-48, section 5.4)."""
START_S = 600.0
"""Time for a machine to start on a busy host."""


class Machine:
    """One running image; a context manager. Leaving it is a power cut, which the device is made for."""

    def __init__(
        self,
        image: Path,
        tpm_state: Path,
        *,
        port: int,
        shell: Path | None = None,
        tools_disk: Path | None = None,
        memory_mib: int = 1536,
        cores: int = 2,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Powers it on.

        Args:
            image: As `build` made it.
            tpm_state: Folder with the state of the TPM that the device was made over; no other `swtpm` may use it.
            port: On 127.0.0.1, for labels over HTTP.
            shell: Unix socket to make, that root's shell is on; the image must have one.
            tools_disk: File that root finds as the disk /dev/vdc, as it is; None for no such disk.
            memory_mib: Of the machine.
            cores: Of the machine.
            say: Gets each line of its console, without control characters.

        Raises:
            MisuseError: A program is missing, there is no image or no TPM's state, or the port is taken.
            RefusedError: The image's description is damaged.
            DeviceError: The TPM or the machine does not start.
        """
        tools.need(tools.BOOTING)
        self.facts = read_facts(image)
        if not tpm_state.is_dir():
            raise MisuseError(f"{tpm_state} holds no state of a TPM", hint="the folder that swtpm has as --tpmstate")
        if shell is not None and not self.facts.shell:
            raise MisuseError("this image has no root shell", hint="make it with --root-shell")
        if shell is not None and os.path.lexists(shell):
            raise MisuseError(f"{shell} is there already", hint="name a socket that does not exist yet")
        _check_free(port)
        self.port, self._say = port, say
        self.console: list[str] = []
        with ExitStack() as undo:
            work = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="variegate-")))
            tpm = _started_tpm(tpm_state, work)
            undo.callback(_end, tpm)
            forward = f"hostfwd=tcp:127.0.0.1:{port}-:{_INSIDE_PORT}"
            line = f"unix:{shell},server=on,wait=off" if shell is not None else "null"
            brought: list[str] = []
            if tools_disk is not None:
                brought = ["-drive", f"if=none,id=tools,format=raw,readonly=on,file={_escaped(tools_disk)}"]
                brought += ["-device", "virtio-blk-pci,drive=tools"]
            self._process = subprocess.Popen(  # noqa: S603  named in `tools`
                [
                    *(tools.path_of("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-no-reboot"),
                    *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cores)),
                    *("-m", str(memory_mib), "-display", "none", "-sandbox", "on,spawn=deny"),
                    *("-bios", str(tools.FIRMWARE), "-kernel", str(image / BOOT)),
                    *("-drive", f"if=none,id=root,format=raw,readonly=on,file={_escaped(image / ROOT)}"),
                    *("-device", "virtio-blk-pci,drive=root"),
                    *("-drive", f"if=none,id=data,format=raw,file={_escaped(image / DATA)}"),
                    *("-device", "virtio-blk-pci,drive=data"),
                    *("-chardev", f"socket,id=tpm,path={work / 'tpm'}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
                    *("-device", "tpm-crb,tpmdev=tpm0"),
                    *("-netdev", f"user,id=net,restrict=on,{forward}", "-device", "virtio-net-pci,netdev=net"),
                    *("-serial", "stdio", "-serial", line, *brought),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                umask=0o077,  # the shell's socket is its owner's alone
            )
            undo.callback(self._off)
            if shell is not None:
                undo.callback(shell.unlink, missing_ok=True)
            self._reader = threading.Thread(target=self._read, name="console", daemon=True)
            self._reader.start()
            self._close = undo.pop_all()

    @property
    def address(self) -> str:
        """The address of its labels."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it is on."""
        return self._process.poll() is None

    def wait(self, seconds: float = START_S) -> float:
        """Waits until the device answers.

        Returns:
            Seconds that took.

        Raises:
            DeviceError: The machine ended, or did not answer in time; the message has its last words.
        """
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if not self.running:
                self._reader.join(_END_S)
                raise DeviceError(f"the machine ended: {self._last_words()}")
            if _answers(f"{self.address}/v2/health/ready"):
                return time.monotonic() - began
            time.sleep(_POLL_S)
        raise DeviceError(f"the machine did not answer in {seconds:.0f} s: {self._last_words()}")

    def ended(self, seconds: float = START_S) -> str:
        """Waits for its end by itself.

        Returns:
            Its last words.

        Raises:
            DeviceError: It still runs.
        """
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DeviceError("the machine goes on") from None
        self._reader.join(_END_S)
        return self._last_words()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.close()

    def _off(self) -> None:
        _end(self._process)
        self._reader.join(_END_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for raw in self._process.stdout:
            # The firmware clears the screen; a device's output is foreign text.
            plain = _SEQUENCES.sub(b"", raw).decode("utf-8", "replace")
            line = "".join(c for c in plain if c.isprintable()).strip()
            if line:
                self.console.append(line)
                if self._say is not None:
                    self._say(line)

    def _last_words(self) -> str:
        said = [line.removeprefix("image: ") for line in self.console if "the machine ends" not in line]
        panic = next((line for line in said if "Kernel panic" in line), None)
        return panic or " / ".join(said[-_LAST_WORDS:]) or "it said nothing"


def _started_tpm(state: Path, work: Path) -> subprocess.Popen[bytes]:
    control = work / "tpm"
    process = subprocess.Popen(  # noqa: S603  named in `tools`
        [
            *(tools.path_of("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}"),
            *("--ctrl", f"type=unixio,path={control}", "--flags", "startup-clear"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + _TPM_START_S
    while not control.exists():
        if process.poll() is not None or time.monotonic() > until:
            _end(process)
            raise DeviceError("the TPM does not start", hint="does another swtpm use its state?")
        time.sleep(0.02)
    return process


def _answers(url: str) -> bool:
    """Whether a server at this machine answers well; nothing listens behind a forwarded port for long."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  our own address
        return bool(answer.status == HTTPStatus.OK)
    return False


def _check_free(port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise MisuseError(f"cannot listen on port {port}: {error.strerror}") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _escaped(path: Path) -> str:
    """A path within an option of QEMU's, where a comma is doubled."""
    return str(path).replace(",", ",,")
