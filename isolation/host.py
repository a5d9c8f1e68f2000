"""The supervisor's side: charges queries, passes them to the enclave, and returns only checked answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.attest.evidence import NONCE_BYTES
from variegate.isolation import launch, wire
from variegate.isolation.enclave_platform import SELF_TEST
from variegate.isolation.evidence_quota import quota_of
from variegate.isolation.keeper import DevicePlatform, Keeper, measurements_of
from variegate.isolation.memory import frame_memory
from variegate.isolation.policy import DevicePolicy
from variegate.isolation.process import Process
from variegate.isolation.wire import Kind, Lost
from variegate.keys.artefact import Artefact
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.runtime.admission import SECURITY_COUNTER, admit, check_current, uniform
from variegate.runtime.allowance import Allowance
from variegate.runtime.enclave import Status
from variegate.runtime.frames import Frames
from variegate.runtime.limits import LIMITS

_MAX_FRAME_MEMORY = 1 << 30
_CLOSE_S = 0.5
"""Time for a query under way to end by itself when its enclave is closed."""


class IsolatedHost:
    """Starts copies in enclave processes (`runtime.port.Host`)."""

    def __init__(self, policy: DevicePolicy) -> None:
        self.policy = policy
        self._measured: Mapping[str, bytes] | None = None

    def measurements(self) -> Mapping[str, bytes]:
        """Measurements of an enclave launched now, 32 bytes by name, made once; the platform adds the root.

        Raises:
            DeviceError: The code cannot be read or does not start.
        """
        if self._measured is None:
            image = launch.prepare()
            process = Process(image, debug=self.policy.debug)
            process.end(gently=True)
            self._measured = measurements_of(image, process, self.policy)
        return self._measured

    def start(self, artefact: Artefact, platform: DevicePlatform) -> Isolated:
        """As `runtime.port.Host.start`."""
        return Isolated(artefact, platform, self.policy)


class Isolated:
    """One copy in an enclave process (`runtime.port.LabelPort`). Thread-safe: queries take turns.

    The manifest is verified here, and its budget, rate and expiry are enforced here, before the enclave sees a frame:
    in no case does it answer more than was counted.

    If the enclave ends before it answers, the query raises `DeviceError` and is not asked again; it stays charged. The
    supervisor starts the next enclave by itself, as often as the policy allows.
    """

    def __init__(self, artefact: Artefact, platform: DevicePlatform, policy: DevicePolicy) -> None:
        """Opens an artefact.

        Raises:
            RefusedError: `ARTEFACT`; the platform's inner log has the reason.
            DeviceError: The enclave does not start, or lacks a protection that the policy requires.
        """
        self._platform = platform
        self._query = self._answers = 0
        # The signature says how large its frames are, so it is held here, too.
        manifest = uniform(platform, "open", lambda: admit(artefact.envelope, platform)).manifest
        self._manifest = manifest
        self._spec = Frames(manifest)
        self._allowance = Allowance(manifest.policy, manifest.epoch, platform)
        self._ration = quota_of(platform.ueid)
        count = max(1, min(LIMITS.batch, _MAX_FRAME_MEMORY // self._spec.bytes))
        memory, shared = frame_memory(count * self._spec.bytes)
        self._shown: NDArray[Any] = np.frombuffer(shared, self._spec.dtype).reshape(count, *self._spec.shape)
        self._keeper = Keeper(manifest, artefact, platform, policy, memory)
        try:
            self._keeper.launch()
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
        process = self._keeper.process
        return None if process is None else process.pid

    @property
    def restarts(self) -> int:
        """Times that the enclave was started again, whether or not it then lived."""
        return max(0, self._keeper.launched - 1)

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
        """A token of the running software (`attest.evidence`), signed by the device.

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
        with self._keeper.lock:
            process, platform = self._keeper.running(), self._platform
            self._ration.take()
            time_ns, security = round(platform.now() * wire.NS), platform.counter(SECURITY_COUNTER)
            used = self._keeper.used()
            match self._asked(process, Kind.EVIDENCE, nonce, time_ns, security, used):
                case [bytes(token)]:
                    with contextlib.suppress(Lost):
                        self._keeper.answers.evidence(token, nonce, now=time_ns / wire.NS, security=security, used=used)
                        return token
            raise self._keeper.lost("answers something else")

    def self_test(self) -> None:
        """As `runtime.enclave.Enclave.self_test`; an enclave that fails it is ended, so that it fails once."""
        with self._keeper.lock:
            try:
                if self._asked(self._keeper.running(), Kind.TEST):
                    raise self._keeper.lost("answers something else")
            except RefusedError:
                self._platform.record("refused", SELF_TEST)
                self._keeper.lost("failed its self-test")
                raise

    def status(self) -> Status:
        """The device's status with the enclave's protections; an error when the enclave is down."""
        with self._keeper.lock:
            if self._asked(self._keeper.running(), Kind.PING):
                raise self._keeper.lost("answers something else")
            # Counted here: an enclave's own numbers might be anything.
            return Status.of(self._manifest, self._answers, self._allowance.remaining, self._keeper.protections)

    def close(self) -> None:
        """Ends the enclave; later queries are misuse, and one under way gets no label."""
        keeper = self._keeper
        hung = not keeper.lock.acquire(timeout=_CLOSE_S)
        if hung:  # a query is under way, and may be for long
            process = keeper.process
            if process is not None:
                process.kill()
            keeper.lock.acquire()
        try:
            keeper.close(gently=not hung)
        finally:
            keeper.lock.release()

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
        with self._keeper.lock:
            process, platform = self._keeper.running(), self._platform
            check_current(self._manifest, platform)
            # Before the enclave can see the frames; a failure from here on returns no budget.
            self._allowance.take(count)
            self._query = number = self._query + 1
            now = platform.now()
            packet = wire.QUERY_LAYOUT.pack(Kind.QUERY, number, now, platform.counter(SECURITY_COUNTER), count, receipt)
            # Copied while no other query is under way: there is one memory for frames.
            shown = self._shown[:count]
            np.copyto(shown, frames)
            answer = self._keeper.exchange(process, packet, frames=count)
            with contextlib.suppress(Lost):
                labels, token = self._keeper.answers.labels(answer, number, count)
                if receipt:
                    self._keeper.answers.receipt(token, shown, labels, now)
                elif token:
                    raise Lost("more than labels")
                self._answers += count
                return labels, token
            raise self._keeper.lost("answers something else")

    def _asked(self, process: Process, kind: Kind, *values: object) -> list[Any]:
        """The enclave's answer when it is done; the lock is held."""
        answer = self._keeper.exchange(process, wire.pack(kind, *values))
        with contextlib.suppress(Lost):
            told, reply = wire.unpack(answer)
            if told == Kind.DONE:
                return reply
        raise self._keeper.lost("answers something else")
