"""Part of `benchmarks.study`: figures 3 and 4, with white-box copies."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.study_bases import KINDS, Attacked, Dataset
from benchmarks.study_copies import Ensemble, to_tensor
from benchmarks.study_gradients import Output, logarithm, loss_gradients, rows
from benchmarks.study_outputs import change
from benchmarks.study_rows import CosineRow
from variegate.attack.whitebox.deepfool import DeepFool


def cosines(dataset: Dataset, attacked: Attacked) -> list[CosineRow]:
    """Rows of all three hypotheses: two copies around each base, and the bases themselves."""
    images, classes = to_tensor(attacked.frames).double(), torch.from_numpy(attacked.classes)
    count = len(dataset.bases)
    bare = [_gradients(_bare(module), images, classes) for module, _ in dataset.bases]
    out = list(rows("H1", "none", bare, range(count)))
    for kind in KINDS:
        gradients, groups = [], []
        for base in range(count):
            for copy in dataset.opened(kind, 2, base):
                gradients.append(_gradients(logarithm(deepcopy(copy).double()), images, classes))
                groups.append(base)
        out += rows("H2", kind, gradients, groups)
        out += rows("H3", kind, gradients, groups)
    return out


def _bare(module: nn.Module) -> Output:
    double = deepcopy(module).double()
    return lambda images: double(images).log_softmax(dim=1)


def _gradients(output: Output, images: torch.Tensor, classes: torch.Tensor) -> Any:
    pieces = [loss_gradients(output, images[i : i + 16], classes[i : i + 16]) for i in range(0, len(images), 16)]
    return np.concatenate(pieces)


def outputs(dataset: Dataset, kind: str, attacked: Attacked) -> dict[str, Any]:
    """Mean changes of F and G under DeepFool on one copy, seen on that copy and on another of the same base."""
    copies = dataset.opened(kind, 2)
    own = Ensemble(copies[:1])
    clean = to_tensor(attacked.frames)
    # Not rounded to frames: bytes would undo steps as short as DeepFool's, and with them what is looked at.
    samples = torch.from_numpy(DeepFool().run(own, clean))
    before, after = own.labels(clean)[0], own.labels(samples)[0]
    fooled = before != after
    seen = {
        name: change(copy, clean[fooled], samples[fooled], before[fooled], after[fooled])
        for name, copy in zip(("own", "victim"), copies, strict=True)
    }
    out: dict[str, Any] = {"fooled": int(fooled.sum()), "shown": len(fooled)}
    for name, of in seen.items():
        for part in ("gained_f", "gained_g", "lost_f", "lost_g"):
            out[f"{part}_{name}"] = float(getattr(of, part).mean())
    out["share_g_own_median"] = float(np.median(seen["own"].share_g))
    return out
