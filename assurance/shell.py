"""Root's shell in a device image, controlled by a program: sends commands and returns their output."""

from __future__ import annotations

import re
import secrets
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_MARK_BYTES = 8
_START_S = 60.0


class ShellError(Exception):
    """The shell did not answer in time, or ended."""


class RootShell:
    """The serial line that `device boot --shell` makes a Unix socket of; a context manager."""

    def __init__(self, path: Path) -> None:
        """Connects, and waits until the shell answers.

        Raises:
            ShellError: It does not.
        """
        self._line = socket.socket(socket.AF_UNIX)
        try:
            self._line.connect(str(path))
        except OSError as error:
            raise ShellError("there is no shell") from error
        # No prompts and no echo: what comes back is what commands print.
        self.run("stty -echo -onlcr; PS1=; PS2=", seconds=_START_S)

    def run(self, command: str, *, seconds: float = 60.0) -> tuple[int, str]:
        """Runs a command of the shell.

        Returns:
            Its exit status and output.

        Raises:
            ShellError: It did not end in time, or the machine did.
        """
        mark = secrets.token_hex(_MARK_BYTES)
        # In two parts, so that an echo of the command is not taken for its end.
        self._line.sendall(f"echo; echo {mark}'<'; {command}\nstatus=$?; echo; echo {mark}'>' $status\n".encode())
        ended = re.compile(rb"\n%b> (\d+)\r?\n" % mark.encode())
        said, until = b"", time.monotonic() + seconds
        while (found := ended.search(said)) is None:
            left = until - time.monotonic()
            if left <= 0:
                raise ShellError(f"no end of: {command[:80]}")
            self._line.settimeout(left)
            try:
                part = self._line.recv(1 << 16)
            except TimeoutError:
                continue
            if not part:
                raise ShellError("the machine ended")
            said += part
        text = said[: found.start()].decode("utf-8", "replace")
        return int(found[1]), text.rpartition(f"{mark}<\n")[2].removesuffix("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
