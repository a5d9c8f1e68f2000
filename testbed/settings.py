"""The rewriters that `benchmarks.accuracy` calibrated, read from its committed result."""

from __future__ import annotations

from testbed.result import committed, load
from variegate.export.rewriters import Rewriter, from_parameters
from variegate.keys.errors import MisuseError


def calibrated(dataset: str, kind: str) -> Rewriter:
    """The calibrated rewriter of a kind for a dataset.

    Raises:
        MisuseError: When there is no accuracy result yet.
    """
    if not committed("accuracy").exists():
        raise MisuseError("benchmarks/results/accuracy.json is missing", hint="run python -m benchmarks.accuracy first")
    return from_parameters(load("accuracy")["raw"][f"{dataset}_{kind}"]["parameters"])
