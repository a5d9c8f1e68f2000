"""Targets on the socket between supervisor and enclave, in both directions, without a process at the other end."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assurance.fuzz import mutation
from assurance.fuzz.target import ACCEPTED, Run, Target, need, pure, verdict
from testbed import artefact_parts as parts
from testbed.artefacts import CLASS, SHAPE, frames, manifest_for, seal_for
from variegate.device_sim.device import Device
from variegate.device_sim.hardware import BOOTS
from variegate.isolation import wire
from variegate.isolation.answer_check import AnswerCheck
from variegate.isolation.child import _Process as Child
from variegate.isolation.enclave_platform import EnclavePlatform
from variegate.isolation.evidence_quota import EvidenceQuota
from variegate.isolation.host import Isolated
from variegate.isolation.keeper import Keeper
from variegate.isolation.platform_client import PlatformClient, Settings, answer, protections_to_values
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.process import Process
from variegate.isolation.statements import Statements
from variegate.isolation.waiting import Pace, Watch
from variegate.isolation.wire import Kind, Lost
from variegate.keys import cbor
from variegate.keys.manifest import Manifest, Policy
from variegate.runtime.admission import SECURITY_COUNTER
from variegate.runtime.allowance import Allowance
from variegate.runtime.enclave import Enclave, Protection, ProtectionState
from variegate.runtime.engine import Engine
from variegate.runtime.frames import Frames
from variegate.runtime.opening import open_here

HELD = (Protection("ptrace", ProtectionState.ON, "held"),)
_BATCH = 8
_NUMBER = 1 << 40
"""Of a query, and higher than any before it."""


def split(data: bytes) -> list[bytes]:
    """Packets: each a length (2, little-endian) and so many bytes."""
    out = []
    while len(data) > 2:
        length = int.from_bytes(data[:2], "little")
        out.append(data[2 : 2 + length])
        data = data[2 + length :]
    return [packet for packet in out if packet]


def joined(*packets: bytes) -> bytes:
    """The other way round."""
    return b"".join(len(packet).to_bytes(2, "little") + packet for packet in packets)


def of_packets(data: bytes, most: int, chance: Any, plain: Any) -> bytes:
    """Changes the values of one packet, or which packets there are."""
    packets = split(data)
    if not packets or chance.random() < 0.1:
        return bytes(plain(data, most))
    at = chance.randrange(len(packets))
    match chance.randrange(6):
        case 0:
            del packets[at]
        case 1:
            packets.insert(at, chance.choice(packets))
        case 2:
            packets[at] = bytes([chance.choice(list(Kind))]) + packets[at][1:]
        case _:
            inner = mutation.of_cbor if packets[at][0] not in (Kind.QUERY, Kind.LABELS) else _blind
            packets[at] = packets[at][:1] + inner(packets[at][1:], most, chance, plain)
    made = joined(*packets)
    return made if 0 < len(made) <= most else bytes(plain(data, most))


def _blind(data: bytes, most: int, chance: Any, plain: Any) -> bytes:
    del chance
    return bytes(plain(data, most))


class _Wired(Process):
    """A process whose packets are written beforehand."""

    def __init__(self, packets: list[bytes]) -> None:
        self._channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(2)
        self._pace = Pace(Watch(self._channel))
        self.theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for packet in packets:
                self.theirs.send(packet)
        self.theirs.shutdown(socket.SHUT_WR)
        self.exited_ = threading.Event()

    @property
    def held(self) -> Protection:
        return HELD[0]

    @property
    def foreign(self) -> bool:
        return False

    @property
    def exited(self) -> threading.Event:
        return self.exited_

    @property
    def how_it_ended(self) -> str:
        return "closed"

    def end(self, *, gently: bool = False) -> None:
        del gently
        self._channel.close()
        self.theirs.close()


class _Kept(Keeper):
    """A keeper with any object as its enclave."""

    def __init__(self, platform: Device, policy: DevicePolicy, manifest: Manifest) -> None:
        self._platform, self._policy, self._manifest = platform, policy, manifest
        self.lock, self.closed, self.launched = threading.RLock(), False, 1
        self._starts, self.protections = deque(maxlen=1), ()
        self.offered = EnclavePlatform(platform)
        self.answers = AnswerCheck(settings_of(platform), manifest, HELD, platform.identity.signing_public)
        self.process: Process | None = None


class _Port(Isolated):
    """A port over such a keeper."""

    def __init__(self, platform: Device, policy: DevicePolicy) -> None:
        self._platform, self._query, self._answers = platform, 0, 0
        self._manifest = manifest_for(platform.identity, parts.REF, policy=Policy(budget=100))
        self._keeper: _Kept = _Kept(platform, policy, self._manifest)
        self.offered = self._keeper.offered
        self._allowance = Allowance(self._manifest.policy, self._manifest.epoch, platform)
        self._spec = Frames(self._manifest)
        self._shown = np.zeros((_BATCH, *SHAPE), np.uint8)

    def put(self, packets: list[bytes]) -> _Wired:
        self._query, self._ration = 0, EvidenceQuota()  # a new one, so that evidence is looked at each time
        process = _Wired(packets)
        self._keeper.process = process
        return process


@contextlib.contextmanager
def device_in(folder: Path) -> Iterator[Device]:
    """A real one, without a copy."""
    with Device.create(folder / "device", CLASS, parts.SIGNER.root) as device:
        yield device


def settings_of(device: Device) -> Settings:
    """The settings for an enclave on it."""
    return Settings(
        launches=1,
        policy=DevicePolicy(hang_s=0.5),
        ueid=device.ueid,
        device_class=device.device_class,
        root=device.root,
        measurements={"runtime": bytes(32)},
        boots=1,
        time_ns=round(device.now() * wire.NS),
        security=0,
        used=0,
        held=HELD,
        envelope=b"envelope",
    )


@contextlib.contextmanager
def _supervisor(folder: Path) -> Iterator[Run]:
    """An enclave's packets come to a supervisor that opens a copy, and to one that asks something of an open one."""
    with device_in(folder) as device:
        settings, port, shown = settings_of(device), _Port(device, DevicePolicy(hang_s=2.0)), frames(3)

        def opened(packets: list[bytes]) -> None:
            process = _Wired(packets)
            try:
                process.open(settings, [], port.offered)
            finally:
                process.end()

        def asked(packets: list[bytes], how: int) -> None:
            process = port.put(packets)
            try:
                match how % 5:
                    case 0:
                        need(port.classify_batch(shown).shape == (3,), "other labels")
                    case 1:
                        port.classify_with_receipt(shown)
                    case 2:
                        port.status()
                    case 3:
                        port.evidence(bytes(8))
                    case _:
                        port.self_test()
            finally:
                process.end()

        def run(data: bytes) -> str:
            how, packets = (data[0], split(data[1:])) if data else (0, [])
            try:
                said = verdict(lambda: opened(packets))
            except (Lost, TimeoutError):
                said = "lost"
            said = f"{said}, {verdict(lambda: asked(packets, how))}"
            need(
                not device.counter(SECURITY_COUNTER) and not device.counter(BOOTS),
                "a counter of the device's was raised",
            )
            return said

        yield run


