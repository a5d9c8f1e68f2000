"""One enclave process for the supervisor: launches, traces, asks and ends it."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time

from variegate.isolation import launch, wire
from variegate.isolation.launch import ARCHIVE, ARCHIVE_PATH, Image
from variegate.isolation.memory import sealed
from variegate.isolation.platform_client import Settings, answer, protections_of
from variegate.isolation.tracing import PtraceGuard
from variegate.isolation.waiting import Pace, Watch
from variegate.isolation.wire import Kind, Lost
from variegate.keys.errors import DeviceError
from variegate.keys.manifest import Manifest
from variegate.runtime.enclave import Protection

_SOCKET = 4
"""Numbers of the inherited descriptors; 0 to 2 lead nowhere."""
_ABOVE = 64
_START_S = 60.0
_END_S = 5.0
_NOWHERE = f"{ARCHIVE_PATH}/x"
"""No folder can ever be there: the archive is a file."""


class Process:
    """A launched enclave process, our code running in it and nothing opened yet. Not thread-safe.

    Attributes:
        pid: Of the process.
        system: Hash over the shared libraries of the system that it has loaded, 32 bytes.
    """

    def __init__(self, image: Image, *, debug: bool = False) -> None:
        """Launches.

        Args:
            image: The image to run.
            debug: Whether to leave it to debuggers, and its standard error open.

        Raises:
            DeviceError: It does not start.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):  # a packet must fit whole
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_PACKET)
        self._channel = ours
        self._pace = Pace(Watch(ours))
        with theirs:
            self.pid = _spawn(image, theirs, debug=debug)
        self._tracer = PtraceGuard(self.pid, hold=not debug)
        try:
            ours.settimeout(_START_S)
            launch.check_modules(self._loaded(), image)
            self.system = launch.system_digest(self.pid, image)
            self._only_ours()
        except (Lost, TimeoutError, OSError) as error:
            self.end()
            raise DeviceError(f"the enclave process does not start: {self.how_it_ended}") from error
        except BaseException:
            self.end()
            raise

    @property
    def held(self) -> Protection:
        """Whether the supervisor holds ptrace."""
        return self._tracer.protection

    @property
    def foreign(self) -> bool:
        """Whether a process that is not the supervisor traces it; false where the policy lets debuggers in."""
        return self._tracer.foreign

    @property
    def exited(self) -> threading.Event:
        """Set once the process has ended."""
        return self._tracer.exited

    @property
    def how_it_ended(self) -> str:
        """In words, for the log."""
        return self._tracer.how_it_ended

    def open(
        self, settings: Settings, descriptors: list[int], platform: object
    ) -> tuple[Manifest, tuple[Protection, ...]]:
        """Has it open a copy.

        Args:
            settings: Its settings.
            descriptors: Of frames, component and the device's identity.
            platform: Answers its calls.

        Returns:
            The manifest, and the enclave's protections.

        Raises:
            VariegateError: An error of the enclave.
            DeviceError: Another process traces it.
            Lost: It ended.
            TimeoutError: It hangs.
        """
        packet = wire.pack(Kind.START, *settings.to_values())
        try:
            socket.send_fds(self._channel, [packet], descriptors)
        except OSError as error:
            raise Lost("cannot send") from error
        match wire.unpack(self._settled(platform, _START_S)):
            case Kind.READY, [bytes(manifest), [*protections]]:
                self._only_ours()
                return Manifest.from_bytes(manifest), protections_of(protections)
        raise Lost("not ready")

    def ask(self, packet: bytes, platform: object, seconds: float, *, frames: int = 0) -> bytes:
        """Sends a packet and waits for a packet that is not a call.

        Args:
            packet: A request.
            platform: Answers calls meanwhile.
            seconds: Time for all of it.
            frames: Number of those that the request is to classify, from which follows when the answer is due.

        Returns:
            The answer's packet.

        Raises:
            VariegateError: An error of the enclave.
            Lost: It ended, or speaks another language.
            TimeoutError: It hangs.
        """
        wire.send(self._channel, packet)
        return self._settled(platform, seconds, frames)

    def _only_ours(self) -> None:
        if self.foreign:
            raise DeviceError(
                "another process traces the enclave: nothing is opened in it",
                hint="end that process; to debug a device, set debug = true in its policy",
            )

    def _loaded(self) -> list[str]:
        """Files of the modules that it has imported, as it says before it has seen anything hostile."""
        match wire.unpack(wire.receive(self._channel)):
            case Kind.LOADED, modules if all(isinstance(path, str) for path in modules):
                return modules
        raise Lost("something else")

    def _settled(self, platform: object, seconds: float, frames: int = 0) -> bytes:
        started = time.monotonic()
        until = started + seconds
        while True:
            if not self._pace.expect(frames, until - started):
                # The rest of the time: a compromised enclave could call for ever.
                self._channel.settimeout(max(0.001, until - time.monotonic()))
            packet = wire.receive(self._channel)
            if packet[0] == Kind.CALL:
                wire.send(self._channel, answer(platform, wire.unpack(packet)[1]))
                started = time.monotonic()
            elif packet[0] == Kind.FAILED:
                raise wire.error_of(wire.unpack(packet)[1])
            else:
                self._pace.took(frames, time.monotonic() - started)
                return packet

    def kill(self) -> None:
        """Kills the process, even if another thread waits for it; `end` must still be called."""
        self._tracer.kill()

    def end(self, *, gently: bool = False) -> None:
        """Ends the process and waits for it.

        Args:
            gently: Whether to hang up and give it some seconds first.
        """
        self._channel.close()
        if not (gently and self._tracer.exited.wait(_END_S)):
            self._tracer.kill()
            self._tracer.exited.wait(_END_S)


def _spawn(image: Image, theirs: socket.socket, *, debug: bool) -> int:
    """Starts the interpreter with nothing inherited but the archive and the socket."""
    opened: list[int] = []

    def above(descriptor: int) -> int:  # out of the way of the numbers that the process gets
        opened.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
        return opened[-1]

    archive = sealed("variegate-runtime", image.archive)
    try:
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        opened.append(nowhere)
        wanted = {0: nowhere, 1: nowhere, 2: 2 if debug else nowhere, ARCHIVE: archive, _SOCKET: theirs.fileno()}
        actions = [(os.POSIX_SPAWN_DUP2, above(source), number) for number, source in wanted.items()]
        options = ["-I", "-S", "-B", "-X", f"pycache_prefix={_NOWHERE}"]
        arguments = [image.interpreter, *options, ARCHIVE_PATH, str(_SOCKET), image.site]
        # A session of its own: an interrupt typed at the supervisor is the supervisor's to act on.
        return os.posix_spawn(image.interpreter, arguments, {}, file_actions=actions, setsid=True)
    except OSError as error:
        raise DeviceError("the enclave process cannot be started") from error
    finally:
        for descriptor in (archive, *opened):
            os.close(descriptor)
