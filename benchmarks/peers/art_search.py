"""ART's hard-label attacks, one image at a time, over a black-box estimator or over its torch estimator."""

from __future__ import annotations

import contextlib
import warnings
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.peers.meter import Meter, SpentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from art.attacks.evasion import BoundaryAttack, GeoDA, HopSkipJump
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

# numpy 2 took the name away that ART 1.20.1 still uses in GeoDA; this is what numpy says to use instead.
if not hasattr(np, "mat"):
    vars(np)["mat"] = np.asmatrix

_ENDLESS: Final = 100_000
"""Iterations that no budget of queries allows: the meter ends the attack."""


def black_box(meter: Meter, shape: tuple[int, int, int], classes: int) -> Any:
    """The estimator for a network outside of ART's frameworks; the toolkit has none for ONNX."""
    eye = np.eye(classes, dtype=np.float32)
    return BlackBoxClassifierNeuralNetwork(
        lambda x: eye[meter.labels(x)], shape, classes, channels_first=True, clip_values=(0.0, 1.0)
    )


def torch_network(module: Any, shape: tuple[int, int, int], classes: int) -> Any:
    """A torch module as the meter's network, by way of ART's own estimator for torch."""
    estimator = PyTorchClassifier(
        module, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=(0.0, 1.0)
    )

    def labels(x: NDArray[np.float32]) -> NDArray[np.int64]:
        out: NDArray[np.int64] = estimator.predict(x).argmax(1)
        return out

    return labels


def search(
    kind: str,
    estimator: Any,
    meter: Meter,
    *,
    clean: NDArray[np.float32],
    truth: NDArray[np.int64],
    starts: NDArray[np.float32],
    budget: int,
) -> list[float]:
    """Attacks images one after the other, at ART's defaults, until the budget ends each.

    Args:
        kind: `hopskipjump`, `boundary` or `geoda`.
        estimator: Asks through `meter`.
        meter: Counts and judges.
        clean: Images, float32 (N, C, H, W) in 0..1.
        truth: The network's labels of them, (N,).
        starts: A picture of another class for each, as `clean`. GeoDA takes none and draws its own.
        budget: Queries for each image.

    Returns:
        L2 of the nearest fooling frame asked, for each image.
    """
    np.random.seed(0)  # noqa: NPY002  ART's generator is the global one
    out = []
    for x, label, start in zip(clean, truth, starts, strict=True):
        meter.begin(x[np.newaxis], np.asarray([label]))
        given: dict[str, Any] = {}
        if kind == "hopskipjump":
            attack: Any = HopSkipJump(estimator, max_iter=_ENDLESS, verbose=False)
            given["x_adv_init"] = start[np.newaxis]
        elif kind == "boundary":
            attack = BoundaryAttack(estimator, targeted=False, max_iter=_ENDLESS, verbose=False)
            given["x_adv_init"] = start[np.newaxis]
        else:
            # It divides its queries by the number it is given. Its default tolerance of 0.1 is wider than the result.
            attack = GeoDA(estimator, max_iter=budget, bin_search_tol=1e-3, verbose=False)
        with ExitStack() as stack:
            # GeoDA keeps its basis in the working directory.
            stack.enter_context(contextlib.chdir(stack.enter_context(TemporaryDirectory(prefix="variegate-"))))
            stack.enter_context(contextlib.suppress(SpentError))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            attack.generate(x[np.newaxis], **given)
        out.append(float(meter.best[0]))
    return out
