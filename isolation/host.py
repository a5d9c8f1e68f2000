"""The supervisor's side: starts enclaves, watches them, restarts them within the policy, relays queries."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from variegate.attest.evidence import NONCE_BYTES, ROOT
from variegate.isolation import launch, wire
from variegate.isolation.answer_check import AnswerCheck, passed_on
from variegate.isolation.enclave_platform import SELF_TEST, Brokered, EnclavePlatform
from variegate.isolation.evidence_quota import quota_of
from variegate.isolation.launch import Image
from variegate.isolation.lockdown import supervisor
from variegate.isolation.memory import frame_memory, mappable, sealed
from variegate.isolation.platform_client import Settings
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.process import Process
from variegate.isolation.wire import Kind, Lost
from variegate.keys.artefact import Artefact
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError, VariegateError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Manifest
from variegate.runtime.admission import SECURITY_COUNTER, admit, check_current, uniform
from variegate.runtime.allowance import Allowance, budget_counter
from variegate.runtime.enclave import Protection, ProtectionState, Status
from variegate.runtime.frames import Frames
from variegate.runtime.limits import LIMITS

BOOT, POLICY, SYSTEM = "boot", "policy", "system"
_MAX_FRAME_MEMORY = 1 << 30
_START_MIB, _COPY_TIMES = 160, 4
"""Memory that opening a copy takes: interpreter and libraries, and so many times the component's size."""
_CLOSE_S = 0.5
"""What a query under way gets to end by itself when its enclave is closed."""


class DevicePlatform(Brokered, Protocol):
    """A platform with an enclave that is a process of its own."""

    @property
    def boots(self) -> int:
        """Times the device was booted."""
        ...

    @property
    def boot_digest(self) -> bytes | None:
        """What the machine booted, 32 bytes, where the device's key is bound to that."""
        ...

    @property
    def identity(self) -> DevicePublic:
        """The device's public keys."""
        ...

    def identity_descriptor(self) -> int:
        """A descriptor of memory or a file that holds the device's private keys; the caller closes it.

        Raises:
            DeviceError: The chip failed.
        """
        ...


class IsolatedHost:
    """Starts copies in enclave processes (`runtime.port.Host`)."""

    def __init__(self, policy: DevicePolicy) -> None:
        self.policy = policy
        self._measured: Mapping[str, bytes] | None = None

    def measurements(self) -> Mapping[str, bytes]:
        """What an enclave would be now, 32 bytes by name, measured once; the root is the platform's to add.

        Raises:
            DeviceError: The code cannot be read or does not start.
        """
        if self._measured is None:
            image = launch.prepare()
            process = Process(image, debug=self.policy.debug)
            process.end(gently=True)
            self._measured = _measurements(image, process, self.policy)
        return self._measured

    def start(self, artefact: Artefact, platform: DevicePlatform) -> Isolated:
        """As `runtime.port.Host.start`."""
        return Isolated(artefact, platform, self.policy)


