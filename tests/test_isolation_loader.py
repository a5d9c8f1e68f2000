"""The process that opens a copy: what ends it is said, in words that quote nothing."""

from __future__ import annotations

import os
import signal
import socket

import numpy as np
import pytest

from variegate.isolation.loader import in_a_fork
from variegate.keys.errors import DeviceError


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_an_error_that_is_not_ours_is_named_and_not_quoted() -> None:
    def work() -> list[object]:
        secret = np.full(3, 77.0)
        raise ValueError(f"weights {secret}")

    with pytest.raises(DeviceError, match=r"opening the copy failed \(ValueError in ") as caught:
        in_a_fork(pair(), work)
    assert "77" not in str(caught.value)


def test_a_process_that_is_killed_says_by_what() -> None:
    def work() -> list[object]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    with pytest.raises(DeviceError, match="by signal 9") as caught:
        in_a_fork(pair(), work)
    assert "ram_mib" in (caught.value.hint or "")
