"""Parity: compares the labels of a copy with those of its reference before the copy is sealed.

A release is checked once in full: the fused graph, loaded as on a device, against base and rewriter calculated
separately. Every copy is then checked with its own keys in the tail graph, which has the copy's own nodes. If labels
differ and the reference's two best scores are closer than `TIE`, this is a tie; any other difference is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.export.fuse import IMAGE, LABEL, PROBABILITIES, Template, fuse_tail, reference_scores
from variegate.export.intake.base import Base
from variegate.export.intake.probe import session
from variegate.keys import recipe
from variegate.keys.errors import Refusal, RefusedError

TIE = 1e-5
"""Scores nearer than this are equal within float32's rounding through a deep network."""


@dataclass(frozen=True)
class ParitySet:
    """Images with the base's probabilities, computed once.

    Attributes:
        images: (N, *shape) as a device takes them.
        probabilities: float32 (N, classes).
    """

    images: NDArray[Any]
    probabilities: NDArray[np.float32]

    def head(self, count: int) -> ParitySet:
        """The first `count` images."""
        return ParitySet(self.images[:count], self.probabilities[:count])


def measure(base: Base, images: NDArray[Any]) -> ParitySet:
    """Lets the base answer images (N, C, H, W) once."""
    floats = images / np.float32(255) if images.dtype == np.uint8 else images
    if base.contract.layout == "NHWC":
        floats = floats.transpose(0, 2, 3, 1)
    scores = base.scores(np.ascontiguousarray(floats, np.float32))
    probabilities = scores if base.contract.outputs == "probabilities" else softmax(scores)
    return ParitySet(images, probabilities)


@dataclass(frozen=True)
class ParityReport:
    """The result of a parity check.

    Attributes:
        images: Images compared.
        ties: Labels that differ at a tie.
        differing: Labels that differ otherwise.
        widest: Largest margin at which a label differs, in score.
    """

    images: int
    ties: int
    differing: int
    widest: float

    def require(self) -> None:
        """Refuses unless labels differ at ties only.

        Raises:
            RefusedError: `PARITY`.
        """
        if self.differing:
            raise RefusedError(
                Refusal.PARITY,
                f"copy and reference differ on {self.differing} of {self.images} images "
                f"(margin up to {self.widest:.3g})",
                hint="the fused graph does not compute what the base and the rewriter do; do not ship it",
            )


def compare(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> ParityReport:
    """Compares labels, int64 (N,), with reference scores, float32 (N, classes)."""
    wrong = np.flatnonzero(labels != scores.argmax(axis=1))
    chosen = scores[wrong, labels[wrong]]
    margins = scores[wrong].max(axis=1, initial=-np.inf) - chosen
    differing = int((margins > TIE).sum())
    return ParityReport(len(labels), len(wrong) - differing, differing, float(margins.max(initial=0)))


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over classes, float32 (N, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    out: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return out


class CopyJudge:
    """Labels of any copy of a template, from the base's probabilities: one session for all seeds."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._session = session(fuse_tail(template))
        self._inputs = {i.name for i in self._session.get_inputs()}

    def labels(self, seed: bytes, images: ParitySet) -> NDArray[np.int64]:
        """Labels, int64 (N,), of the copy with this seed."""
        return self._run(recipe.expand(self._template.tensors, seed), images)

    def check(self, seed: bytes, images: ParitySet) -> tuple[ParityReport, NDArray[np.int64]]:
        """Compares a copy with its numpy reference; the report, and the copy's labels."""
        keyed = recipe.expand(self._template.tensors, seed)
        labels = self._run(keyed, images)
        t = self._template
        scores = reference_scores(t.rewriter, t.contract, images.images, images.probabilities, keyed)
        return compare(labels, scores), labels

    def _run(self, keyed: dict[str, NDArray[Any]], images: ParitySet) -> NDArray[np.int64]:
        feed = {IMAGE: images.images, PROBABILITIES: images.probabilities, **keyed}
        labels: NDArray[np.int64] = self._session.run(
            [LABEL], {name: value for name, value in feed.items() if name in self._inputs}
        )[0]
        return labels


def check_template(template: Template, seed: bytes, images: ParitySet) -> ParityReport:
    """Compares the whole fused graph, loaded as on a device, with base and rewriter run separately."""
    keyed = recipe.expand(template.tensors, seed)
    labels = session(template.graph, {**template.constants, **keyed}).run([LABEL], {IMAGE: images.images})[0]
    scores = reference_scores(template.rewriter, template.contract, images.images, images.probabilities, keyed)
    return compare(labels, scores)
