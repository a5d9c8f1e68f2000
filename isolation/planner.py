"""Asks onnxruntime for its layout of a network's weights, in a process without the weights.

onnxruntime answers by writing a file, which the locked-down loader must not do. So a helper is forked before the
lockdown. It receives the graph and the names and shapes of the weights (`arrange` puts markers in their place), but no
weight, message or key; it answers once and ends.

    request   length (4, big-endian) || CBOR [graph, [[name, dtype, shape], ...]]
    answer    length (4, big-endian) || graph; nothing when onnxruntime could not be asked
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from variegate.isolation.arrange import optimised
from variegate.isolation.lockdown import (
    drop_capabilities,
    limit_memory,
    no_new_privs,
    refuse_exec_gain,
    undumpable,
)
from variegate.keys import cbor
from variegate.keys.artefact import Spec
from variegate.keys.component import MAX_COMPONENT_BYTES

_LENGTH_BYTES = 4


class Planner:
    """The helper, seen from the processes that were forked after it."""

    def __init__(self, descriptors: Sequence[int], ram_mib: int) -> None:
        """Forks it; call this in a process with one thread, before its lockdown and before it maps a secret.

        Args:
            descriptors: Descriptors that the helper must not keep.
            ram_mib: Its cap, as `lockdown.limit_memory`.
        """
        self._channel, theirs = socket.socketpair()
        self._child = os.fork()
        if self._child == 0:
            _answer(theirs, (self._channel.detach(), *descriptors), ram_mib)
        theirs.close()

    def __call__(self, graph: bytes, specs: list[Spec]) -> bytes | None:
        """As `arrange.optimised`."""
        wanted = [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]
        try:
            _send(self._channel, cbor.encode([graph, wanted]))
            return _receive(self._channel) or None
        except OSError:
            return None

    def close(self) -> None:
        """Hangs up and waits for its end."""
        self._channel.close()
        os.waitpid(self._child, 0)


def _answer(channel: socket.socket, others: Sequence[int], ram_mib: int) -> None:
    try:
        for descriptor in others:
            os.close(descriptor)
        limit_memory(ram_mib)
        no_new_privs()
        refuse_exec_gain()
        drop_capabilities()
        undumpable()
        request = cbor.decode(_receive(channel), limit=MAX_COMPONENT_BYTES)
        graph, wanted = request
        specs = [Spec(name, dtype, tuple(shape)) for name, dtype, shape in wanted]
        _send(channel, optimised(graph, specs) or b"")
    finally:
        os._exit(0)


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(len(data).to_bytes(_LENGTH_BYTES, "big"))
    channel.sendall(data)


def _receive(channel: socket.socket) -> bytes:
    """The received bytes; empty when the other side closed the socket."""
    length = int.from_bytes(channel.recv(_LENGTH_BYTES, socket.MSG_WAITALL), "big")
    data = channel.recv(length, socket.MSG_WAITALL) if length else b""
    return data if len(data) == length else b""
