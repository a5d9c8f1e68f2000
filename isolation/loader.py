"""Opens a copy in a short-lived forked process, so that its keys end with it."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

from variegate.isolation import wire
from variegate.isolation.wire import Kind
from variegate.keys.errors import DeviceError, VariegateError

_MAX_RESULT = 64 * 1024


def in_a_fork(pair: tuple[socket.socket, socket.socket], work: Callable[[], list[object]]) -> list[object]:
    """Runs `work` in a child process and returns what it returned, in CBOR's types.

    Args:
        pair: Two ends of a socket that keeps packets, for the result; both are closed.
        work: An error of ours that it raises is raised here; of others nothing comes back.

    Raises:
        VariegateError: As `work`.
        DeviceError: The child ended without a message.
    """
    ours, theirs = pair
    child = os.fork()
    if child == 0:
        _report(theirs, work)
    theirs.close()
    with ours:
        result = ours.recv(_MAX_RESULT)
    _, status = os.waitpid(child, 0)
    if not result or status != 0:
        end = f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"with status {status >> 8}"
        raise DeviceError(
            f"the process that opens the copy ended early, {end}", hint="it may need more memory: see ram_mib"
        )
    kind, values = wire.unpack(result)
    if kind == Kind.FAILED:
        raise wire.error_of(values)
    return values


def _place(error: Exception) -> str:
    """File and line of ours where an error was raised; its own words may quote a secret."""
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if "variegate" in str(frame.f_globals.get("__name__", ""))
    ]
    return places[-1] if places else "foreign code"


def _report(channel: socket.socket, work: Callable[[], list[object]]) -> None:
    """Ends the process; whatever happens, no frame of the parent's continues running here."""
    status = 1
    try:
        try:
            result = wire.pack(Kind.DONE, *work())
        except VariegateError as error:
            result = wire.failure(error)
        except MemoryError:
            result = wire.failure(DeviceError("the enclave has not enough memory", hint="raise ram_mib"))
        except Exception as error:  # noqa: BLE001 - a fault of ours: the device's log says where, and no words of it
            result = wire.failure(DeviceError(f"opening the copy failed ({type(error).__name__} in {_place(error)})"))
        channel.send(result)
        status = 0
    finally:
        os._exit(status)
