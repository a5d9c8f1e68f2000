"""Accuracy of sealed, flashed copies, and their agreement with the torch reference.

    python -m benchmarks.accuracy [--quick]

For each network and rewriter it calibrates on the head of the test set (the base was not trained on it), seals and
flashes copies onto simulated devices, and lets each device answer the whole test set. The reference for a copy is torch
alone: the torch module, softmax and the rewriter's torch rendering. For each label that differs, the margin between the
reference's two best scores is given.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from testbed.cars import flashed
from testbed.result import result_path, source_commit, write_result
from testbed.subjects import SUBJECTS, VALIDATION, Subject
from testbed.torch_ops import Copy
from variegate.export.calibrate import Tried, calibrate
from variegate.export.parity import TIE, measure
from variegate.export.release import make_release
from variegate.export.rewriters import KINDS
from variegate.keys.seller import Seller

ALLOWED_POINTS = 0.5
_BATCH = 500


class _Answered(nn.Module):
    """Gives back scores that were computed before, so that torch runs the base once for all copies."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores, self.at = scores, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.at += len(images)
        return self.scores[self.at - len(images) : self.at]


def torch_scores(module: nn.Module, images: NDArray[np.uint8]) -> torch.Tensor:
    """The torch module's scores, float32 (N, classes), of uint8 images."""
    with torch.no_grad():
        return torch.cat([module(_floats(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)])


def _floats(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images / np.float32(255))


def reference(copy: Copy, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The copy's scores by torch alone, float32 (N, classes)."""
    with torch.no_grad():
        parts = [copy.scores(_floats(images[i : i + _BATCH])).numpy() for i in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def margins_of_disagreement(labels: NDArray[np.int64], scores: NDArray[np.float32]) -> list[float]:
    """For each label that is not the reference's: how far below the best its score lies."""
    wrong = np.flatnonzero(labels != scores.argmax(axis=1))
    return [float(scores[i].max() - scores[i, labels[i]]) for i in wrong]


@dataclass(frozen=True)
class Answered:
    """A test set with torch's scores for it."""

    images: NDArray[np.uint8]
    truth: NDArray[np.int64]
    scores: torch.Tensor


def run_kind(subject: Subject, kind: str, test: Answered, copies: int) -> dict[str, Any]:
    """Calibrates one rewriter, seals and flashes copies, and measures them."""
    images, truth, scores = test.images, test.truth, test.scores
    head = min(VALIDATION, len(images))
    chosen = calibrate(
        subject.base,
        kind,
        measure(subject.base, images[:head]),
        truth[:head],
        dtype="uint8",
        allowed_points=ALLOWED_POINTS,
        progress=functools.partial(_show, subject.name, kind),
    )
    release = make_release(f"{subject.name}-{kind}", subject.base, chosen.rewriter, images)
    seller = Seller.generate()
    rows = []
    for i in range(copies):
        seed = seller.buyer_seed(f"buyer-{i}", 0)
        with flashed(release, seller, f"buyer-{i}") as enclave:
            labels = enclave.classify_batch(images)
        copy = Copy(_Answered(scores), subject.base.contract, chosen.rewriter, seed, "uint8")
        margins = margins_of_disagreement(labels, reference(copy, images))
        right = labels == truth
        rows.append(
            {
                "accuracy": 100 * float(right.mean()),
                "accuracy_unseen": 100 * float(right[head:].mean()) if len(truth) > head else None,
                "agreement_with_base": 100 * float((labels == scores.argmax(1).numpy()).mean()),
                "disagreements": len(margins),
                "disagreement_margins": margins,
            }
        )
        print(f"  {subject.name} {kind} copy {i + 1}/{copies}: {rows[-1]['accuracy']:.2f} %", flush=True)
    return {
        "parameters": chosen.tried[-1].parameters,
        "noise_turned": chosen.turned,
        "calibration": [
            {"parameters": t.parameters, "accuracy": t.accuracy, "loss_points": t.loss_points} for t in chosen.tried
        ],
        "copies": rows,
    }


def _show(name: str, kind: str, tried: Tried) -> None:
    print(f"  {name} {kind}: tried {tried.parameters}, lost {tried.loss_points:.2f} points", flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and copies; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    copies, count = (2, 2_200) if args.quick else (10, None)
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    n = {"copies": copies, "validation_images": VALIDATION}
    all_margins: list[float] = []
    for subject in SUBJECTS:
        images, truth = subject.test_set(count)
        n[f"{subject.name}_images"] = len(images)
        scores = torch_scores(subject.module, images)
        base = 100 * float((scores.argmax(1).numpy() == truth).mean())
        figures[f"{subject.name}_base"] = base
        for kind in KINDS:
            result = run_kind(subject, kind, Answered(images, truth, scores), copies)
            raw[f"{subject.name}_{kind}"] = result
            accuracies = [row["accuracy"] for row in result["copies"]]
            key = f"{subject.name}_{kind}"
            figures[key] = float(np.mean(accuracies))
            figures[f"{subject.name}_noise_turned"] = result["noise_turned"]
            figures[f"{key}_deviation"] = float(np.std(accuracies, ddof=1))
            figures[f"{key}_loss"] = base - figures[key]
            figures[f"{key}_worst_loss"] = base - min(accuracies)
            all_margins += [m for row in result["copies"] for m in row["disagreement_margins"]]
    figures["label_disagreements"] = len(all_margins)
    figures["label_disagreements_beyond_tie"] = sum(m > TIE for m in all_margins)
    figures["largest_disagreement_margin"] = max(all_margins, default=0.0)
    path = result_path("accuracy", quick=args.quick, out=args.out)
    write_result("accuracy", figures=figures, raw=raw, seeds=[], n=n, path=path)


if __name__ == "__main__":
    main()
