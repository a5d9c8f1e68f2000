"""Cosines of loss gradients between copies (Zhang et al. 2023, figure 3).

Two models share adversarial samples if, at the same image, their losses rise in the same direction (Tramèr et al.
2017). At each image, g_i is the gradient by the pixels of -log of the output for the image's class, and a pair of
copies gives cos(g_i, g_j). The hypotheses concern these pairs:

- **H1** two independently trained bases, not rewritten: the effect of training alone;
- **H2** two copies rewritten from one base: the effect of rewriting alone;
- **H3** two copies rewritten from two bases: training and rewriting.

By this measure a protection works if its cosines are at least as near 0 as those of H1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.study_rows import CosineRow
from testbed.torch_ops import Copy

Hypothesis = Literal["H1", "H2", "H3"]
Output = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in 0..1 to logarithms of outputs, (N, classes)."""
_TINY = 1e-300


def logarithm(copy: Copy) -> Output:
    """The copy's soft output M, normalised to sum 1, as a logarithm."""
    return lambda images: copy(images).clamp_min(_TINY).log()


def loss_gradients(output: Output, images: Tensor, classes: Tensor) -> NDArray[np.float64]:
    """Gradients of -log output for the class, (N, l).

    Args:
        output: The model. In float64: confident scores saturate in float32, and lose their gradient.
        images: float64 (N, C, H, W) in 0..1.
        classes: int64 (N,).
    """
    point = images.clone().requires_grad_(True)
    loss = -output(point).gather(1, classes[:, None]).sum()
    (slope,) = torch.autograd.grad(loss, point)
    return slope.flatten(1).numpy().astype(np.float64)


def cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of gradients (N, l) image by image; images without a gradient in either model are left out."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    kept = lengths > 0
    out: NDArray[np.float64] = np.einsum("ij,ij->i", left[kept], right[kept]) / lengths[kept]
    return out


def rows(
    hypothesis: Hypothesis,
    fleet: str,
    gradients: Sequence[NDArray[np.float64]],
    groups: Sequence[int],
) -> Iterator[CosineRow]:
    """All pairs that a hypothesis is about, at all images.

    Args:
        hypothesis: H2 takes pairs within a group, H1 and H3 pairs across groups.
        fleet: The copies' kind.
        gradients: One (N, l) for each copy.
        groups: Each copy's base.
    """
    for i, j in itertools.combinations(range(len(gradients)), 2):
        if (groups[i] == groups[j]) == (hypothesis == "H2"):
            for cosine in cosines(gradients[i], gradients[j]):
                yield CosineRow(hypothesis=hypothesis, fleet=fleet, cosine=float(cosine))
