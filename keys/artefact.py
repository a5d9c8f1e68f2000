r"""The artefact, one file for one buyer, and the payload of a component.

artefact file   "vgcopy\0\1" || envelope length (4, big-endian) || envelope || component
payload         head length (4) || graph length (4) || head || ONNX graph || constants
head            deterministic CBOR [2, keyed tensors, canary frames, [[name, dtype, dimensions], ...]]
constants       each from the next multiple of 64 bytes, counted from the payload's start; zeros between

The graph holds no weights: they are the constants, placed so that onnxruntime can use them in place. Their order
determines where each begins, so that a head cannot make two overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys import cbor, recipe
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.recipe import KeyedTensor

MAGIC = b"vgcopy\x00\x01"
MAX_HEAD_BYTES = 4 << 20
ALIGNMENT = 64
"""Bytes to which constants are aligned: a cache line, and the widest vector register."""
DTYPES = frozenset(np.dtype(name).name for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
"""Types of a constant; little-endian."""
LAYOUT = 2
_LENGTH_BYTES = 4
_MAX_RANK = 8


@dataclass(frozen=True)
class Artefact:
    """An envelope and the component that it speaks of, as bytes; nothing is checked yet.

    Attributes:
        envelope: Signed statement.
        component: Component file.
    """

    envelope: bytes = field(repr=False)
    component: bytes | memoryview = field(repr=False)

    def to_bytes(self) -> bytes:
        """The single file."""
        length = len(self.envelope).to_bytes(_LENGTH_BYTES, "big")
        return b"".join((MAGIC, length, self.envelope, self.component))

    @classmethod
    def from_bytes(cls, data: bytes) -> Artefact:
        """Splits a single file without copying the component.

        Raises:
            RefusedError: `MALFORMED`.
        """
        start = len(MAGIC) + _LENGTH_BYTES
        end = start + int.from_bytes(data[len(MAGIC) : start], "big")
        if len(data) <= end or not data.startswith(MAGIC):
            raise RefusedError(Refusal.MALFORMED, "file is not a Variegate artefact, or is cut short")
        return cls(data[start:end], memoryview(data)[end:])


@dataclass(frozen=True)
class Spec:
    """Type and shape of a constant.

    Attributes:
        name: Of the initialiser in the graph.
        dtype: One of `DTYPES`.
        shape: Dimensions, none for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its length."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @classmethod
    def of(cls, name: str, value: NDArray[Any]) -> Spec:
        """That of an array.

        Raises:
            MisuseError: When its type cannot be written.
        """
        if value.dtype.name not in DTYPES:
            raise MisuseError(f"a constant of type {value.dtype} cannot be written")
        return cls(name, value.dtype.name, value.shape)

    @classmethod
    def from_cbor(cls, value: Any) -> Spec:
        """Reads the three fields.

        Raises:
            RefusedError: `MALFORMED`, when any is out of its range.
        """
        match value:
            case [str(name), str(dtype), [*shape]] if (
                name
                and dtype in DTYPES
                and len(shape) <= _MAX_RANK
                and all(type(d) is int and 1 <= d <= recipe.MAX_ELEMENTS for d in shape)
            ):
                return cls(name, dtype, tuple(shape))
        raise RefusedError(Refusal.MALFORMED, "table of the constants is not valid")