def _answers() -> list[bytes]:
    manifest = parts.manifest().to_bytes()
    ready = wire.pack(Kind.READY, manifest, protections_to_values(HELD))
    labels = wire.LABELS_LAYOUT.pack(Kind.LABELS, 1, 3) + np.arange(3, dtype="<i8").tobytes()
    failures = [
        wire.pack(Kind.FAILED, *values)
        for values in (
            ["RefusedError", "input", "wrong", None, None],
            ["LimitError", None, "later", None, 5],
            ["DeviceError", None, "broken", "hint", None],
        )
    ]
    calls = [
        wire.pack(Kind.CALL, name, arguments)
        for name, arguments in (
            ("record", ["enclave", "detail"]),
            ("challenge", []),
            ("release", [b"token", b"envelope"]),
        )
    ]
    done = wire.pack(Kind.DONE)
    return [
        b"\0" + joined(*calls, ready),
        b"\0" + joined(labels),
        b"\1" + joined(labels + b"receipt"),
        b"\2" + joined(calls[0], done),
        b"\3" + joined(wire.pack(Kind.DONE, b"token")),
        b"\4" + joined(wire.pack(Kind.DONE)),
        *(b"\0" + joined(failure) for failure in failures),
    ]


class _Enclave(Child):
    """The enclave's code in this process, without lockdown."""

    def __init__(self, device: Device, folder: Path, shared: mmap.mmap) -> None:
        artefact = seal_for(device.identity, parts.SIGNER)
        copy = open_here(artefact, device)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours, self._served = ours, threading.Thread(target=_platform, args=(theirs, device), daemon=True)
        self._served.start()
        identity = folder / "identity"
        identity.write_bytes(bytes(64))
        with identity.open("rb") as file:
            self._below = PlatformClient(ours, settings_of(device), mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        self._frames = shared
        self._enclave = Enclave(copy.manifest, Engine(copy), copy.canaries, self._below, HELD, charged=True)
        self._number = 0
        public = parts.X25519.public.signing_public
        self._says = Statements(self._below, copy.manifest, HELD, parts.X25519.sign, public)

    def shown(self, packet: bytes) -> bytes:
        return self._answer(packet)

    def forget(self) -> None:
        self._number = 0  # numbers rise within an input, and start anew with the next

    def close(self) -> None:
        self._ours.close()
        self._served.join()
        self._below.forget_identity()


def _platform(channel: socket.socket, device: Device) -> None:
    with channel, contextlib.suppress(Lost):
        while True:
            wire.send(channel, answer(device, wire.unpack(wire.receive(channel))[1]))


@contextlib.contextmanager
def _enclave(folder: Path) -> Iterator[Run]:
    """Passes a supervisor's packets to the enclave's code; only our errors and `Lost` may leave it."""
    with device_in(folder) as device, contextlib.ExitStack() as stack:
        descriptor = os.memfd_create("frames")
        stack.callback(os.close, descriptor)
        os.ftruncate(descriptor, _BATCH * len(frames(1).tobytes()))
        with mmap.mmap(descriptor, 0) as shared:
            enclave = stack.enter_context(contextlib.closing(_Enclave(device, folder, shared)))

            def run(data: bytes) -> str:
                said = []
                enclave.forget()
                for packet in split(data):
                    try:
                        found: list[bytes] = []
                        said.append(verdict(lambda p=packet, f=found: f.append(enclave.shown(p))))  # type: ignore[misc]
                        need(said[-1] != ACCEPTED or found[0][0] in list(Kind), "an answer of no kind")
                    except Lost:
                        said.append("lost")
                return ", ".join(said)

            yield run


def questions() -> list[bytes]:
    """A supervisor's requests."""

    def query(number: int, now: float, count: int, receipt: bool) -> bytes:
        return wire.QUERY_LAYOUT.pack(Kind.QUERY, number, now, 0, count, receipt)

    return [
        joined(query(_NUMBER, 1.8e9, 3, False), query(_NUMBER + 1, 1.8e9, 8, True)),
        joined(wire.pack(Kind.TEST), wire.pack(Kind.PING)),
        joined(wire.pack(Kind.EVIDENCE, bytes(16), 1_800_000_000 * wire.NS, 0, 0)),
    ]


def _settings(data: bytes) -> str:
    """A supervisor's settings at the start."""
    try:
        found: list[Settings] = []
        said = verdict(lambda: found.append(Settings.of(wire.unpack(b"\1" + data)[1])))
    except Lost:
        return "lost"
    if said == ACCEPTED:
        need(len(found[0].policy.digest) == 32, "no digest")
    return said


def _starts() -> list[bytes]:
    values: list[object] = [
        DevicePolicy().to_toml(),
        parts.X25519.public.ueid,
        CLASS,
        parts.SIGNER.root.to_bytes(),
        [["runtime", bytes(32)]],
        1,
        1,
        2,
        3,
        4,
        protections_to_values(HELD),
        b"envelope",
    ]
    return [cbor.encode(values)]


TARGETS = (
    Target(
        name="from_enclave",
        opened=_supervisor,
        seeds=_answers,
        mutate=mutation.behind(1, of_packets),
        live=True,
    ),
    Target(name="to_enclave", opened=_enclave, seeds=questions, mutate=of_packets, live=True),
    Target(name="settings", opened=pure(_settings), seeds=_starts, mutate=mutation.of_cbor, cap=6000),
)
