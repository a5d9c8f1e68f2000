"""The file of a campaign's copies: graphs, weights, seeds, or where its devices are. It may be a stranger's.

Everything in it is looked into before anything is made of it. A graph takes from nowhere but the file itself: an
initialiser without data has it beside the graph, or is drawn from the copy's seed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from variegate.attack.campaign.copies import FleetCopies, Graph
from variegate.attack.oracles.frames import MAX_CLASSES
from variegate.isolation.graphs import initialisers, refuse_elsewhere
from variegate.keys import cbor, recipe
from variegate.keys.artefact import DTYPES, Spec
from variegate.keys.errors import Refusal, RefusedError

_FLEET = {"name", "dtype", "shape", "classes", "graphs", "seeds", "devices"}
_GRAPH = {"graph", "constants", "tensors"}
_FRAMES = ("uint8", "float32")
_SEED_BYTES = 32
_RANK = 3
_MAX_RANK = 8
_MAX_PIXELS = 1 << 26
_MAX_TEXT = 8192
MAX_ITEMS = 1_000_000
"""Some ten for each tensor of a base, and one for each copy."""
_KINDS = {np.dtype(name).str: np.dtype(name) for name in DTYPES}


def to_bytes(fleets: tuple[FleetCopies, ...]) -> bytes:
    """The file; one for one content.

    Raises:
        RefusedError: `TOO_LARGE`: it could not be read again.
    """
    plain = [
        {
            "name": fleet.name,
            "dtype": fleet.dtype,
            "shape": list(fleet.shape),
            "classes": fleet.classes,
            "graphs": [
                {
                    "graph": graph.graph,
                    "constants": [
                        [name, array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes()]
                        for name, array in sorted(graph.constants.items())
                    ],
                    "tensors": recipe.to_cbor(graph.tensors),
                }
                for graph in fleet.graphs
            ],
            "seeds": list(fleet.seeds),
            "devices": list(fleet.devices),
        }
        for fleet in fleets
    ]
    data = cbor.encode(plain)
    cbor.scan(data, MAX_ITEMS)
    return data


def from_bytes(data: bytes) -> tuple[FleetCopies, ...]:
    """Reads `to_bytes`.

    Raises:
        RefusedError: `MALFORMED`; `MODEL`: a graph takes data from elsewhere; `TOO_LARGE`: its items or keyed
            tensors.
    """
    fleets = cbor.decode(data, limit=len(data), items=MAX_ITEMS)
    if not isinstance(fleets, list):
        raise _damaged()
    return tuple(map(_fleet, fleets))


def _fleet(value: Any) -> FleetCopies:
    match value:
        case {
            "name": str(name),
            "dtype": dtype,
            "shape": [*shape],
            "classes": int(classes),
            "graphs": [*graphs],
            "seeds": [*seeds],
            "devices": [*devices],
        } if (
            value.keys() == _FLEET
            and dtype in _FRAMES
            and len(shape) == _RANK
            and all(type(side) is int and side > 0 for side in shape)
            and math.prod(shape) <= _MAX_PIXELS
            and type(classes) is int
            and 0 < classes <= MAX_CLASSES
            and all(isinstance(seed, bytes) and len(seed) == _SEED_BYTES for seed in seeds)
            and all(isinstance(uri, str) and 0 < len(uri) <= _MAX_TEXT for uri in devices)
            # One or the other, and a graph for every copy.
            and bool(devices) != bool(seeds)
            and bool(seeds) == bool(graphs)
        ):
            channels, height, width = shape
            return FleetCopies(
                name=name,
                dtype=dtype,
                shape=(channels, height, width),
                classes=classes,
                graphs=tuple(map(_graph, graphs)),
                seeds=tuple(seeds),
                devices=tuple(devices),
            )
    raise _damaged()


def _graph(value: Any) -> Graph:
    match value:
        case {"graph": bytes(graph), "constants": [*listed], "tensors": drawn} if value.keys() == _GRAPH:
            constants = dict(map(_constant, listed))
            tensors = recipe.from_cbor(drawn)
            if len(constants) == len(listed):
                _check(graph, {name: (array.dtype.name, array.shape) for name, array in constants.items()}, tensors)
                return Graph(graph=graph, constants=constants, tensors=tensors)
    raise _damaged()


def _constant(value: Any) -> tuple[str, np.ndarray[Any, Any]]:
    match value:
        case [str(name), str(kind), [*shape], bytes(raw)] if (
            kind in _KINDS
            and len(shape) <= _MAX_RANK
            and all(type(side) is int and 0 <= side <= len(raw) for side in shape)
            and math.prod(shape) * _KINDS[kind].itemsize == len(raw)
        ):
            return name, np.frombuffer(raw, _KINDS[kind]).reshape(shape)
    raise _damaged()


def _check(
    graph: bytes, constants: dict[str, tuple[str, tuple[int, ...]]], tensors: tuple[recipe.KeyedTensor, ...]
) -> None:
    """Holds a graph's initialisers without data to what is supplied: each once, of its type and shape."""
    supplied = dict(constants)
    for tensor in tensors:
        supplied[tensor.name] = ("int64" if tensor.generator == "derangement" else "float32", tensor.shape)
    if len(supplied) != len(constants) + len(tensors):
        raise _damaged()
    refuse_elsewhere(graph)
    wanted = [one.spec for one in initialisers(graph) if one.external]
    if sorted(wanted, key=_by_name) != sorted((Spec(name, *of) for name, of in supplied.items()), key=_by_name):
        message = "a graph of the campaign's copies takes data from elsewhere, or does not take what is beside it"
        raise RefusedError(Refusal.MODEL, message)


def _by_name(spec: Spec) -> str:
    return spec.name


def _damaged() -> RefusedError:
    return RefusedError(Refusal.MALFORMED, "the campaign's copies are damaged")
