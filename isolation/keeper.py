"""Keeps one enclave for the supervisor: starts and watches it, restarts it by the policy, asks each query once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from variegate.attest.evidence import ROOT
from variegate.isolation import launch, wire
from variegate.isolation.answer_check import AnswerCheck, passed_on
from variegate.isolation.enclave_platform import Brokered, EnclavePlatform
from variegate.isolation.launch import Image
from variegate.isolation.lockdown import supervisor
from variegate.isolation.memory import mappable, sealed
from variegate.isolation.platform_client import Settings
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.process import Process
from variegate.isolation.wire import Lost
from variegate.keys.artefact import Artefact
from variegate.keys.errors import DeviceError, MisuseError, VariegateError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Manifest
from variegate.runtime.admission import SECURITY_COUNTER
from variegate.runtime.allowance import budget_counter
from variegate.runtime.enclave import Protection, ProtectionState
from variegate.runtime.limits import LIMITS

BOOT, POLICY, SYSTEM = "boot", "policy", "system"
_START_MIB, _COPY_TIMES = 160, 4
"""Memory that opening a copy takes: interpreter and libraries, and so many times the component's size."""


class DevicePlatform(Brokered, Protocol):
    """A platform with an enclave that is a process of its own."""

    @property
    def boots(self) -> int:
        """Times the device was booted."""
        ...

    @property
    def boot_digest(self) -> bytes | None:
        """Measurement of the machine's boot, 32 bytes, if the device's key is bound to it."""
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


class Keeper:
    """Keeps one copy's enclave running. Whoever calls a method holds `lock`.

    Attributes:
        lock: Of the enclave: one asks, closes or starts it at a time.
        process: The enclave, or None while there is none.
        launched: Times that it was started.
        protections: As the enclave that runs has them.
        answers: Checks its answers.
        closed: Whether it is closed for good.
        offered: The part of the platform that the running enclave may use.
    """

    answers: AnswerCheck

    def __init__(
        self, manifest: Manifest, artefact: Artefact, platform: DevicePlatform, policy: DevicePolicy, memory: int
    ) -> None:
        """Starts nothing yet.

        Args:
            manifest: Of the artefact, verified.
            artefact: The copy.
            platform: The device.
            policy: How the enclave is isolated, and how often it may start.
            memory: Descriptor of the memory for frames; it is closed here at the end, also when this fails.

        Raises:
            DeviceError: The machine has no memory for the component.
        """
        self._manifest, self._platform, self._policy = manifest, platform, policy
        self._envelope = artefact.envelope
        self._memory = memory
        self.lock = threading.RLock()
        self.process: Process | None = None
        self.closed = False
        self.launched = 0
        self.protections: tuple[Protection, ...] = ()
        self.offered = EnclavePlatform(platform)
        self._starts: deque[float] = deque(maxlen=policy.restarts + 1)
        try:
            self._component = sealed("variegate-component", artefact.component)
        except BaseException:
            os.close(memory)
            raise

    def running(self) -> Process:
        """The enclave, started again when it has ended; the lock is held.

        Raises:
            MisuseError: It is closed.
            DeviceError: It does not start, or was started as often as the policy allows.
        """
        if self.closed:
            raise MisuseError("enclave is closed")
        process = self.process
        if process is not None and process.exited.is_set():
            self.lost("stopped")
            process = None
        if process is None:
            process = self.launch()
        # The supervisor's own hold lets nobody else in; where it could not get one, somebody else may have since.
        elif process.held.state == ProtectionState.UNAVAILABLE and process.foreign:
            raise self.lost("is traced by another process")
        return process

    def exchange(self, process: Process, packet: bytes, *, frames: int = 0) -> bytes:
        """Asks once; after any failure the question is not asked again.

        Raises:
            DeviceError: The enclave did not answer, or not as it should; it is ended.
            RefusedError, LimitError: A refusal, in the supervisor's words.
        """
        seconds = self._policy.hang_s * max(1, -(-frames // LIMITS.slice))
        try:
            return process.ask(packet, self.offered, seconds, frames=frames)
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
            self.lost("was interrupted")
            raise
        raise self.lost(why)

    def lost(self, why: str) -> DeviceError:
        """Ends the enclave that runs; gives the error to raise."""
        process, self.process = self.process, None
        if process is not None:
            process.end()
            self._platform.record("enclave", f"{why}: {process.how_it_ended}")
        return DeviceError(f"the enclave {why}; this query got no label", hint="ask again: it is started again")

    def used(self) -> int:
        """Labels charged in the copy's epoch."""
        return self._platform.counter(budget_counter(self._manifest.epoch))

    def close(self, *, gently: bool) -> None:
        """Ends the enclave for good; a second time does nothing."""
        if self.closed:
            return
        self.closed = True
        if self.process is not None:
            self.process.end(gently=gently)
            self.process = None
        os.close(self._component)
        os.close(self._memory)

    def launch(self) -> Process:
        """Starts the enclave.

        Raises:
            RefusedError: The first time: `ARTEFACT`; the platform's inner log has the reason.
            DeviceError: It does not start, lacks a protection that the policy requires, or started too often.
        """
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
        self.launched += 1
        self.offered = EnclavePlatform(platform)
        image = launch.prepare()
        process = Process(image, debug=policy.debug)
        self.process = process
        try:
            self._open(process, measurements_of(image, process, policy))
        except VariegateError as error:
            self.process = None
            process.end()
            if isinstance(error, DeviceError):
                raise self._with_memory(error) from None
            if self.launched == 1:
                raise
            # Clients are not told about faults of broker or artefact: to them, the device is down.
            raise DeviceError(f"the enclave does not start again: {error.message}", hint=error.hint) from error
        except (Lost, TimeoutError) as error:
            raise self._with_memory(self.lost("stopped while it opened the copy")) from error
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
        with self.lock, contextlib.suppress(VariegateError):  # a log that fails is said by the next query
            if self.closed:
                return
            if self.process is process:
                self.lost("stopped")
            if self.process is None:
                try:
                    self.launch()
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
            launches=self.launched,
            time_ns=round(platform.now() * wire.NS),
            security=platform.counter(SECURITY_COUNTER),
            used=self.used(),
            held=(process.held, supervisor()),
            envelope=self._envelope,
        )
        identity = mappable(platform.identity_descriptor())
        try:
            manifest, protections = process.open(settings, [self._memory, self._component, identity], self.offered)
        finally:
            os.close(identity)
        if manifest != self._manifest:
            raise Lost("another copy")
        self.protections = protections
        self.answers = AnswerCheck(settings, self._manifest, protections, platform.identity.signing_public)
        self.offered.serving = True


def _booted(platform: DevicePlatform) -> Mapping[str, bytes]:
    return {} if platform.boot_digest is None else {BOOT: platform.boot_digest}


def measurements_of(image: Image, process: Process, policy: DevicePolicy) -> Mapping[str, bytes]:
    """The measurements of a process that was started."""
    return {**image.measurements, SYSTEM: process.system, POLICY: policy.digest}
