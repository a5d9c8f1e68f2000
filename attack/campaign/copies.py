"""What a worker needs of the fleets: graphs, weights and seeds; and the copies opened from it.

A worker imports neither torch nor onnx: the graphs were fused when the campaign was made.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle
from variegate.attack.oracles.frames import check_labels
from variegate.export.intake.probe import session
from variegate.keys import recipe
from variegate.keys.errors import DeviceError, Refusal, RefusedError
from variegate.keys.recipe import KeyedTensor

BATCH = 1024
"""Most frames of one call to a copy: a bound on memory."""
OPEN = 64
"""Copies that a worker keeps open; no attacker owns more."""
LONGEST_WAIT_S = 120.0
"""Most seconds that a device with a rate is waited for, for one query."""
_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A base with its rewriter, buyer's tensors left out.

    Attributes:
        graph: Serialised ONNX, image to label.
        constants: Its weights by name.
        tensors: The keyed tensors.
    """

    graph: bytes = field(repr=False)
    constants: Mapping[str, NDArray[Any]] = field(repr=False)
    tensors: tuple[KeyedTensor, ...]


@dataclass(frozen=True, kw_only=True)
class FleetCopies:
    """One fleet.

    Attributes:
        name: Of the fleet.
        dtype: Of frames.
        shape: Of a frame, (C, H, W).
        classes: Number of classes.
        graphs: One for each base.
        seeds: One for each copy, 32 bytes; copy i has graph i mod their number.
        devices: URIs instead of graphs.
    """

    name: str
    dtype: str
    shape: tuple[int, int, int]
    classes: int
    graphs: tuple[Graph, ...] = ()
    seeds: tuple[bytes, ...] = field(default=(), repr=False)
    devices: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Copies."""
        return len(self.devices) or len(self.seeds)


class Copy:
    """One copy in this process (`Oracle`)."""

    def __init__(self, fleet: FleetCopies, number: int) -> None:
        """Loads it. The graph may be a stranger's: `copies_file` has looked into it.

        Raises:
            RefusedError: `MODEL`: the graph does not load, or is none from frames to labels.
        """
        graph = fleet.graphs[number % len(fleet.graphs)]
        self.shape, self.dtype, self.classes, self.batch = fleet.shape, fleet.dtype, fleet.classes, BATCH
        values = {**graph.constants, **recipe.expand(graph.tensors, fleet.seeds[number])}
        try:
            self._session = session(graph.graph, values, lean=True)
        except Exception as error:
            message = f"a copy of fleet {fleet.name} does not load ({type(error).__name__})"
            raise RefusedError(Refusal.MODEL, message) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [(i.name, i.type, tuple(i.shape[1:])) for i in inputs] != [("image", _TYPES[self.dtype], self.shape)] or [
            (o.name, o.type, len(o.shape)) for o in outputs
        ] != [("label", "tensor(int64)", 1)]:
            raise RefusedError(Refusal.MODEL, f"a copy of fleet {fleet.name} is no graph from its frames to a label")

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """As `Oracle.labels`.

        Raises:
            DeviceError: onnxruntime failed.
            RefusedError: `MALFORMED`: what it gave are no labels.
        """
        try:
            labels: NDArray[np.int64] = self._session.run(["label"], {"image": frames})[0]
        except Exception as error:
            raise DeviceError(f"a copy does not run ({type(error).__name__})") from error
        return check_labels(labels, len(frames), self.classes)


class Opener(Protocol):
    """Opens devices."""

    def __call__(self, uri: str) -> AbstractContextManager[Oracle]:
        """The device of a URI, until the end of the block."""
        ...


def open_device_oracle(uri: str) -> AbstractContextManager[Oracle]:
    """A device of any kind; a rate is waited out."""
    # A fleet of local copies needs none of it.
    from variegate.attack.oracles.address import open_oracle  # noqa: PLC0415
    from variegate.attack.oracles.patience import Patience  # noqa: PLC0415

    return open_oracle(uri, patience=Patience(longest_s=LONGEST_WAIT_S))


class Copies:
    """Opened copies of all fleets, the last used kept. Thread-safe."""

    def __init__(
        self, fleets: tuple[FleetCopies, ...], *, keep: int = OPEN, opened: Opener = open_device_oracle
    ) -> None:
        """Opens nothing yet.

        Args:
            fleets: The fleets.
            keep: Most that stay open.
            opened: Opens devices.
        """
        self.fleets = {fleet.name: fleet for fleet in fleets}
        self._keep, self._opened = keep, opened
        self._open: OrderedDict[tuple[str, int], tuple[Oracle, ExitStack]] = OrderedDict()
        self._lock = threading.Lock()

    def oracle(self, fleet: str, number: int) -> Oracle:
        """The copy of this number. It may be closed once `keep` others were opened.

        Raises:
            RefusedError, DeviceError, MisuseError: It does not open.
        """
        with self._lock:
            key = (fleet, number)
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key][0]
            while len(self._open) >= self._keep:
                self._open.popitem(last=False)[1][1].close()
            self._open[key] = entry = self._make(self.fleets[fleet], number)
            return entry[0]

    def close(self) -> None:
        """Closes what is open."""
        with self._lock:
            while self._open:
                self._open.popitem()[1][1].close()

    def _make(self, fleet: FleetCopies, number: int) -> tuple[Oracle, ExitStack]:
        with ExitStack() as stack:
            if not fleet.devices:
                return Copy(fleet, number), stack.pop_all()
            device = stack.enter_context(self._opened(fleet.devices[number]))
            if (device.shape, device.dtype, device.classes) != (fleet.shape, fleet.dtype, fleet.classes):
                raise RefusedError(Refusal.CONTRACT, f"{fleet.devices[number]} takes other frames than its fleet")
            return device, stack.pop_all()
