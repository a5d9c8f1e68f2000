"""Where labels come out, whatever runs behind it: this process, or an isolated one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from variegate.keys.artefact import Artefact
from variegate.keys.manifest import Manifest
from variegate.runtime.enclave import Enclave, Status
from variegate.runtime.platform import Platform


class LabelPort(Protocol):
    """One opened copy. `runtime.enclave.Enclave` says what each does and raises.

    All may also raise `DeviceError`, when what runs behind has stopped: that query got no answer.
    """

    @property
    def manifest(self) -> Manifest: ...  # noqa: D102

    def classify(self, frame: NDArray[Any]) -> int: ...  # noqa: D102

    def classify_batch(self, frames: NDArray[Any]) -> NDArray[np.int64]: ...  # noqa: D102

    def self_test(self) -> None: ...  # noqa: D102

    def status(self) -> Status: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class Host(Protocol):
    """Starts copies."""

    def start(self, artefact: Artefact, platform: Platform) -> LabelPort:
        """Opens an artefact on a device.

        Raises:
            RefusedError: `ARTEFACT`; the platform's inner log has the reason.
            DeviceError: The hardware failed, or what should run the copy does not start.
        """
        ...


class InProcess:
    """Opens copies in the caller's process: `status()` says that isolation and memory protection are off."""

    def start(self, artefact: Artefact, platform: Platform) -> LabelPort:
        """As `Host.start`."""
        return Enclave.open(artefact, platform)
