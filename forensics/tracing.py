"""A trace from files: samples, a release, the seller's keys and the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from variegate.export.arrays import read_arrays
from variegate.export.registry import Registry, parameters_text
from variegate.export.release import Release
from variegate.export.rewriters import Qim, to_parameters
from variegate.forensics.attractors import AttractorTracer, Sample, Verdict
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.seller import SellerKeys

Buyer = tuple[str, int]
"""Buyer id and key epoch, from which a copy's attractors are derived."""
_ARRAYS = ("sample", "label", "clean_label")


def trace(
    release: Release,
    seller: SellerKeys,
    samples: Sequence[Sample],
    buyers: Iterable[Buyer],
    progress: Callable[[], None] = lambda: None,
) -> Verdict:
    """Looks at samples of one attacker under the keys of every buyer of a release.

    Args:
        release: The release of the copies.
        seller: Holder of the keys.
        samples: Thought to come from one attacker, at least one.
        buyers: The buyers of copies, at least one.
        progress: Called after each buyer.

    Raises:
        MisuseError: The release's copies cannot be traced, or samples or buyers are missing.
    """
    template = release.template
    if not isinstance(template.rewriter, Qim) or template.dtype != "uint8":
        raise MisuseError(
            "copies are traced by the attractors of QIM for uint8 frames, which this release does not have"
        )
    seeds = {_name(buyer, epoch): seller.buyer_seed(buyer, epoch) for buyer, epoch in buyers}
    return AttractorTracer(template.rewriter, template.contract).trace(samples, seeds, progress)


def registered(registry: Registry, release: Release) -> list[Buyer]:
    """The buyers of copies of a release, each buyer and epoch once, in the order of the registry.

    Raises:
        RefusedError: `MALFORMED`: the file is damaged.
        DeviceError: Storage failed or is busy.
    """
    ours = (release.base_digest.hex(), parameters_text(to_parameters(release.template.rewriter)))
    rows = (row for row in registry.rows() if (row.base, row.parameters) == ours)
    return list(dict.fromkeys((row.buyer, row.epoch) for row in rows))


def read_samples(paths: Iterable[Path], release: Release) -> list[Sample]:
    """Samples from `.npz` files: `sample` (N, C, H, W), the device's answer (`label`), the class shown (`clean_label`).

    A sample whose label is not known (-1), or is the class shown, is no evidence and is left out.

    Raises:
        MisuseError: A file cannot be read.
        RefusedError: `MALFORMED`: it is damaged, or its arrays do not fit the release.
    """
    out: list[Sample] = []
    for path in paths:
        frames, wrong, right = read_arrays(path, _ARRAYS)
        shape, classes = release.template.shape, release.template.contract.classes
        whole = all(part.shape == frames.shape[:1] and part.dtype.kind in "iu" for part in (wrong, right))
        if frames.dtype != np.uint8 or frames.shape[1:] != shape or not whole:
            raise RefusedError(Refusal.MALFORMED, f"{path} holds no uint8 samples of {shape} with a label for each")
        if len(frames) and max(wrong.max(), right.max()) >= classes:
            raise RefusedError(Refusal.MALFORMED, f"{path} has a label that is none of the {classes} classes")
        known = (wrong >= 0) & (right >= 0) & (wrong != right)
        out += [Sample(frames[i], int(wrong[i]), int(right[i])) for i in np.flatnonzero(known)]
    return out


def _name(buyer: str, epoch: int) -> str:
    return buyer if epoch == 0 else f"{buyer}, epoch {epoch}"
