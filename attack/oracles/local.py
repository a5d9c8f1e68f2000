"""Copies and bare bases in this process: the fastest way to a label, for campaigns that need millions.

A copy here is the graph that a device runs, with the same tensors; a device's sealing, budget and isolation do not
affect the label. Each copy runs on one thread, so that as many can run at once as there are cores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracles.frames import check_frames
from variegate.export.fuse import IMAGE, LABEL, Template, fuse
from variegate.export.intake.base import Base
from variegate.export.intake.contract import Contract
from variegate.export.intake.probe import session
from variegate.export.rewriters.definition import Inputs
from variegate.export.rewriters.ops import Ops
from variegate.keys.errors import DeviceError
from variegate.keys.recipe import KeyedTensor

BATCH = 1024
"""Most frames of one call: a bound on memory, not a preference."""
V = TypeVar("V")


class LocalCopy:
    """One buyer's copy in this process (`attack.oracle.Oracle`). Thread-safe.

    Attributes:
        shape: Of a frame, (C, H, W).
        dtype: Of a frame: "uint8" or "float32".
        classes: Number of classes.
        batch: Most frames of one call.
    """

    def __init__(self, template: Template, seed: bytes, *, batch: int = BATCH) -> None:
        """Makes the copy.

        Args:
            template: The release (`export.fuse.fuse`).
            seed: The buyer's.
            batch: Most frames of one call.
        """
        self.shape, self.dtype, self.batch = template.shape, template.dtype, batch
        self.classes = template.contract.classes
        self._session = session(template.graph, template.values(seed))

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """Labels, int64 (N,), of frames (N, *shape) of `dtype`.

        Raises:
            RefusedError: `INPUT` or `TOO_LARGE`, as a device refuses such frames.
            DeviceError: onnxruntime failed.
        """
        check_frames(frames, self)
        try:
            labels: NDArray[np.int64] = self._session.run([LABEL], {IMAGE: frames})[0]
        except Exception as error:
            raise DeviceError(f"the copy does not run ({type(error).__name__})") from error
        return labels


class LocalBase(LocalCopy):
    """A bare network in this process: the argmax of its scores, nothing rewritten (`attack.oracle.Oracle`).

    For fleets of independently trained networks, and for comparison with copies.
    """

    def __init__(self, base: Base, dtype: str = "uint8", *, batch: int = BATCH) -> None:
        """Makes it.

        Args:
            base: The checked base.
            dtype: Of a frame: "uint8" or "float32".
            batch: Most frames of one call.

        Raises:
            MisuseError: Another dtype.
        """
        super().__init__(plain(base, dtype), b"", batch=batch)


def plain(base: Base, dtype: str) -> Template:
    """A template that rewrites nothing: it has no keyed tensors, and all seeds give the same graph.

    Raises:
        MisuseError: A dtype that is neither "uint8" nor "float32".
    """
    # No softmax before the argmax: it could only make ties.
    contract = replace(base.contract, outputs="probabilities")
    return fuse(replace(base, contract=contract), _Unwritten(), dtype)


@dataclass(frozen=True)
class _Unwritten:
    """R = 0 (`export.rewriters.Rewriter`)."""

    kind = "none"

    def tensors(self, contract: Contract, dtype: str) -> tuple[KeyedTensor, ...]:  # noqa: ARG002
        return ()

    def offset(self) -> float:
        return 0.0

    def scores(self, ops: Ops[V], inputs: Inputs[V], contract: Contract) -> V:  # noqa: ARG002
        return inputs.probabilities
