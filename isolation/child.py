"""The enclave process: locks itself down, has a copy loaded into its secret pages, answers queries.

No secret passes through the ordinary memory of the serving process. A forked loader opens the artefact: it reads the
device's keys, asks the broker if one is needed, decrypts into the pages that both share, and ends.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import sys
from typing import Any

import numpy as np
from cryptography.hazmat.backends import openssl as _openssl  # noqa: F401  no file can be opened on first use
from numpy.typing import NDArray

from variegate.attest.groups import members
from variegate.isolation import machine, seccomp, wire
from variegate.isolation.calls import Stage, filter_calls
from variegate.isolation.loader import in_a_fork
from variegate.isolation.lockdown import lock_down, undumpable
from variegate.isolation.pages import SecretRegion
from variegate.isolation.placed import PlacedCopy, PlacedEngine, copying_operator
from variegate.isolation.planner import Planner
from variegate.isolation.platform_client import PlatformClient, Settings, protections_to_values
from variegate.isolation.secret_copy import SecretCopy, open_into
from variegate.isolation.statements import Statements
from variegate.isolation.waiting import AFTER_ANSWER_S, Watch
from variegate.isolation.wire import Kind, Lost
from variegate.keys.artefact import Artefact
from variegate.keys.errors import DeviceError, VariegateError
from variegate.runtime.enclave import Enclave, Protection, ProtectionState

_DESCRIPTORS = 3
"""Frames, component, identity: the descriptors that come with `START`."""
_ROOMS = (64 << 20, 16 << 20, 4 << 20, 1 << 20)
"""Bytes to set aside for the keyed tensors; pages that are not written take no memory, but count as locked."""
_MOST_LISTED = 1500
"""Characters of the list in a refusal; an error's message is bounded."""
_ISOLATION = Protection("isolation", ProtectionState.ON, "a process of its own")


def serve(descriptor: int) -> None:
    """Runs the enclave until the supervisor hangs up.

    Args:
        descriptor: The socket to the supervisor.
    """
    channel = socket.socket(fileno=descriptor)
    with contextlib.suppress(Lost):
        with contextlib.suppress(seccomp.Unavailable):
            seccomp.open_library()  # now, so that it is measured with all else that is loaded
        modules = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
        wire.send(channel, wire.pack(Kind.LOADED, *sorted(modules)))
        settings, descriptors = _started(channel)
        try:
            process = _Process(channel, settings, descriptors)
        except VariegateError as error:
            wire.send(channel, wire.failure(error))
        else:
            process.run()


def _started(channel: socket.socket) -> tuple[Settings, list[int]]:
    # The packet first, its descriptors not yet: whoever may read /proc/PID/fd could open again what they lead to, and
    # neither Yama nor a held ptrace forbids that.
    ahead = channel.recv(wire.MAX_PACKET, socket.MSG_PEEK)
    if not ahead or ahead[0] != Kind.START:
        raise Lost("no start")
    if not Settings.of(wire.unpack(ahead)[1]).policy.debug and undumpable().state != ProtectionState.ON:
        raise Lost("open to its own user")
    packet, descriptors, _, _ = socket.recv_fds(channel, wire.MAX_PACKET, _DESCRIPTORS)
    if not packet or packet[0] != Kind.START or len(descriptors) != _DESCRIPTORS:
        raise Lost("no start")
    return Settings.of(wire.unpack(packet)[1]), descriptors


