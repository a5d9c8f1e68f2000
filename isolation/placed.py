"""A copy in the caller's memory, and the engine that uses it in place.

    loader      open_copy(artefact, platform, allocate)    decrypts, and lays the copy out in `allocate`'s memory
    server      PlacedCopy.from_region(manifest, region)   finds it there
                PlacedEngine(copy)                         uses it there

While it serves, no weight or keyed tensor is copied. So a process that never had a key can answer, and the protection
of that memory protects the copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnxruntime as ort

from variegate.isolation.arrange import Optimise, arrange, optimised
from variegate.isolation.graphs import declare, initialisers, uses
from variegate.isolation.scrub import Scrub
from variegate.keys import recipe
from variegate.keys.artefact import Artefact, Payload, Spec
from variegate.keys.manifest import Manifest
from variegate.runtime.engine import Engine
from variegate.runtime.opening import Allocate, Copy, Share, decrypt, ordinary
from variegate.runtime.platform import Platform

_LEAST_BYTES = 32
"""Shorter tensors are not weights: scalars, and constants that normalise an image."""
_MOST_SHAPE = 64
"""Integers of an initialiser that the exporter leaves in the graph, as shapes and axes."""
_EITHER, _SECOND, _SECOND_AND_THIRD = frozenset({0, 1}), frozenset({1}), frozenset({1, 2})
_FLOATS = {
    "Add": _EITHER,
    "Sub": _EITHER,
    "Mul": _EITHER,
    "Div": _EITHER,
    "PRelu": _SECOND,
    "MatMul": _EITHER,
    "Gemm": _SECOND_AND_THIRD,
    "Conv": _SECOND_AND_THIRD,
    "LayerNormalization": _SECOND_AND_THIRD,
    "InstanceNormalization": _SECOND_AND_THIRD,
    "com.microsoft.FusedConv": _SECOND_AND_THIRD,
    "com.microsoft.FusedGemm": _SECOND_AND_THIRD,
    "com.microsoft.FusedMatMul": _SECOND,
    "com.microsoft.nchwc.Conv": _SECOND_AND_THIRD,
}
"""Inputs where an operator was seen to read float32 in place: `tests/test_engine_memory.py` looks at each."""
_INDICES = {"Gather": _SECOND}
"""Inputs where integers only say which element is meant."""


@dataclass(frozen=True)
class PlacedCopy(Copy):
    """An opened copy whose graph is as onnxruntime is to run it, its tensors views of one region."""

    @classmethod
    def from_region(cls, manifest: Manifest, region: memoryview) -> PlacedCopy:
        """Finds the copy that `open_copy` laid out; graph and tensors are views of the same bytes.

        Args:
            manifest: Its manifest.
            region: Exactly the bytes that `open_copy` asked for, at any address.

        Raises:
            RefusedError: `MALFORMED` or `TOO_LARGE`, when they hold something else.
        """
        payload = Payload.from_bytes(region)
        return cls(manifest, payload.canaries, payload.graph, payload.constants)


def open_copy(
    artefact: Artefact,
    platform: Platform,
    allocate: Allocate,
    *,
    optimise: Optimise = optimised,
    share: Share | None = None,
) -> PlacedCopy:
    """Checks and decrypts an artefact, and lays the copy out for use in place.

    Seed, CEK, plaintext and keyed tensors pass through ordinary memory of this process, which should end soon.

    Args:
        artefact: Hostile bytes.
        platform: This device.
        allocate: The memory of the copy, which holds all that is secret of it; asked once, for the exact length.
        optimise: Asks onnxruntime for the layout of the weights; it receives nothing secret.
        share: Gets a broker's share, for copies that need one; without, they are refused.

    Returns:
        The copy, as `PlacedCopy.from_region` finds it in that memory.

    Raises:
        RefusedError: With the true class; wrap the call in `admission.uniform` before it goes outwards.
        DeviceError: When the device's own hardware fails.
    """
    manifest, keys, plain = decrypt(artefact, platform, ordinary, share)
    payload = Payload.from_bytes(plain)
    laid = arrange(payload, recipe.expand(payload.tensors, keys.seed), allocate, optimise)
    return PlacedCopy(manifest, laid.canaries, laid.graph, laid.constants)


class PlacedEngine(Engine):
    """A loaded copy whose tensors onnxruntime reads in place. For one thread.

    `scrub` clears the weights that a run leaves on the stack.
    """

    def __init__(self, copy: PlacedCopy) -> None:
        """Loads a copy; its memory must stay as it is as long as the engine lives.

        Raises:
            RefusedError: `MODEL`, when the graph does not load or is not an image-to-label graph.
            DeviceError: On a processor where the stack cannot be cleared.
        """
        self._scrub = Scrub()
        super().__init__(copy, threads=1)

    def scrub(self) -> None:
        """Clears what runs left on the stack of this thread.

        Call it after a run, on the same thread and from no deeper stack frame than the call of `run`.
        """
        self._scrub()

    def _supply(self, copy: Copy, options: ort.SessionOptions) -> bytes:
        """The graph with zeros for every weight, which onnxruntime never looks at: it is given the real ones to share.

        External initialisers are no alternative: it copies them, or needs their file.
        """
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for name, value in self._values.items():
            options.add_initializer(name, value)
        specs = [Spec.of(name, value) for name, value in copy.values.items()]
        return bytes(copy.graph) + declare(specs, zeros=True)


def copying_operator(copy: PlacedCopy) -> str | None:
    """Finds an operator that would leave weights, or numbers derived from them, in ordinary memory.

    It finds everything that was not tested to leave none: other operators, other types (onnxruntime converts float16
    into a new tensor), operators that calculate with constants only, and weights in the graph itself.

    Args:
        copy: An opened copy.

    Returns:
        The first such operator, as `graphs.Use.operator`; None without one.

    Raises:
        RefusedError: `MODEL`, when the graph is no protocol buffer.
    """
    region = {name: value.dtype.name for name, value in copy.values.items() if value.nbytes >= _LEAST_BYTES}
    held = list(initialisers(copy.graph))
    inside = {weight.spec.name for weight in held if _is_weight(weight.spec)}
    constant = {*copy.values, *(weight.spec.name for weight in held)}
    for use in uses(copy.graph):
        if not inside.isdisjoint(use.inputs):
            return use.operator
        weights = [(at, region[name]) for at, name in enumerate(use.inputs) if name in region]
        if constant.issuperset(filter(None, use.inputs)):
            # Calculated shapes are no risk; a node without inputs may hold anything.
            if weights or not any(use.inputs):
                return use.operator
            constant.update(use.outputs)
        if not all(at in _readable(use.operator, dtype) for at, dtype in weights):
            return use.operator
    return None


def _readable(operator: str, dtype: str) -> frozenset[int]:
    """The inputs where an operator reads such a tensor in place."""
    table = _FLOATS if dtype == "float32" else _INDICES if dtype in ("int32", "int64") else {}
    return table.get(operator, frozenset())


def _is_weight(spec: Spec) -> bool:
    """Whether an initialiser that the graph itself holds is more than a shape or a scalar."""
    count = math.prod(spec.shape)
    if spec.dtype in ("int32", "int64"):
        return count > _MOST_SHAPE
    # The exporter leaves types in the graph that it has no name for: bfloat16, bool, packed integers.
    return (spec.bytes if spec.dtype else count) >= _LEAST_BYTES
