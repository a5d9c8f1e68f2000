"""Attacks with more than one sample on one copy, by labels alone, on GTSRB: colluders, smoothed oracles, several tries.

    python -m benchmarks.collusion [--quick] [--out FILE] [--workers N]

There are two fleets of squared QIM: on one base, and on three (copy i has base i mod 3). Permutation is left out
because one attacker defeats it. The first copies are the colluders', the last four the victims'. HopSkipJump asks 8,000
labels of each device:

- `alone`: on the first copy.
- `vote`, `all`: on k colluders' copies; a point counts as fooling if it fools most of them, or all of them.
- `mean`, `median`: of k samples that were found separately, scaled until it fools most of the k copies.
- `smoothed`: seven votes under noise for each label, with four times the queries.
- tries: the `alone` sample at several overshoots, shown one after the other.

The samples are scaled by s and shown to the victims. A figure `gtsrb_<fleet>_<method>_k<colluders>_s<s>` is the share
of pairs of sample and victim in which the victim is fooled. It covers samples that fool most of their makers' copies at
that s, on images that victim and colluders read rightly. Intervals treat each image as one cluster.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.study_bases import Attacked, chosen, seeds
from benchmarks.study_labels import Made, by_labels, several_tries, shown, smoothed
from benchmarks.study_rows import ReplicationRow
from testbed.result import result_path, source_commit, write_result
from testbed.subjects import GTSRB_TINY
from variegate.attack.oracles.local import LocalCopy
from variegate.attack.overshoot import stretched
from variegate.attack.report.statistics import rate
from variegate.export.fuse import fuse
from variegate.export.rewriters import Qim, Rewriter

NAME: Final = "collusion"
COPIES, VICTIMS = 12, (8, 9, 10, 11)
OVERSHOOTS: Final = {1.0: "s1", 1.5: "s1p5", 2.0: "s2", 3.0: "s3"}
_QIM: Final = Qim(grid=(4, 8), repeats=2, steps=(128,), beta=23.0, squared=True)


@dataclass(frozen=True)
class Fleet:
    """Copies under study.

    Attributes:
        name: For figures.
        rewriter: Of all copies.
        bases: How many networks they are dealt out over.
    """

    name: str
    rewriter: Rewriter
    bases: int = 1

    def devices(self) -> list[LocalCopy]:
        """Opened copies."""
        templates = [fuse(subject.base, self.rewriter, "uint8") for subject in GTSRB_TINY[: self.bases]]
        return [LocalCopy(templates[i % len(templates)], seed) for i, seed in enumerate(seeds(COPIES))]


FLEETS: Final = (Fleet("qim", _QIM), Fleet("qim_training", _QIM, bases=3))


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        images: Attacked.
        queries: Labels of each device for each image.
    """

    images: int
    queries: int


FULL, QUICK = Size(16, 8_000), Size(2, 150)


def attacked_images(size: Size) -> Attacked:
    """Images that every copy of every fleet reads rightly, so that all fleets meet the same."""
    readers = [device for fleet in FLEETS for device in fleet.devices()]
    return chosen(GTSRB_TINY[0].images(), size.images, readers)


def rates(fleet: str, made: Made, devices: Sequence[LocalCopy], attacked: Attacked) -> dict[str, dict[str, Any]]:
    """Rows for the result file, by figure."""
    out = {}
    for s, word in OVERSHOOTS.items():
        frames = stretched(attacked.frames, made.frames, s, "uint8")
        rows = shown(fleet, made.method, devices, attacked, frames, k=made.colluders, victims=VICTIMS)
        out[f"gtsrb_{fleet}_{made.method}_k{made.colluders}_{word}"] = _counted(rows, attacked)
    return out


def _counted(rows: Sequence[ReplicationRow], attacked: Attacked) -> dict[str, Any]:
    net = [row for row in rows if row.clean_right]
    trials = [sum(row.image == image for row in net) for image in attacked.index]
    hits = [sum(row.image == image and row.fooled for row in net) for image in attacked.index]
    found = rate(hits, trials, NAME)
    return {
        "hits": found.hits,
        "trials": found.trials,
        "images": found.images,
        "clustered": [found.clustered.low, found.clustered.high],
        "median_l2": float(np.median([row.l2 for row in net])) if net else None,
    }


def studied(fleet: Fleet, attacked: Attacked, size: Size) -> tuple[dict[str, dict[str, Any]], list[float]]:
    """All methods on one fleet: rows by figure, and the chance over tries."""
    devices, images = fleet.devices(), GTSRB_TINY[0].images()
    out: dict[str, dict[str, Any]] = {}
    tries: list[float] = []
    with threadpool_limits(1):
        for made in by_labels(fleet.name, devices, attacked, images, size.queries):
            out |= rates(fleet.name, made, devices, attacked)
            print(f"{fleet.name} {made.method} of {made.colluders}: done", flush=True)
            if made.method == "alone":
                tries = several_tries(devices, attacked, made.frames, VICTIMS)
        out |= rates(fleet.name, smoothed(devices[0], attacked, images, 4 * size.queries), devices, attacked)
    return out, tries


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--workers", type=int, default=2, help="fleets that run in parallel (default: 2)")
    args = parser.parse_args()
    source_commit()
    size = QUICK if args.quick else FULL
    attacked = attacked_images(size)
    raw: dict[str, Any] = {}
    figures: dict[str, float] = {}
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(studied, fleet, attacked, size): fleet for fleet in reversed(FLEETS)}
        for done in as_completed(running):
            name = running[done].name
            rows, tries = done.result()
            raw |= rows
            figures |= {key: row["hits"] / row["trials"] for key, row in rows.items() if row["trials"]}
            figures |= {f"gtsrb_{name}_tries_k{k}": share for k, share in enumerate(tries, 1)}
    n = {"images": len(attacked.index), "queries": size.queries, "copies": COPIES, "victims": len(VICTIMS)}
    path = result_path(NAME, quick=args.quick, out=args.out)
    ordered = {key: figures[key] for key in sorted(figures)}
    write_result(NAME, figures=ordered, raw={key: raw[key] for key in sorted(raw)}, seeds=[0], n=n, path=path)


if __name__ == "__main__":
    main()