class Isolated:
    """One copy in an enclave process (`runtime.port.LabelPort`). Thread-safe: queries take turns.

    Budget, rate and expiry are of the manifest that is verified here, and are charged here, before the enclave sees a
    frame: whatever becomes of it, it answers no more than was counted.

    A query that the enclave does not live to answer raises `DeviceError` and is not asked again; it stays charged.
    The supervisor starts the next enclave by itself, as often as the policy allows.
    """

    def __init__(self, artefact: Artefact, platform: DevicePlatform, policy: DevicePolicy) -> None:
        """Opens an artefact.

        Raises:
            RefusedError: `ARTEFACT`; the platform's inner log has the reason.
            DeviceError: The enclave does not start, or lacks a protection that the policy requires.
        """
        self._platform, self._policy = platform, policy
        self._envelope = artefact.envelope
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._closed = False
        self._query = self._launched = self._answers = 0
        self._starts: deque[float] = deque(maxlen=policy.restarts + 1)
        self._protections: tuple[Protection, ...] = ()
        # The signature says how large its frames are, so it is held here, too.
        manifest = uniform(platform, "open", lambda: admit(artefact.envelope, platform)).manifest
        self._manifest = manifest
        self._spec = Frames(manifest)
        self._allowance = Allowance(manifest.policy, manifest.epoch, platform)
        self._ration = quota_of(platform.ueid)
        count = max(1, min(LIMITS.batch, _MAX_FRAME_MEMORY // self._spec.bytes))
        self._memory, shared = frame_memory(count * self._spec.bytes)
        self._shown: NDArray[Any] = np.frombuffer(shared, self._spec.dtype).reshape(count, *self._spec.shape)
        self._component = -1
        try:
            self._component = sealed("variegate-component", artefact.component)
            self._launch()
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The signed manifest."""
        return self._manifest

    @property
    def pid(self) -> int | None:
        """Of the enclave process, or None while there is none."""
        process = self._process
        return None if process is None else process.pid

    @property
    def restarts(self) -> int:
        """Times that the enclave was started again, whether or not it then lived."""
        return max(0, self._launched - 1)

    def classify(self, frame: NDArray[Any]) -> int:
        """As `runtime.enclave.Enclave.classify`; also `DeviceError` when the enclave stopped: no label was given."""
        return int(self._answered(self._spec.plain(frame, batch=False))[0][0])

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """As `runtime.enclave.Enclave.classify_batch`; also `DeviceError` when the enclave stopped."""
        return self._answered(self._spec.plain(frames, batch=True))[0]

    def classify_with_receipt(self, frames: NDArray[Any]) -> tuple[NDArray[np.int64], bytes]:
        """Labels of frames, and the device's signature under both (`attest.receipt`).

        Args:
            frames: (N, *shape) of the manifest's dtype.

        Returns:
            Class indices, int64 (N,), and the receipt.

        Raises:
            RefusedError, LimitError, MisuseError, DeviceError: As `classify_batch`.
        """
        return self._answered(self._spec.plain(frames, batch=True), receipt=True)

    def evidence(self, nonce: bytes) -> bytes:
        """A token that says what runs here (`attest.evidence`), signed by the device.

        Args:
            nonce: The verifier's, 8 to 64 bytes.

        Raises:
            RefusedError: `MALFORMED`, for a nonce of another length.
            LimitError: More is asked for than a device gives (`evidence_quota`).
            MisuseError, DeviceError: As `classify`.
        """
        sent: object = nonce
        if not isinstance(sent, bytes) or len(sent) not in NONCE_BYTES:
            raise RefusedError(Refusal.MALFORMED, "a nonce is 8 to 64 bytes")
        with self._lock:
            process, platform = self._running(), self._platform
            self._ration.take()
            time_ns, security = round(platform.now() * wire.NS), platform.counter(SECURITY_COUNTER)
            used = self._used()
            match self._asked(process, Kind.EVIDENCE, nonce, time_ns, security, used):
                case [bytes(token)]:
                    with contextlib.suppress(Lost):
                        self._given.evidence(token, nonce, now=time_ns / wire.NS, security=security, used=used)
                        return token
            raise self._lost("answers something else")

    def self_test(self) -> None:
        """As `runtime.enclave.Enclave.self_test`; an enclave that fails it is ended, so that it fails once."""
        with self._lock:
            try:
                if self._asked(self._running(), Kind.TEST):
                    raise self._lost("answers something else")
            except RefusedError:
                self._platform.record("refused", SELF_TEST)
                self._lost("failed its self-test")
                raise

    def status(self) -> Status:
        """What the device says of itself, the enclave's protections among it; an error where the enclave is down."""
        with self._lock:
            if self._asked(self._running(), Kind.PING):
                raise self._lost("answers something else")
            # Counted here: an enclave's own numbers might be anything.
            return Status.of(self._manifest, self._answers, self._allowance.remaining, self._protections)

    def close(self) -> None:
        """Ends the enclave; later queries are misuse, and one under way gets no label."""
        hung = not self._lock.acquire(timeout=_CLOSE_S)
        if hung:  # a query is under way, and may be for long
            process = self._process
            if process is not None:
                process.kill()
            self._lock.acquire()
        try:
            if self._closed:
                return
            self._closed = True
            if self._process is not None:
                self._process.end(gently=not hung)
                self._process = None
            for descriptor in (self._component, self._memory):
                if descriptor >= 0:
                    os.close(descriptor)
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answered(self, frames: NDArray[Any], *, receipt: bool = False) -> tuple[NDArray[np.int64], bytes]:
        count = len(frames)
        if count > len(self._shown):
            raise RefusedError(Refusal.INPUT, f"a batch of such frames has at most {len(self._shown)}")
        self._spec.check_values(frames)
        with self._lock:
            process, platform = self._running(), self._platform
            check_current(self._manifest, platform)
            # Before the frames are where the enclave sees them; what goes wrong from here on gives nothing back.
            self._allowance.take(count)
            self._query = number = self._query + 1
            now = platform.now()
            packet = wire.QUERY_LAYOUT.pack(Kind.QUERY, number, now, platform.counter(SECURITY_COUNTER), count, receipt)
            # Copied while no other query is under way: there is one memory for frames.
            shown = self._shown[:count]
            np.copyto(shown, frames)
            answer = self._exchange(process, packet, frames=count)
            with contextlib.suppress(Lost):
                labels, token = self._given.labels(answer, number, count)
                if receipt:
                    self._given.receipt(token, shown, labels, now)
                elif token:
                    raise Lost("more than labels")
                self._answers += count
                return labels, token
            raise self._lost("answers something else")

    def _used(self) -> int:
        """Labels charged in the copy's epoch."""
        return self._platform.counter(budget_counter(self._manifest.epoch))

    def _asked(self, process: Process, kind: Kind, *values: object) -> list[Any]:
        """What the enclave has to say when it is done; the lock is held."""
        answer = self._exchange(process, wire.pack(kind, *values))
        with contextlib.suppress(Lost):
            told, found = wire.unpack(answer)
            if told == Kind.DONE:
                return found
        raise self._lost("answers something else")

    def _exchange(self, process: Process, packet: bytes, *, frames: int = 0) -> bytes:
        """Asks once; whatever goes wrong between, the question is not asked again."""
        seconds = self._policy.hang_s * max(1, -(-frames // LIMITS.slice))
        try:
            return process.ask(packet, self._offered, seconds, frames=frames)
        except TimeoutError:
            why = f"did not answer within {seconds:g} s"
        except Lost:
            why = "stopped"
        except VariegateError as error:
            refused = None
            with contextlib.suppress(Lost):
                refused = passed_on(packet[0], error)
            if refused is not None:
                raise refused from None
            why = "answers something else"
        except BaseException:  # interrupted: its answer would be taken for that of the next question
            self._lost("was interrupted")
            raise
        raise self._lost(why)

    def _lost(self, why: str) -> DeviceError:
        """Ends the enclave. Returns the error to raise."""
        process, self._process = self._process, None
        if process is not None:
            process.end()
            self._platform.record("enclave", f"{why}: {process.how_it_ended}")
        return DeviceError(f"the enclave {why}; this query got no label", hint="ask again: it is started anew")

    def _running(self) -> Process:
        """The enclave, started anew when it has ended; the lock is held.

        Raises:
            MisuseError: It is closed.
            DeviceError: It does not start, or was started as often as the policy allows.
        """
        if self._closed:
            raise MisuseError("enclave is closed")
        process = self._process
        if process is not None and process.exited.is_set():
            self._lost("stopped")
            process = None
        if process is None:
            process = self._launch()
        # The supervisor's own hold lets nobody else in; where it could not get one, somebody else may have since.
        elif process.held.state == ProtectionState.UNAVAILABLE and process.foreign:
            raise self._lost("is traced by another process")
        return process

    def _launch(self) -> Process:
        policy, platform = self._policy, self._platform
        now = time.monotonic()
        starts = self._starts
        if len(starts) > policy.restarts and now - starts[0] < policy.restart_window_s:
            wait = policy.restart_window_s - (now - starts[0])
            raise DeviceError(
                f"the enclave stopped more than {policy.restarts} times; it starts again in {wait:.0f} s",
                hint="the device's log says how it ended",
            )
        starts.append(now)
        self._launched += 1
        self._offered = EnclavePlatform(platform)
        image = launch.prepare()
        process = Process(image, debug=policy.debug)
        self._process = process
        try:
            self._open(process, _measurements(image, process, policy))
        except VariegateError as error:
            self._process = None
            process.end()
            if isinstance(error, DeviceError):
                raise self._with_memory(error) from None
            if self._launched == 1:
                raise
            # Who asks for a label is not told what broker or artefact say: to them, the device is down.
            raise DeviceError(f"the enclave does not start again: {error.message}", hint=error.hint) from error
        except (Lost, TimeoutError) as error:
            raise self._with_memory(self._lost("stopped while it opened the copy")) from error
        platform.record("enclave", f"started as process {process.pid}")
        threading.Thread(target=self._watch, args=(process,), name=f"watch of {process.pid}", daemon=True).start()
        return process

    def _with_memory(self, error: DeviceError) -> DeviceError:
        """An error at the start; where the copy may need more memory than it gets, it says how much."""
        needs = _START_MIB + _COPY_TIMES * (os.fstat(self._component).st_size >> 20)
        if needs <= self._policy.ram_mib:
            return error
        hint = f"this copy may take {needs} MiB; ram_mib in the device's policy.toml is {self._policy.ram_mib}"
        return DeviceError(error.message, hint=hint)

    def _watch(self, process: Process) -> None:
        """Starts the next enclave when this one has ended, so that no query has to wait for that."""
        process.exited.wait()
        with self._lock, contextlib.suppress(VariegateError):  # a log that fails is said by the next query
            if self._closed:
                return
            if self._process is process:
                self._lost("stopped")
            if self._process is None:
                try:
                    self._launch()
                except VariegateError as error:
                    self._platform.record("enclave", f"stays down: {error.message}")

    def _open(self, process: Process, measured: Mapping[str, bytes]) -> None:
        platform = self._platform
        settings = Settings(
            policy=self._policy,
            ueid=platform.ueid,
            device_class=platform.device_class,
            root=platform.root,
            measurements={**measured, **_booted(platform), ROOT: platform.root.fingerprint},
            boots=platform.boots,
            launches=self._launched,
            time_ns=round(platform.now() * wire.NS),
            security=platform.counter(SECURITY_COUNTER),
            used=self._used(),
            held=(process.held, supervisor()),
            envelope=self._envelope,
        )
        identity = mappable(platform.identity_descriptor())
        try:
            manifest, protections = process.open(settings, [self._memory, self._component, identity], self._offered)
        finally:
            os.close(identity)
        if manifest != self._manifest:
            raise Lost("another copy")
        self._protections = protections
        self._given = AnswerCheck(settings, self._manifest, protections, platform.identity.signing_public)
        self._offered.serving = True


def _booted(platform: DevicePlatform) -> Mapping[str, bytes]:
    return {} if platform.boot_digest is None else {BOOT: platform.boot_digest}


def _measurements(image: Image, process: Process, policy: DevicePolicy) -> Mapping[str, bytes]:
    return {**image.measurements, SYSTEM: process.system, POLICY: policy.digest}
