"""Arranges weights so that onnxruntime uses them in place.

When onnxruntime loads a graph, it reorders the filters of convolutions for this CPU, in memory of its own. That makes a
network twice as fast, but its weights are then outside our pages. So the reordering is first learnt from a graph whose
weights are markers, each a different number: the optimised graph shows where each weight belongs. The weights are then
written there, in our own memory, and the optimised graph is loaded without further changes.

If the markers do not survive (because a fusion calculates, or a type cannot be marked), the graph is used as it is:
correct, but slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from variegate.isolation.graphs import take_out
from variegate.keys.artefact import Payload, Spec

Optimise = Callable[[bytes, list[Spec]], bytes | None]
"""`optimised`, or a function that runs it elsewhere. It receives no weight, message or key."""

_FIRST_MARK = 0x0080_0000  # the smallest normal float32, as bits
_MARKS = 0x7F80_0000 - _FIRST_MARK  # up to infinity
_LEAST_BYTES = 32
_SILENT = 4
_NOWHERE = "/nonexistent/"
_CALCULATING = [
    "ConstantFolding",
    "ConvAddFusion",
    "ConvMulFusion",
    "ConvBNFusion",
    "MatMulBNFusion",
    "MatMulScaleFusion",
    "PadFusion",
    "LayerNormFusion",
]
"""Optimisers of onnxruntime that make new weights out of old ones; the exporter has folded all that can be folded."""


def arrange(
    payload: Payload, keyed: Mapping[str, NDArray[Any]], allocate: Callable[[int], memoryview], optimise: Optimise
) -> Payload:
    """Lays out all that a copy needs so that an engine can use it in place.

    Args:
        payload: A copy's.
        keyed: The copy's keyed tensors, by name.
        allocate: Gives that many writable bytes; asked once.
        optimise: `optimised`.

    Returns:
        A payload in that memory: the graph lacks every weight and keyed tensor, and these are its constants.
    """
    values = {**payload.constants, **keyed}
    specs = [Spec.of(name, value) for name, value in values.items()]
    plan = _plan(optimise(bytes(payload.graph), specs), specs) or _unchanged(payload.graph, specs)
    laid = Payload.blank((), payload.canaries, plan.graph, [move.spec for move in plan.moves], allocate)
    for move in plan.moves:
        move.into(laid.constants[move.spec.name], values[move.source])
    return laid


def optimised(graph: bytes, specs: list[Spec]) -> bytes | None:
    """The graph as onnxruntime optimises it on this CPU, with markers as weights.

    Args:
        graph: With external initialisers.
        specs: Of the initialisers that it lacks.

    Returns:
        The graph with its markers, or None when onnxruntime cannot be asked: too many weights, or no way to write a
        file in memory.
    """
    marks = _marks(specs)
    if marks is None:
        return None
    try:
        file = os.memfd_create("graph")
    except OSError:
        return None
    try:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
        options.optimized_model_filepath = f"/proc/self/fd/{file}"
        held = [ort.OrtValue.ortvalue_from_numpy(value) for value in marks.values()]
        options.add_external_initializers(list(marks), held)
        ort.InferenceSession(graph, options, ["CPUExecutionProvider"], disabled_optimizers=_CALCULATING)
        return os.pread(file, os.fstat(file).st_size, 0)
    except Exception:  # noqa: BLE001  onnxruntime raises many types; whether the graph loads shows later
        return None
    finally:
        os.close(file)


@dataclass(frozen=True)
class _Move:
    """Where a tensor of the graph to load gets its values.

    Attributes:
        spec: Of the tensor.
        source: Name of the tensor that it was made of.
        order: Index into the source, flat, for each of its elements; -1 where it is padded with zeros. None when
            it is the source as it is.
    """

    spec: Spec
    source: str
    order: NDArray[np.int64] | None

    def into(self, out: NDArray[Any], value: NDArray[Any]) -> None:
        """Writes it; nothing is copied elsewhere on the way."""
        flat = out.reshape(-1)
        if self.order is None:
            # The same bytes in the same order, perhaps under another shape: (1, C, 1, 1) becomes (1, 1, 1, C).
            np.copyto(flat, value.reshape(-1))
            return
        # Any mode but "raise" writes without a buffer between.
        np.take(value.reshape(-1), self.order, out=flat, mode="clip")
        flat[self.order < 0] = 0


@dataclass(frozen=True)
class _Plan:
    graph: bytes
    moves: list[_Move]


def _marks(specs: list[Spec]) -> dict[str, NDArray[Any]] | None:
    """Values of float32 that are all different; other types count up, and are known by their names alone."""
    out: dict[str, NDArray[Any]] = {}
    at = 0
    for spec in specs:
        count = int(np.prod(spec.shape, dtype=np.int64))
        if spec.dtype == "float32":
            if at + count > _MARKS:
                return None
            bits = np.arange(_FIRST_MARK + at, _FIRST_MARK + at + count, dtype=np.uint32)
            out[spec.name] = bits.view(np.float32).reshape(spec.shape)
            at += count
        else:
            out[spec.name] = (np.arange(count) % 100).astype(spec.dtype).reshape(spec.shape)
    return out


def _plan(graph: bytes | None, specs: list[Spec]) -> _Plan | None:
    """Reads an optimised graph's markers; None when they are not whole."""
    marks = _marks(specs)
    if graph is None or marks is None:
        return None
    rest, taken = take_out(
        graph,
        lambda i: i.spec.name in marks or (i.spec.dtype == "float32" and i.spec.bytes >= _LEAST_BYTES),
    )
    floats = [spec.name for spec in specs if spec.dtype == "float32"]
    ends = np.cumsum([marks[name].size for name in floats], dtype=np.int64)
    moves = []
    for weight in taken:
        mark = marks.get(weight.spec.name)
        if mark is not None and mark.dtype.name == weight.spec.dtype and mark.tobytes() == weight.raw:
            moves.append(_Move(weight.spec, weight.spec.name, None))
        elif weight.spec.dtype == "float32" and len(weight.raw) == weight.spec.bytes:
            bits = np.frombuffer(weight.raw, "<u4").astype(np.int64)
            order = np.where(bits == 0, -1, bits - _FIRST_MARK)
            source = int(np.searchsorted(ends, order.max(), side="right"))
            if source == len(floats):
                return None
            start, stop = int(ends[source] - marks[floats[source]].size), int(ends[source])
            order = np.where(bits == 0, -1, order - start)
            # Every weight of the source once, and zeros: nothing was calculated.
            if not np.array_equal(np.sort(order[bits != 0]), np.arange(stop - start)):
                return None
            moves.append(_Move(weight.spec, floats[source], order))
        else:
            return None
    return _Plan(rest, moves)


def _unchanged(graph: bytes | memoryview, specs: list[Spec]) -> _Plan:
    """The graph as the exporter wrote it."""
    names = {spec.name for spec in specs}
    rest, _ = take_out(graph, lambda i: i.external and i.spec.name in names)
    return _Plan(rest, [_Move(spec, spec.name, None) for spec in specs])