@dataclass(frozen=True)
class Payload:
    """The content of a component.

    Attributes:
        tensors: The keyed tensors that the graph lacks.
        canaries: Frames of the self-test, raw bytes, one after another.
        graph: The ONNX graph; `tensors` and `constants` are external initialisers in it.
        constants: The graph's weights by name. From `from_bytes` and `blank` they are views, and cost no memory.
    """

    tensors: tuple[KeyedTensor, ...]
    canaries: bytes = field(repr=False)
    graph: bytes | memoryview = field(repr=False)
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def to_bytes(self) -> bytes:
        """The component's plaintext.

        Raises:
            MisuseError: When a constant's type cannot be written.
        """
        out = bytearray()

        def allocate(length: int) -> memoryview:
            out.extend(bytes(length))
            return memoryview(out)

        specs = [Spec.of(name, value) for name, value in self.constants.items()]
        laid = self.blank(self.tensors, self.canaries, self.graph, specs, allocate)
        for name, value in self.constants.items():
            np.copyto(laid.constants[name], value)
        return bytes(out)

    @classmethod
    def blank(
        cls,
        tensors: tuple[KeyedTensor, ...],
        canaries: bytes,
        graph: bytes | memoryview,
        specs: list[Spec],
        allocate: Callable[[int], memoryview],
    ) -> Payload:
        """Lays a payload out in memory of the caller's, its constants still to be filled in.

        Args:
            tensors: As the attribute.
            canaries: As the attribute.
            graph: As the attribute.
            specs: Of the constants, in order.
            allocate: Gives that many bytes, writable; asked once.

        Returns:
            The payload, its constants writable views.
        """
        table = [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]
        head = cbor.encode([LAYOUT, recipe.to_cbor(tensors), canaries, table])
        start = b"".join((len(head).to_bytes(_LENGTH_BYTES, "big"), len(graph).to_bytes(_LENGTH_BYTES, "big"), head))
        end = len(start) + len(graph)
        spans = list(_spans(end, specs))
        data = allocate(spans[-1].stop if spans else end)
        data[: len(start)] = start
        data[len(start) : end] = graph
        views, at = {}, end
        for spec, span in zip(specs, spans, strict=True):
            data[at : span.start] = bytes(span.start - at)
            views[spec.name] = _view(data, spec, span)
            at = span.stop
        return cls(tensors, canaries, data[len(start) : end], views)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Payload:
        """Reads a decrypted component; graph and constants are not copied.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`.
        """
        view = memoryview(data)
        start = 2 * _LENGTH_BYTES
        middle = start + int.from_bytes(view[:_LENGTH_BYTES], "big")
        end = middle + int.from_bytes(view[_LENGTH_BYTES:start], "big")
        if not start < middle < end <= len(view):
            raise RefusedError(Refusal.MALFORMED, "payload is cut short")
        if middle - start > MAX_HEAD_BYTES:
            raise RefusedError(Refusal.TOO_LARGE, f"payload's head exceeds {MAX_HEAD_BYTES} bytes")
        match cbor.decode(bytes(view[start:middle]), limit=MAX_HEAD_BYTES):
            case [layout, tensors, bytes(canaries), [*table]] if layout == LAYOUT and type(layout) is int:
                keyed, specs = recipe.from_cbor(tensors), [Spec.from_cbor(item) for item in table]
            case _:
                raise RefusedError(Refusal.MALFORMED, "payload does not begin with a head")
        names = [spec.name for spec in specs] + [tensor.name for tensor in keyed]
        if len(set(names)) != len(names):
            raise RefusedError(Refusal.MALFORMED, "payload names a tensor twice")
        constants, at = {}, end
        for spec, span in zip(specs, _spans(end, specs), strict=True):
            if span.stop > len(view) or any(view[at : span.start]):
                raise RefusedError(Refusal.MALFORMED, "payload's constants do not stand where its head says")
            constants[spec.name] = _view(view, spec, span)
            at = span.stop
        if at != len(view):
            raise RefusedError(Refusal.MALFORMED, "payload has bytes after its end")
        return cls(keyed, canaries, view[middle:end], constants)


def _spans(at: int, specs: list[Spec]) -> Iterator[slice]:
    """The place of each constant when the graph ends at `at`."""
    for spec in specs:
        start = -(-at // ALIGNMENT) * ALIGNMENT
        at = start + spec.bytes
        yield slice(start, at)


def _view(data: memoryview, spec: Spec, span: slice) -> NDArray[Any]:
    return np.frombuffer(data[span], np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
