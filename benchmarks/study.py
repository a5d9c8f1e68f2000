"""White-box and adaptive studies: figures 3, 4, 5 and table 3 of Zhang et al. 2023, partner classes, clones.

    python -m benchmarks.study [--quick] [--out FILE]

There are ten copies of one base for each kind (permutation with the paper's alpha 0.8; the calibrated QIM), for GTSRB
and CIFAR-10; two copies are always the victims. Rates are net: they cover samples that fool most of their makers' own
copies, on images that victim and colluders read rightly. Figures are named `<dataset>_<kind>_<method>_k<colluders>`.
Numbers of images are small: see the intervals in `raw`. Wilson's interval treats pairs as independent, although two
victims share each sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import study_labels, study_white
from benchmarks.study_bases import KINDS, Dataset, chosen, datasets
from benchmarks.study_rows import CosineRow, ReplicationRow
from testbed.result import result_path, source_commit, write_result
from variegate.attack.adaptive.clone import Extraction
from variegate.attack.report.statistics import wilson


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        cosines: Images of figure 3.
        white: Images of figures 4 and 5.
        labels: Images of attacks by labels.
        queries: Of each such search.
        rounds: Segments for each pair of classes, by dataset.
        images: Images that partner recovery draws from, by dataset.
        clone: How a clone is made.
    """

    cosines: int
    white: int
    labels: int
    queries: int
    rounds: dict[str, int]
    images: dict[str, int]
    clone: Extraction


FULL = Size(
    64,
    48,
    16,
    1_000,
    {"gtsrb": 3, "cifar10": 10},
    {"gtsrb": 2_000, "cifar10": 400},
    Extraction(queries=5_000, width=16),
)
QUICK = Size(
    4, 4, 2, 100, {"gtsrb": 1, "cifar10": 1}, {"gtsrb": 200, "cifar10": 60}, Extraction(queries=200, epochs=1, width=4)
)


@dataclass
class Findings:
    """The results so far."""

    figures: dict[str, float] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    cosines: list[CosineRow] = field(default_factory=list)
    replication: list[ReplicationRow] = field(default_factory=list)

    def note(self, key: str, value: object) -> None:
        """Keeps and prints."""
        self.raw[key] = value
        print(key, value, flush=True)

    def add_cosines(self, dataset: str, rows: Sequence[CosineRow]) -> None:
        """Medians and quartiles for each hypothesis and kind."""
        self.cosines += rows
        for key in sorted({(row.fleet, row.hypothesis) for row in rows}):
            values = [row.cosine for row in rows if (row.fleet, row.hypothesis) == key]
            low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
            name = f"{dataset}_{key[0]}_{key[1].lower()}_median_cosine"
            self.figures[name] = median
            self.note(name, {"n": len(values), "quartiles": [low, median, high]})

    def add_rates(self, rows: Sequence[ReplicationRow]) -> None:
        """Net rates by fleet, method and colluders."""
        self.replication += rows
        for fleet, method, k in sorted({(row.fleet, row.method, row.colluders) for row in rows}):
            of = [row for row in rows if (row.fleet, row.method, row.colluders) == (fleet, method, k)]
            net = [row.fooled for row in of if row.clean_right]
            name = f"{fleet}_{method.replace('.', '_')}" + (f"_k{k}" if k else "")
            if net:
                self.figures[name] = sum(net) / len(net)
            interval = wilson(sum(net), len(net))
            self.note(
                name,
                {
                    "hits": sum(net),
                    "trials": len(net),
                    "wilson": [interval.low, interval.high],
                    "raw_hits": sum(row.fooled for row in of),
                    "raw_trials": len(of),
                    "median_l2": float(np.median([row.l2 for row in of])),
                },
            )


def study(dataset: Dataset, size: Size, found: Findings) -> None:
    """All studies of one dataset."""
    images = dataset.test()
    readers = [device for kind in KINDS for device in dataset.devices(kind, study_labels.FLEET)]
    attacked = chosen(images, max(size.cosines, size.white), readers)
    few, white = attacked.head(size.labels), attacked.head(size.white)
    found.add_cosines(dataset.name, study_white.cosines(dataset, attacked.head(size.cosines)))
    pictures = dataset.transfer().x
    pictures = pictures[np.random.default_rng(0).permutation(len(pictures))[: size.clone.queries]]
    for kind in KINDS:
        name = f"{dataset.name}_{kind}"
        changes = study_white.outputs(dataset, kind, white)
        found.note(f"{name}_outputs", changes)
        found.figures |= {f"{name}_{key}": value for key, value in changes.items() if isinstance(value, float)}
        found.add_rates(study_labels.opened_up(dataset, kind, white))
        clone, rows = study_labels.cloned(dataset, kind, white, images, pictures, how=size.clone)
        found.note(f"{name}_clone", clone)
        found.figures[f"{name}_clone_agreement"] = clone["agreement"]
        found.add_rates(rows)
    recovered = study_labels.partners(dataset, images, size.rounds[dataset.name], size.images[dataset.name])
    partners = recovered.pop("found")
    found.note(f"{dataset.name}_partners", recovered)
    for way in ("labels", "vote"):
        found.figures[f"{dataset.name}_partners_{way}_right"] = recovered[way]["best_right"]
    if dataset.name != "gtsrb":
        return  # by labels, millions of queries: the faster network alone
    fleets = {kind: dataset.devices(kind, study_labels.FLEET) for kind in KINDS}
    more = {
        "permutation": study_labels.cancelled(fleets["permutation"][0], few, images, size.queries, partners),
        "qim": study_labels.smoothed(fleets["qim"][0], few, images, 4 * size.queries),
    }
    for kind, fleet in fleets.items():
        every = list(study_labels.by_labels(kind, fleet, few, images, size.queries))
        for one in (*every, more[kind]):
            name = f"{dataset.name}_{kind}"
            found.add_rates(study_labels.shown(name, one.method, fleet, few, one.frames, k=one.colluders))
        curve = study_labels.several_tries(fleet, few, every[0].frames)
        found.note(f"{dataset.name}_{kind}_tries", curve)
        found.figures |= {f"{dataset.name}_{kind}_tries_k{k}": share for k, share in enumerate(curve, 1)}


def main() -> None:
    """Runs the studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few images and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    torch.set_num_threads(1)
    size, found = QUICK if args.quick else FULL, Findings()
    bases = {}
    for dataset in datasets():
        study(dataset, size, found)
        bases[f"{dataset.name}_bases"] = len(dataset.bases)
    write_result(
        "study",
        figures=found.figures,
        raw=found.raw,
        seeds=[0],
        n={
            "images_cosines": size.cosines,
            "images_white": size.white,
            "images_labels": size.labels,
            "queries": size.queries,
            "victims": len(study_labels.VICTIMS),
            **bases,
        },
        path=result_path("study", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
