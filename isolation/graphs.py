"""The part of ONNX's wire format that a device needs: reads a graph's initialisers and their users, and adds some.

ONNX is a protocol buffer (protobuf.dev/programming-guides/encoding). Two facts keep this small: unused fields are
copied unchanged, and the concatenation of two messages is their merger, so that initialisers are added by appending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from variegate.keys.artefact import Spec
from variegate.keys.errors import Refusal, RefusedError

LOCATION = "k"
"""Where a copy's graph says that its external initialisers are; they come from memory."""

# Field numbers of ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto and StringStringEntryProto in
# onnx.proto.
_GRAPH = 7
_NODE, _INITIALISER = 1, 5
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7
_SUBGRAPH, _SUBGRAPHS = 6, 11
_FUNCTIONS, _TRAINING, _SPARSE = 25, 20, 15
_TENSOR, _TENSORS, _SPARSE_VALUES = 5, 10, (22, 23)
_DIMENSIONS, _TYPE, _NAME, _RAW, _EXTERNAL, _PLACE = 1, 2, 8, 9, 13, 14
_KEY, _VALUE = 1, 2
_OUTSIDE = 1  # TensorProto.DataLocation.EXTERNAL
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
_NUMBERS = {name: number for number, name in _TYPES.items()}


@dataclass(frozen=True)
class Initialiser:
    """One initialiser of a graph.

    Attributes:
        spec: Its name, type and shape; the type is empty when it is none of `keys.artefact.DTYPES`.
        external: Whether its data is outside the model.
        raw: Its data, little-endian; empty when it is written in another way.
    """

    spec: Spec
    external: bool
    raw: memoryview = field(repr=False)


@dataclass(frozen=True)
class Use:
    """One node of a graph.

    Attributes:
        operator: Its operator, after its domain and a point unless it is of the default domain.
        inputs: Names of its inputs, empty where an optional one is left out.
        outputs: Names of its outputs.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def uses(model: bytes | memoryview) -> Iterator[Use]:
    """The nodes of a model: those of its graph in their order, then those of the subgraphs in attributes.

    Args:
        model: A serialised ModelProto.

    Raises:
        RefusedError: `MODEL`, when it is no protocol buffer.
    """
    for graph in _graphs(model):
        for node in _messages(graph, _NODE):
            named: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: [""], _DOMAIN: [""]}
            for number, value, _ in _fields(node):
                if number in named and not isinstance(value, int):
                    named[number].append(_text(value))
            operator, domain = named[_OPERATOR][-1], named[_DOMAIN][-1]
            whole = operator if domain in ("", "ai.onnx") else f"{domain}.{operator}"
            yield Use(whole, tuple(named[_INPUT]), tuple(named[_OUTPUT]))


def initialisers(model: bytes | memoryview) -> Iterator[Initialiser]:
    """The initialisers of a model's graph and of the subgraphs in attributes.

    Args:
        model: A serialised ModelProto.

    Raises:
        RefusedError: `MODEL`, when it is no protocol buffer.
    """
    for graph in _graphs(model):
        yield from map(_initialiser, _messages(graph, _INITIALISER))


def refuse_elsewhere(model: bytes | memoryview) -> None:
    """Refuses a model that takes data from files, except for initialisers of its graph, which `initialisers` lists.

    Also refuses parts that our graphs do not have and where tensors could hide: functions, training, sparse tensors.

    Args:
        model: A serialised ModelProto.

    Raises:
        RefusedError: `MODEL`; also when it is no protocol buffer.
    """
    for number, _, _ in _fields(memoryview(model)):
        if number in (_FUNCTIONS, _TRAINING):
            raise RefusedError(Refusal.MODEL, "graph has functions or training beside it")
    for graph in _graphs(model):
        if any(number == _SPARSE for number, _, _ in _fields(graph)):
            raise RefusedError(Refusal.MODEL, "graph has sparse initialisers")
        for node in _messages(graph, _NODE):
            for attribute in _messages(node, _ATTRIBUTE):
                for number, value, _ in _fields(attribute):
                    if number in _SPARSE_VALUES:
                        raise RefusedError(Refusal.MODEL, "graph has sparse tensors")
                    if number in (_TENSOR, _TENSORS) and not isinstance(value, int) and _names_a_file(value):
                        raise RefusedError(Refusal.MODEL, "graph takes a constant from a file")


def take_out(model: bytes | memoryview, wanted: Callable[[Initialiser], bool]) -> tuple[bytes, list[Initialiser]]:
    """Splits initialisers off a model.

    Args:
        model: A serialised ModelProto.
        wanted: Which to take.

    Returns:
        The model without them, and the removed ones.

    Raises:
        RefusedError: `MODEL`, when it is no protocol buffer.
    """
    taken: list[Initialiser] = []

    def keep(number: int, value: int | memoryview) -> bool:
        if number != _INITIALISER or isinstance(value, int):
            return True
        initialiser = _initialiser(value)
        if wanted(initialiser):
            taken.append(initialiser)
        return not wanted(initialiser)

    out = bytearray()
    for number, value, whole in _fields(memoryview(model)):
        if number == _GRAPH and not isinstance(value, int):
            inner = b"".join(part for n, v, part in _fields(value) if keep(n, v))
            out += _message(_GRAPH, inner)
        else:
            out += whole
    return bytes(out), taken


def declare(specs: Iterable[Spec], *, zeros: bool) -> bytes:
    """Initialisers to append to a serialised model.

    Args:
        specs: Of the initialisers.
        zeros: Whether they hold zeros, or are said to be external at `LOCATION`.

    Returns:
        A ModelProto that holds nothing else.
    """
    tensors = []
    for spec in specs:
        parts = [_number(_DIMENSIONS, size) for size in spec.shape]
        parts += [_number(_TYPE, _NUMBERS[spec.dtype]), _message(_NAME, spec.name.encode())]
        if zeros:
            parts.append(_message(_RAW, bytes(spec.bytes)))
        else:
            place = _message(_KEY, b"location") + _message(_VALUE, LOCATION.encode())
            length = _message(_KEY, b"length") + _message(_VALUE, str(spec.bytes).encode())
            parts += [_message(_EXTERNAL, place), _message(_EXTERNAL, length), _number(_PLACE, _OUTSIDE)]
        tensors.append(_message(_INITIALISER, b"".join(parts)))
    return _message(_GRAPH, b"".join(tensors))


def _graphs(model: bytes | memoryview) -> Iterator[memoryview]:
    """The graph, then its subgraphs; in a list and not by recursion, so that no depth of nesting matters."""
    left = list(_messages(memoryview(model), _GRAPH))
    for graph in left:
        yield graph
        for node in _messages(graph, _NODE):
            for attribute in _messages(node, _ATTRIBUTE):
                left += [*_messages(attribute, _SUBGRAPH), *_messages(attribute, _SUBGRAPHS)]


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of one field."""
    for number, value, _ in _fields(data):
        if number == wanted and not isinstance(value, int):
            yield value