class _Process:
    """One enclave; single-threaded."""

    def __init__(self, channel: socket.socket, settings: Settings, descriptors: list[int]) -> None:
        self._channel = channel
        policy = settings.policy
        self._watch = Watch(channel)
        planner = Planner([channel.fileno(), *descriptors], policy.ram_mib)  # before anything secret is within reach
        # Everything that takes a descriptor comes before the lockdown.
        self._frames, file, identity = (_mapped(descriptor) for descriptor in descriptors)
        self._below = below = PlatformClient(channel, settings, identity)
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        region = _region(len(file), secret=policy.secret_pages)
        host = machine.protections()  # as it is now, looked at while this process still can
        held = (_ISOLATION, *settings.held, *host, *lock_down(ram_mib=policy.ram_mib, debug=policy.debug))
        self._protections = (*held, region.protection)
        self._hold_to(policy.require if policy.strict else ())
        with memoryview(file) as component:
            artefact = Artefact(settings.envelope, component)
            try:
                opening = in_a_fork(pair, lambda: open_into(region.view, artefact, below, self._protections, planner))
            except DeviceError as error:
                below.record("enclave", error.message)
                raise
        planner.close()
        file.close()
        below.forget_identity()
        narrowed = filter_calls(Stage.SERVE)
        self._opened = opened = SecretCopy.of(opening, region.view)
        # Protections that are known only now, under the second filter and with the graph.
        known = {narrowed.name: narrowed, region.protection.name: _memory(region.protection, opened.copy)}
        self._protections = tuple(known.get(p.name, p) for p in self._protections)
        self._hold_to(policy.require if policy.strict else ())
        self._engine = PlacedEngine(opened.copy)
        self._scrubs = region.protection.state == ProtectionState.ON  # else there is nothing to clear it for
        manifest, public = opened.copy.manifest, opened.signing_public
        # The supervisor charges: whoever writes to this process could reset a count here.
        self._enclave = Enclave(manifest, self._engine, opened.copy.canaries, below, self._protections, charged=True)
        self._number = 0
        self._says = Statements(below, manifest, self._protections, opened.sign, public)

    def run(self) -> None:
        """Answers until the supervisor hangs up.

        Raises:
            Lost: It did.
        """
        ready = [self._opened.manifest, protections_to_values(self._protections)]
        wire.send(self._channel, wire.pack(Kind.READY, *ready))
        while True:
            packet = wire.receive(self._channel)
            try:
                answer = self._answer(packet)
            except VariegateError as error:
                answer = wire.failure(error)
            except MemoryError:
                answer = wire.failure(DeviceError("the enclave has not enough memory", hint="raise ram_mib"))
            wire.send(self._channel, answer)
            if self._scrubs:  # after the answer is out: nobody waits for it
                self._engine.scrub()
            self._watch.look(AFTER_ANSWER_S)

    def _answer(self, packet: bytes) -> bytes:
        if packet[0] == Kind.QUERY:
            return self._query(packet)
        kind, values = wire.unpack(packet)
        match kind, values:
            case Kind.TEST, []:
                self._enclave.self_test()
                return wire.pack(Kind.DONE)
            case Kind.PING, []:
                return wire.pack(Kind.DONE)
            case Kind.EVIDENCE, [bytes(nonce), int(time_ns), int(security), int(used)]:
                self._below.update(time_ns / wire.NS, security, used)
                return wire.pack(Kind.DONE, self._says.evidence(nonce))
        raise Lost("supervisor sent an unknown packet")

    def _query(self, packet: bytes) -> bytes:
        if len(packet) != wire.QUERY_LAYOUT.size:
            raise Lost("query has the wrong length")
        _, number, now, security, count, receipt = wire.QUERY_LAYOUT.unpack(packet)
        if not math.isfinite(now):
            raise Lost("query has no valid time")
        if number <= self._number:
            # The supervisor's numbers rise: somebody else has asked over a duplicate of its socket.
            raise Lost("query has an old number")
        self._number = number
        self._below.update(now, security)
        spec = self._enclave.frames
        if count * spec.bytes > len(self._frames):
            raise Lost("more frames than fit")
        shown: NDArray[Any] = np.frombuffer(self._frames, spec.dtype, count * spec.size).reshape(count, *spec.shape)
        # The supervisor could write while this runs: a receipt must name the classified frames.
        frames = shown.copy() if receipt else shown
        labels = self._enclave.classify_batch(frames)
        answer = wire.LABELS_LAYOUT.pack(Kind.LABELS, number, count) + labels.astype("<i8", copy=False).tobytes()
        return answer + self._says.receipt(frames, labels) if receipt else answer

    def _hold_to(self, required: tuple[str, ...]) -> None:
        by_name = {protection.name: protection for protection in self._protections}
        wanted = {name: by_name.get(name) for name in members(required, by_name)}
        missing = [
            f"{name} ({'not known here' if p is None else p.reason})"
            for name, p in wanted.items()
            if p is None or p.state != ProtectionState.ON
        ]
        if missing:
            listed = "; ".join(missing)[:_MOST_LISTED]
            raise DeviceError(
                f"the device's policy requires protections that are not on: {listed}",
                hint="with strict = false in its policy.toml, `variegate device protections` lists all",
            )


def _memory(pages: Protection, copy: PlacedCopy) -> Protection:
    """The protection of the pages; off if this graph copies weights out of them."""
    operator = copying_operator(copy)
    if operator is None or pages.state != ProtectionState.ON:
        return pages
    return Protection(pages.name, ProtectionState.OFF, f"operator {operator} makes copies of weights")


def _mapped(descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        raise DeviceError("a descriptor given to the enclave is not memory") from None
    finally:
        os.close(descriptor)


def _region(component: int, *, secret: bool) -> SecretRegion:
    """Pages for a payload no longer than its component, and for the keyed tensors, as many as the limit allows."""
    for room in _ROOMS:
        with contextlib.suppress(DeviceError):
            return SecretRegion(component + room, secret=secret, required=secret)
    return SecretRegion(component + _ROOMS[0])
