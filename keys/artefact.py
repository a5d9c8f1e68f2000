r"""One file for one buyer, and what is inside a component.

artefact file   "vgcopy\0\1" || envelope length (4, big-endian) || envelope || component
payload         recipe length (4, big-endian) || recipe || ONNX graph
recipe          deterministic CBOR [keyed tensors, canary frames]
"""

from __future__ import annotations

from dataclasses import dataclass, field

from variegate.keys import cbor, recipe
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.recipe import KeyedTensor

MAGIC = b"vgcopy\x00\x01"
MAX_RECIPE_BYTES = 4 << 20
_LENGTH_BYTES = 4


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
class Payload:
    """What a component holds.

    Attributes:
        tensors: The keyed tensors that the graph lacks.
        canaries: Frames of the self-test, raw bytes, one after another.
        graph: The ONNX graph.
    """

    tensors: tuple[KeyedTensor, ...]
    canaries: bytes = field(repr=False)
    graph: bytes | memoryview = field(repr=False)

    def to_bytes(self) -> bytes:
        """The component's plaintext."""
        head = cbor.encode([recipe.to_cbor(self.tensors), self.canaries])
        return b"".join((len(head).to_bytes(_LENGTH_BYTES, "big"), head, self.graph))

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> Payload:
        """Reads a decrypted component; the graph is not copied.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`.
        """
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        if len(data) <= end:
            raise RefusedError(Refusal.MALFORMED, "payload is cut short")
        match cbor.decode(bytes(data[_LENGTH_BYTES:end]), limit=MAX_RECIPE_BYTES):
            case [tensors, bytes(canaries)]:
                return cls(recipe.from_cbor(tensors), canaries, memoryview(data)[end:])
        raise RefusedError(Refusal.MALFORMED, "payload does not begin with a recipe")