def _names_a_file(tensor: memoryview) -> bool:
    return any(number == _EXTERNAL or (number == _PLACE and value != 0) for number, value, _ in _fields(tensor))


def _initialiser(tensor: memoryview) -> Initialiser:
    shape: list[int] = []
    name, kind, external, raw = b"", 0, False, memoryview(b"")
    for number, value, _ in _fields(tensor):
        match number, value:
            case 1, int(size):
                shape.append(size)
            case 1, memoryview() as packed:
                at = 0
                while at < len(packed):
                    size, at = _varint(packed, at)
                    shape.append(size)
            case 2, int(found):
                kind = found
            case 8, memoryview() as text:
                name = bytes(text)
            case 9, memoryview() as data:
                raw = data
            case 14, int(place):
                external = place == _OUTSIDE
    return Initialiser(Spec(_text(name), _TYPES.get(kind, ""), tuple(shape)), external, raw)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Number, value and the whole bytes of each field."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            if wire == _BYTES:
                length, at = _varint(data, at)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise _broken()
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise _broken()
        yield number, value, data[start:at]


def _text(data: bytes | memoryview) -> str:
    return bytes(data).decode("utf-8", "replace")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:  # noqa: PLR2004  ten bytes of seven bits at most
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  the last byte has no high bit
            return value, at
        shift += 7
    raise _broken()


def _number(field_number: int, value: int) -> bytes:
    return _encoded(field_number << 3 | _VARINT) + _encoded(value)


def _message(field_number: int, value: bytes) -> bytes:
    return _encoded(field_number << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _broken() -> RefusedError:
    return RefusedError(Refusal.MODEL, "graph is not an ONNX model")
