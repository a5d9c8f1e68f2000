"""Real processes to lock down and to look into: forked from one that has imported everything, so each costs little.

A fork happens in a process with one thread, as the enclave is one. Code runs in a child of a monitor, which tells how
it ended.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

_ZYGOTE = """
import ctypes, errno, json, mmap, os, resource, signal, socket, sys, threading, time
import numpy as np
import onnxruntime as ort
from variegate.isolation import calls, landlock, lockdown, pages, seccomp, syscalls, tracing
from variegate.isolation.calls import Stage, filter_calls
from variegate.isolation.lockdown import lock_down
from variegate.isolation.pages import SecretRegion
from variegate.isolation.seccomp import ALLOW, Compare, Filter, Where, fails_with
from variegate.isolation.tracing import PtraceGuard
from variegate.keys.errors import DeviceError, MisuseError

libc = ctypes.CDLL(None, use_errno=True)


def say(*values):
    os.write(1, (json.dumps(values if len(values) != 1 else values[0]) + "\\n").encode())


def wait():
    "Until the test says something; gives what it said."
    word = b""
    while not word.endswith(b"\\n"):
        more = os.read(0, 1)
        if not more:
            os._exit(0)
        word += more
    return word[:-1].decode()


def tried(does, *arguments):
    "The name of the error that a call gives, or None."
    try:
        does(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def plain(protections):
    return [[p.name, p.state.value, p.reason] for p in protections]


def become_nobody():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    syscalls.prctl(4, 1)  # a change of user takes it away; an ordinary process has it


port = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    code, fds, _, _ = socket.recv_fds(port, 1 << 16, 3)
    if not code:
        os._exit(0)
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        port.close()
        pid = os.fork()
        if pid == 0:
            os.dup2(fds[0], 0), os.dup2(fds[1], 1), os.dup2(fds[1], 2)
            for fd in fds:
                os.close(fd)
            try:
                exec(compile(code, "<child>", "exec"), globals())
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.write(fds[2], b"%d\\n" % pid)
        os.close(fds[0]), os.close(fds[1])
        _, raw = os.waitpid(pid, 0)
        os.write(fds[2], b"%d\\n" % os.waitstatus_to_exitcode(raw))
        os._exit(0)
    for fd in fds:
        os.close(fd)
"""

_PATIENCE_S = 30


@dataclass
class Child:
    """One process that runs a test's code.

    Attributes:
        pid: Its id.
    """

    pid: int
    _input: IO[bytes]
    _output: IO[bytes]
    _end: IO[bytes]

    def hear(self) -> object:
        """What the child says next."""
        line = _line(self._output)
        try:
            return json.loads(line)
        except ValueError:
            raise AssertionError("".join([line, *iter(lambda: _line(self._output), "")])) from None

    def tell(self, word: str = "") -> None:
        """Lets a child that waits go on."""
        self._input.write(word.encode() + b"\n")

    def ended(self) -> int:
        """Waits for the end; the exit status, or minus the signal."""
        self._input.close()
        status = int(_line(self._end))
        self.close()
        return status

    def close(self) -> None:
        """Lets go of it; a child that waits ends."""
        for file in (self._input, self._output, self._end):
            file.close()


def _line(pipe: IO[bytes]) -> str:
    """The next line, or nothing at the end; a failing test does not wait for ever."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([pipe], [], [], _PATIENCE_S)[0]:
            raise AssertionError(f"a child says nothing for {_PATIENCE_S} s")
        byte = pipe.read(1)
        if not byte:
            break
        line += byte
    return line.decode()


class Zygote:
    """Where children come from; a context manager."""

    def __enter__(self) -> Self:
        self._children: list[Child] = []
        self._port, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ZYGOTE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
            # One thread: neither numpy's nor onnxruntime's helpers.
            env={"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        )
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.close()
        self._port.close()
        self._process.wait()

    def start(self, code: str) -> Child:
        """Runs code in a new process; `say`, `wait` and `tried` are there, and all of isolation."""
        inputs, outputs, ends = os.pipe(), os.pipe(), os.pipe()
        socket.send_fds(self._port, [textwrap.dedent(code).encode()], [inputs[0], outputs[1], ends[1]])
        for descriptor in (inputs[0], outputs[1], ends[1]):
            os.close(descriptor)
        end = os.fdopen(ends[0], "rb", buffering=0)
        pid = int(_line(end))
        child = Child(pid, os.fdopen(inputs[1], "wb", buffering=0), os.fdopen(outputs[0], "rb", buffering=0), end)
        self._children.append(child)
        return child

    def run(self, code: str) -> tuple[object, int]:
        """Runs code to its end: what it said, and its status."""
        child = self.start(code)
        said = child.hear()
        return said, child.ended()
