"""The enclave: a sealed copy goes in, labels come out, and nothing else.

Order of opening: length caps, signatures, device, class, expiry, counter, measurements, hash tree, unseal,
decrypt, load. It works on bytes held in memory, so that nothing is checked in one state and used in another.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from variegate.keys import component
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import sha256
from variegate.runtime.admission import admit, check_expiry, uniform
from variegate.runtime.allowance import Allowance
from variegate.runtime.engine import Engine
from variegate.runtime.limits import LIMITS
from variegate.runtime.platform import Platform


@dataclass(frozen=True)
class Protection:
    """One protection and whether it is on.

    Attributes:
        name: What it is.
        on: Whether it is on.
        reason: Why, in a few words.
    """

    name: str
    on: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a device says of itself. Holds no score, key or seed.

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


class Enclave:
    """One opened copy. Thread-safe; close it or use it as a context manager.

    It runs in the caller's process. Whatever puts it in a process of its own runs this class there and talks
    to it: `open`, `classify_batch` and `status` are all that has to cross.
    """

    def __init__(self, manifest: Manifest, engine: Engine, canaries: bytes, platform: Platform) -> None:
        self._manifest = manifest
        self._engine: Engine | None = engine
        self._canaries = canaries
        self._platform = platform
        self._allowance = Allowance(manifest.policy, manifest.epoch, platform)
        self._dtype = np.dtype(manifest.dtype)
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
            RefusedError: `ARTEFACT`, whatever was wrong; the platform's inner log has the reason.
            DeviceError: When the device's own hardware fails.
        """
        with uniform(platform, "open"):
            envelope = admit(artefact.envelope, platform)
            manifest = envelope.manifest
            layout = component.check(artefact.component, manifest.component)
            keys = envelope.unseal(platform.unwrap)
            payload = Payload.from_bytes(component.unseal(artefact.component, layout, keys.cek))
            engine = Engine(payload, keys.seed, manifest, threads=threads)
            return cls(manifest, engine, payload.canaries, platform)

    @property
    def manifest(self) -> Manifest:
        """The signed manifest."""
        return self._manifest

    def self_test(self) -> None:
        """Classifies the component's canary frames and compares with the signed digest; costs no budget.

        Raises:
            RefusedError: `ARTEFACT`, when the labels differ.
        """
        with uniform(self._platform, "self-test"):
            frame_bytes = math.prod(self._manifest.shape) * self._dtype.itemsize
            if not self._canaries or len(self._canaries) % frame_bytes:
                raise RefusedError(Refusal.SELF_TEST, "component has no whole canary frames")
            flat = np.frombuffer(self._canaries, self._dtype)
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
            RefusedError: `INPUT` for a wrong frame, `EXPIRED` past the policy's time.
            LimitError: When budget or rate is spent.
        """
        if not isinstance(frame, np.ndarray):
            raise RefusedError(Refusal.INPUT, "frame is not a numpy array")
        return int(self.classify_batch(frame[np.newaxis])[0])

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """The labels of many frames; all are answered or none is.

        Args:
            frames: (N, *shape) of the manifest's dtype.

        Returns:
            Class indices, int64 (N,).

        Raises:
            RefusedError: `INPUT` for wrong frames, `EXPIRED` past the policy's time.
            LimitError: When budget or rate is spent.
        """
        self._check(frames)
        check_expiry(self._manifest, self._platform)
        self._allowance.take(len(frames))
        labels = self._run(frames)
        with self._lock:
            self._answered += len(frames)
        return labels

    def status(self) -> Status:
        """What this device says of itself."""
        m = self._manifest
        return Status(
            buyer=m.buyer,
            epoch=m.epoch,
            sequence=m.sequence,
            device_class=m.device_class,
            dtype=m.dtype,
            shape=m.shape,
            classes=m.classes,
            answered=self._answered,
            remaining=self._allowance.remaining,
            not_after=m.not_after,
            protections=_protections(m),
        )

    def close(self) -> None:
        """Drops the network; later queries are misuse."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, frames: object) -> None:
        wanted = self._manifest.shape
        if not isinstance(frames, np.ndarray) or frames.dtype != self._dtype or frames.shape[1:] != wanted:
            raise RefusedError(
                Refusal.INPUT,
                f"frames are not {self._dtype} of shape (N, {', '.join(map(str, wanted))})",
                hint="a camera's bytes need no scaling: pass them as they come"
                if self._dtype == np.uint8
                else "scale pixels to float32 in [0, 1]",
            )
        if not 1 <= len(frames) <= LIMITS.batch:
            raise RefusedError(Refusal.INPUT, f"a batch has 1 to {LIMITS.batch} frames")
        # The comparison is also false for NaN.
        if self._dtype == np.float32 and not (frames.min() >= 0 and frames.max() <= 1):
            raise RefusedError(Refusal.INPUT, "frames hold values outside of [0, 1]")

    def _run(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        engine = self._engine
        if engine is None:
            raise MisuseError("enclave is closed")
        if len(frames) <= LIMITS.slice:
            return engine.run(frames)
        starts = range(0, len(frames), LIMITS.slice)
        return np.concatenate([engine.run(frames[i : i + LIMITS.slice]) for i in starts])


def _protections(manifest: Manifest) -> tuple[Protection, ...]:
    policy = manifest.policy
    return (
        Protection("signatures", True, "Ed25519 and ML-DSA-65, both required"),
        Protection("rollback", True, "monotonic counter of the device"),
        Protection("budget", policy.budget is not None, "signed policy"),
        Protection("rate", policy.rate_per_hour is not None, "signed policy"),
        Protection("expiry", manifest.not_after is not None, "signed manifest"),
        Protection("measurements", bool(manifest.measurements), "signed manifest"),
        Protection("isolation", False, "runs in the caller's process"),
        Protection("memory", False, "weights lie in ordinary memory"),
    )
