"""Runs the network in onnxruntime, with graph, keyed tensors and weights from memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError
from variegate.runtime.opening import Copy

INPUT, OUTPUT = "image", "label"
_SILENT = 4
_NOWHERE = "/nonexistent/"
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class Engine:
    """One loaded copy. `run` is thread-safe, as onnxruntime's is."""

    def __init__(self, copy: Copy, *, threads: int = 1) -> None:
        """Loads a copy; nothing is written to disk.

        Args:
            copy: The opened copy; its memory must stay as it is as long as the engine lives.
            threads: Threads of onnxruntime within one query.

        Raises:
            RefusedError: `MODEL`, when the graph does not load or is not an image-to-label graph.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT  # its messages quote the graph
        # Any other external data that a graph names is looked for in a folder that never exists.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        try:
            # They share these arrays' memory: the arrays live as long as the session.
            self._values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in copy.values.items()}
            graph = self._supply(copy, options)
            self._session = ort.InferenceSession(graph, options, ["CPUExecutionProvider"])
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  onnxruntime raises many types; what they say quotes the graph
            raise RefusedError(Refusal.MODEL, "graph does not load") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        interface = [(i.name, i.type, tuple(i.shape[1:])) for i in inputs]
        if interface != [(INPUT, _ORT_TYPES[copy.manifest.dtype], copy.manifest.shape)] or [
            (o.name, o.type, len(o.shape)) for o in outputs
        ] != [(OUTPUT, "tensor(int64)", 1)]:
            raise RefusedError(Refusal.MODEL, "graph does not take the manifest's frames to a label")

    def run(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames (N, *shape) of the manifest's dtype.

        Raises:
            RefusedError: `MODEL`, when onnxruntime fails.
        """
        try:
            labels: NDArray[np.int64] = self._session.run([OUTPUT], {INPUT: frames})[0]
        except Exception:  # noqa: BLE001
            raise RefusedError(Refusal.MODEL, "graph does not run") from None
        return labels

    def _supply(self, copy: Copy, options: ort.SessionOptions) -> bytes:
        """Offers onnxruntime the tensors that the graph lacks; returns the graph.

        onnxruntime takes copies of its own and reorders them for this processor.
        """
        options.add_external_initializers(list(self._values), list(self._values.values()))
        return bytes(copy.graph)
