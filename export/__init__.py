"""The seller's side: from a trained classifier to one sealed copy for each buyer."""

import os

# Before onnxruntime is imported: its telemetry starts a thread, writes a file and calls a server of its maker's.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
