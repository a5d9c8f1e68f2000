"""What a device runs: opens a sealed copy and answers with one integer per image. Imports keys only."""

import os

# Before onnxruntime is imported: its telemetry starts a thread, writes a file and calls a server of its maker's.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from variegate.runtime.enclave import Enclave, Protection, ProtectionState, Status

__all__ = ["Enclave", "Protection", "ProtectionState", "Status"]
