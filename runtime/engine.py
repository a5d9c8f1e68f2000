"""The network in onnxruntime: loaded from memory, keyed tensors put in, labels out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from variegate.keys.artefact import Spec
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.runtime.graphs import declare
from variegate.runtime.opening import Copy
from variegate.runtime.scrub import Scrub

INPUT, OUTPUT = "image", "label"
_SILENT = 4
_NOWHERE = "/nonexistent/"
_ORT_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class Engine:
    """One loaded copy. `run` is thread-safe, as onnxruntime's is."""

    def __init__(self, copy: Copy, *, threads: int = 1, in_place: bool = False) -> None:
        """Loads a copy; nothing is written to disk.

        Args:
            copy: The opened copy; its memory must stay as it is as long as the engine lives.
            threads: Threads of onnxruntime within one query.
            in_place: Whether no weight and no keyed tensor may be copied: onnxruntime reads them where they lie. What
                a run leaves on the stack, `scrub` clears.

        Raises:
            RefusedError: `MODEL`, when the graph does not load or is not an image-to-label graph.
            MisuseError: `in_place` with a copy that is not arranged for it, or with several threads, whose stacks
                could not be cleared.
            DeviceError: `in_place` on a processor where the stack cannot be cleared.
        """
        if in_place and (not copy.arranged or threads != 1):
            raise MisuseError("only an arranged copy on one thread can be used in place")
        self._scrub = Scrub() if in_place else None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT  # its messages quote the graph
        # Whatever else a graph says is external is looked for in a folder that is never there.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        if in_place:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            # onnxruntime reads these arrays in place: they live as long as the session.
            self._values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in copy.values.items()}
            graph = _arranged(copy, self._values, options) if copy.arranged else _whole(copy, self._values, options)
            self._session = ort.InferenceSession(graph, options, ["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  onnxruntime raises many types; what they say quotes the graph
            raise RefusedError(Refusal.MODEL, "graph does not load") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(i.name, i.type, tuple(i.shape[1:])) for i in inputs]
        if found != [(INPUT, _ORT_TYPES[copy.manifest.dtype], copy.manifest.shape)] or [
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

    def scrub(self) -> None:
        """Clears what runs left of weights on the stack of this thread; does nothing unless in place.

        Call it after a run, on the thread and from no deeper than where `run` was called.
        """
        if self._scrub is not None:
            self._scrub()


def _whole(copy: Copy, values: dict[str, Any], options: ort.SessionOptions) -> bytes:
    """The graph as it is; onnxruntime takes its own copies of the weights and reorders them."""
    options.add_external_initializers(list(values), list(values.values()))
    return bytes(copy.graph)


def _arranged(copy: Copy, values: dict[str, Any], options: ort.SessionOptions) -> bytes:
    """The graph with zeros for every weight, which onnxruntime never looks at: it is given the real ones to share.

    External initialisers would not do: it copies those, or wants to see their file.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in values.items():
        options.add_initializer(name, value)
    specs = [Spec.of(name, value) for name, value in copy.values.items()]
    return bytes(copy.graph) + declare(specs, zeros=True)
