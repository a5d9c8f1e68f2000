"""The tiny graph for float32 frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from testbed.artefacts import CANARIES, frames, tiny_payload
from variegate.keys.artefact import Payload


def float_payload(seed: int = 0) -> Payload:
    """As `tiny_payload`, taking float32 in [0, 1]."""
    payload = tiny_payload(seed=seed)
    model = onnx.load_from_string(bytes(payload.graph))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    shown = (frames(CANARIES, seed=1) / np.float32(255)).astype(np.float32)
    return replace(payload, canaries=shown.tobytes(), graph=model.SerializeToString())
