"""The rewriters that `benchmarks.accuracy` calibrated, read from its committed result."""

from __future__ import annotations

import json

from benchmarks.result import RESULTS
from variegate.export.rewriters import Rewriter, from_parameters
from variegate.keys.errors import MisuseError


def calibrated(dataset: str, kind: str) -> Rewriter:
    """The calibrated rewriter of a kind for a dataset.

    Raises:
        MisuseError: When there is no accuracy result yet.
    """
    path = RESULTS / "accuracy.json"
    if not path.exists():
        raise MisuseError("benchmarks/results/accuracy.json is missing", hint="run python -m benchmarks.accuracy first")
    return from_parameters(json.loads(path.read_text("utf-8"))["raw"][f"{dataset}_{kind}"]["parameters"])
