"""The code that runs on a device: opens a sealed copy and answers with one integer per image. Imports keys only.

A device's own code calls::

    from variegate import runtime

    with runtime.Enclave.open(artefact, platform) as enclave:
        label = enclave.classify(image)
        left = enclave.status().remaining

`artefact` is a `keys.Artefact`, which may be hostile; `platform` is the device (`runtime.platform.Platform`): its keys,
counters and log.
"""

import os

# Before onnxruntime is imported: its telemetry starts a thread, writes a file and calls a server of its maker's.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from variegate.runtime.enclave import Enclave, Protection, ProtectionState, Status

__all__ = ["Enclave", "Protection", "ProtectionState", "Status"]
