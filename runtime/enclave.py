"""The enclave: takes a sealed copy and returns labels, nothing else.

Order of opening: length caps, signatures, device, class, expiry, counter, measurements, hash tree, unseal, decrypt,
load. It works on bytes in memory, so that the bytes that are checked are the bytes that are used.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.keys.artefact import Artefact
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import sha256
from variegate.runtime.admission import check_current, uniform
from variegate.runtime.allowance import Allowance
from variegate.runtime.engine import Engine
from variegate.runtime.frames import Frames
from variegate.runtime.limits import LIMITS
from variegate.runtime.opening import open_here
from variegate.runtime.platform import Platform


class ProtectionState(StrEnum):
    """Whether a protection holds."""

    ON = "on"
    OFF = "off"
    """It is available but not asked for."""
    UNAVAILABLE = "unavailable"
    """This machine or this way of running cannot give it."""


@dataclass(frozen=True)
class Protection:
    """One protection and whether it is on.

    Attributes:
        name: Its name.
        state: On, off or unavailable.
        reason: Why, in a few words.
    """

    name: str
    state: ProtectionState
    reason: str

    @classmethod
    def when(cls, name: str, on: bool, reason: str) -> Protection:
        """One that is on or off."""
        return cls(name, ProtectionState.ON if on else ProtectionState.OFF, reason)


@dataclass(frozen=True, kw_only=True)
class Status:
    """A device's status. Holds no score, key or seed.

    Attributes:
        buyer: Buyer id.
        epoch: Key epoch.
        sequence: Number of the manifest.
        device_class: Kind of device.
        dtype: Of a frame.
        shape: Of a frame.
        classes: Number of classes.
        answered: Labels given since it was opened.
        remaining: Labels left in the budget, or None.
        not_after: Unix seconds, or None.
        protections: Each with its state.
    """

    buyer: str
    epoch: int
    sequence: int
    device_class: str
    dtype: str
    shape: tuple[int, ...]
    classes: int
    answered: int
    remaining: int | None
    not_after: int | None
    protections: tuple[Protection, ...]

    @classmethod
    def of(
        cls, manifest: Manifest, answered: int, remaining: int | None, surroundings: tuple[Protection, ...]
    ) -> Status:
        """Makes a status from the manifest, the counters and the protections of the process that answers."""
        return cls(
            buyer=manifest.buyer,
            epoch=manifest.epoch,
            sequence=manifest.sequence,
            device_class=manifest.device_class,
            dtype=manifest.dtype,
            shape=manifest.shape,
            classes=manifest.classes,
            answered=answered,
            remaining=remaining,
            not_after=manifest.not_after,
            protections=(*_signed(manifest), *surroundings),
        )


IN_PROCESS = (
    Protection("isolation", ProtectionState.OFF, "runs in the caller's process"),
    Protection("memory", ProtectionState.OFF, "weights lie in ordinary memory"),
)
"""The protections of an enclave in the caller's process: none."""


