"""Runs a graph in onnxruntime, and compares two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from variegate.keys.errors import Refusal, RefusedError, VariegateError

RELATIVE_TOLERANCE = 1e-3
"""Largest difference of two scores, relative to the largest score of the row."""
TIE = 1e-5
"""Two scores closer than this are a tie: which one wins is rounding."""

_BATCH = 64
_NOWHERE = "/nonexistent/"
_SILENT = 4  # fatal only: errors are raised as well


@contextmanager
def refusing(message: str, hint: str, refusal: Refusal = Refusal.MODEL) -> Iterator[None]:
    """Converts any error of a foreign library on a base into a `RefusedError`.

    Raises:
        RefusedError: Anything but our own errors was raised inside.
    """
    try:
        yield
    except VariegateError:
        raise
    except MemoryError as error:
        raise RefusedError(Refusal.TOO_LARGE, f"{message}: out of memory", hint=hint) from error
    except Exception as error:  # the libraries have no common root below Exception
        raise RefusedError(refusal, message, hint=hint) from error


def session(
    graph: bytes, supplied: Mapping[str, NDArray[Any]] | None = None, *, lean: bool = False
) -> ort.InferenceSession:
    """An onnxruntime session on one thread of the CPU, quiet, that reads no file.

    Args:
        graph: A serialised model; it may be hostile, but its calculation is run.
        supplied: Initialisers that the graph lacks, as a device supplies them.
        lean: Whether memory is given back after each batch. Else a session keeps that of every batch size it ever saw:
            20 copies grew a process to over 2 GiB, with no more labels per second.

    Raises:
        Exception: onnxruntime's own, which have no common root.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    options.enable_cpu_mem_arena = options.enable_mem_pattern = not lean
    # As ONNX in any case; external data is looked for in a folder that never exists.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in (supplied or {}).items()}
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    out = ort.InferenceSession(graph, options, ["CPUExecutionProvider"])
    out.supplied = values  # onnxruntime reads them in place: they must outlive it
    return out


class Runner:
    """An onnxruntime session over one input and one output, on one thread.

    Args:
        data: A serialised model.

    Raises:
        RefusedError: `MODEL` when onnxruntime cannot load it.
    """

    def __init__(self, data: bytes) -> None:
        with refusing("onnxruntime cannot load the graph", "use operators that onnxruntime runs on a CPU"):
            self._session = session(data)
            self._input = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[np.float32], *, batch: int = _BATCH) -> NDArray[np.float32]:
        """Runs images in batches.

        Args:
            images: float32, (n, ...), n a multiple of `batch` where the graph's batch is fixed.
            batch: Images for each run.

        Raises:
            RefusedError: `MODEL` when a run fails.
        """
        with refusing("the graph does not run", "run it under onnxruntime to see why", Refusal.MODEL):
            parts = [
                np.asarray(self._session.run(None, {self._input: images[start : start + batch]})[0])
                for start in range(0, len(images), batch)
            ]
            return np.concatenate(parts) if len(parts) != 1 else parts[0]


def random_images(count: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Returns the same images in [0, 1] every time: half of them noise, half of them ramps."""
    generator = np.random.default_rng(0)
    images = generator.random((count, *shape), dtype=np.float32)
    ramp = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    images[1::2] = images[1::2].mean(axis=(1, 2, 3), keepdims=True) * ramp * 2
    return np.clip(images, 0, 1)


def check_parity(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
    """Checks that two graphs answered alike.

    Args:
        expected: Scores of the seller's base, float32, (batch, classes).
        actual: Scores of the canonical graph for the same images.

    Raises:
        RefusedError: `PARITY` when shapes or scores differ by more than `RELATIVE_TOLERANCE`, or a label
            differs where the scores are no tie.
    """
    hint = "report the base's operators: a conversion step changed what it computes"
    if expected.shape != actual.shape:
        raise RefusedError(Refusal.PARITY, "the canonical graph gives another shape", hint=hint)
    scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    # A row of zeros has no scale; written so that NaN fails too.
    if not (np.abs(expected - actual) <= RELATIVE_TOLERANCE * scale).all():
        raise RefusedError(Refusal.PARITY, "the canonical graph's scores differ", hint=hint)
    rows = np.arange(len(expected))
    chosen = actual.argmax(axis=1)
    if (expected.max(axis=1) - expected[rows, chosen] >= TIE).any():
        raise RefusedError(Refusal.PARITY, "the canonical graph gives other labels", hint=hint)
