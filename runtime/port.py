"""The interfaces for labels, from an enclave in this process or in an isolated one."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from variegate.keys.artefact import Artefact
from variegate.keys.manifest import Manifest
from variegate.runtime.enclave import Status


class LabelPort(Protocol):
    """One opened copy. `runtime.enclave.Enclave` says what each does and raises.

    All may also raise `DeviceError`, when the enclave has stopped: that query got no answer.
    """

    @property
    def manifest(self) -> Manifest: ...  # noqa: D102

    def classify(self, frame: NDArray[Any]) -> int:
        """The label of a frame."""
        ...

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames."""
        ...

    def self_test(self) -> None:
        """Answers the copy's own test frames."""
        ...

    def status(self) -> Status:
        """What the copy is, and what is left of its budget."""
        ...

    def close(self) -> None:
        """Gives the copy up."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Host(Protocol):
    """Starts copies.

    Attributes:
        policy: The device's policy that it follows (`isolation.policy.DevicePolicy`).
    """

    policy: Any

    def measurements(self) -> Mapping[str, bytes]:
        """Measurements of the code that it would run: 32 bytes by name.

        Raises:
            DeviceError: It cannot be measured.
        """
        ...

    def start(self, artefact: Artefact, platform: Any) -> LabelPort:
        """Opens an artefact on a device.

        Args:
            artefact: Hostile bytes.
            platform: The device: a `Platform` with everything that this host needs.

        Raises:
            RefusedError: `ARTEFACT`; the platform's inner log has the reason.
            DeviceError: The hardware failed, or the process for the copy does not start.
        """
        ...