class Enclave:
    """One opened copy. Thread-safe; close it or use it as a context manager.

    It runs in the caller's process. `isolation` runs this class in a process of its own; only the calls of `open`,
    `classify_batch` and `status` must cross the boundary.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        canaries: bytes,
        platform: Platform,
        surroundings: tuple[Protection, ...] = IN_PROCESS,
        *,
        charged: bool = False,
    ) -> None:
        """Use `open`. `charged`: the caller has charged the frames already, and this counts nothing."""
        self._surroundings = surroundings
        self._manifest = manifest
        self._engine: Engine | None = engine
        self._canaries = canaries
        self._platform = platform
        self._allowance = None if charged else Allowance(manifest.policy, manifest.epoch, platform)
        self.frames = Frames(manifest)
        self._answered = 0
        self._lock = threading.Lock()

    @classmethod
    def open(cls, artefact: Artefact, platform: Platform, *, threads: int = 1) -> Self:
        """Checks and loads an artefact.

        Args:
            artefact: Hostile bytes.
            platform: This device.
            threads: Threads of onnxruntime within one query.

        Returns:
            The opened enclave.

        Raises:
            RefusedError: `ARTEFACT`, for every fault; the platform's inner log has the reason.
            DeviceError: When the device's own hardware fails.
        """
        return uniform(platform, "open", lambda: cls._opened(artefact, platform, threads))

    @classmethod
    def _opened(cls, artefact: Artefact, platform: Platform, threads: int) -> Self:
        copy = open_here(artefact, platform)
        return cls(copy.manifest, Engine(copy, threads=threads), copy.canaries, platform)

    @property
    def manifest(self) -> Manifest:
        """The signed manifest."""
        return self._manifest

    def self_test(self) -> None:
        """Classifies the component's canary frames and compares with the signed digest; costs no budget.

        Raises:
            RefusedError: `ARTEFACT`, when the labels differ.
        """
        uniform(self._platform, "self-test", self._compare_canaries)

    def _compare_canaries(self) -> None:
        frame_bytes = math.prod(self._manifest.shape) * self.frames.dtype.itemsize
        if not self._canaries or len(self._canaries) % frame_bytes:
            raise RefusedError(Refusal.SELF_TEST, "component has no whole canary frames")
        flat = np.frombuffer(self._canaries, self.frames.dtype)
        labels = self._run(flat.reshape(-1, *self._manifest.shape))
        if sha256(labels.astype("<i8").tobytes()) != self._manifest.canaries:
            raise RefusedError(Refusal.SELF_TEST, "canary frames get other labels than the seller's")

    def classify(self, frame: NDArray[Any]) -> int:
        """The label of one frame.

        Args:
            frame: The manifest's shape and dtype: uint8, or float32 in [0, 1].

        Returns:
            The class index.

        Raises:
            RefusedError: `INPUT` for a wrong frame, `EXPIRED` past the policy's time, `ROLLED_BACK` once the device
                has confirmed a newer copy, `MODEL` when the graph fails.
            LimitError: When budget or rate is spent.
            MisuseError: When the enclave is closed.
        """
        return int(self._answer(self.frames.own(frame, batch=False))[0])

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """The labels of many frames; all are answered or none is.

        Args:
            frames: (N, *shape) of the manifest's dtype.

        Returns:
            Class indices, int64 (N,).

        Raises:
            RefusedError, LimitError, MisuseError: As `classify`.
        """
        return self._answer(self.frames.own(frames, batch=True))

    def status(self) -> Status:
        """The status of this device."""
        remaining = None if self._allowance is None else self._allowance.remaining
        return Status.of(self._manifest, self._answered, remaining, self._surroundings)

    def close(self) -> None:
        """Drops the network; later queries are misuse."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Charges and runs; `frames` are our own and checked."""
        if self._engine is None:
            raise MisuseError("enclave is closed")
        check_current(self._manifest, self._platform)
        if self._allowance is not None:
            self._allowance.take(len(frames))
        labels = self._run(frames)
        with self._lock:
            self._answered += len(frames)
        return labels

    def _run(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        engine = self._engine
        if engine is None:
            raise MisuseError("enclave is closed")
        if len(frames) <= LIMITS.slice:
            return engine.run(frames)
        starts = range(0, len(frames), LIMITS.slice)
        return np.concatenate([engine.run(frames[i : i + LIMITS.slice]) for i in starts])


def _signed(manifest: Manifest) -> tuple[Protection, ...]:
    policy = manifest.policy
    return (
        Protection.when("signatures", True, "Ed25519 and ML-DSA-65, both required"),
        Protection.when("rollback", True, "monotonic counter of the device"),
        Protection.when("budget", policy.budget is not None, "signed policy"),
        Protection.when("rate", policy.rate_per_hour is not None, "signed policy"),
        Protection.when("expiry", manifest.not_after is not None, "signed manifest"),
        Protection.when("measurements", bool(manifest.measurements), "signed manifest"),
    )
