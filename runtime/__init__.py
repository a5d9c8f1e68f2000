"""What a device runs: opens a sealed copy and answers with one integer per image. Imports keys only."""

from variegate.runtime.enclave import Enclave, Protection, ProtectionState, Status

__all__ = ["Enclave", "Protection", "ProtectionState", "Status"]
